"""Places-LT: 365 kinds of scenes with 5 to 4,980 training images each, from its published lists."""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from string import Template

from huggingface_hub import DatasetCardData

from hf_vlr.data.list_files import (
    ClassName,
    Known,
    Line,
    as_listed,
    checksum_table,
    class_folders,
    class_texts,
    find_lists,
    folder_name,
    image_roots,
    place_lists,
    read_class_names,
    read_list,
    source_folder,
)
from hf_vlr.data.manifest import Manifest
from hf_vlr.data.texts.names import plain_name

LISTS = {
    "train": ("Places_LT_train.txt",),
    "validation": ("Places_LT_val.txt",),
    "test": ("Places_LT_test.txt",),
}
PUBLISHED = (
    "by Liu et al., Large-Scale Long-Tailed Recognition in an Open World (CVPR 2019; the repository "
    "zhmiao/OpenLongTailRecognition-OLTR links them), beside Places365-Standard from places2.csail.mit.edu"
)
EXPECTED = {"train": 62_500, "validation": 7_300, "test": 36_500}
CLASSES = 365
LIST_FOLDERS = ("Places_LT", "Places_LT_v2")
IMAGE_FOLDERS = (
    "places365_standard", "places365standard_easyformat/places365_standard", "Places", "Places365", "places365",
    "images",
)  # fmt: skip
NAME_FILES = ("categories_places365.txt", "labels.txt")
# The folders that Places' own archives, torchvision's copy of them and the easy format unpack to; "" is none.
TOPS = (
    "train", "val", "data_256", "val_256", "data_large", "val_large", "data_256_standard", "data_large_standard", "",
)  # fmt: skip
# How a scene of two words is spelled: a/arena/hockey, arena-hockey, arena/hockey, a/arena-hockey, not at all.
STYLES = ("letter", "dashed", "plain", "letter-dashed", "flat")
HELD_OUT = "Places365_val_"
KNOWN = {"Places_LT_train.txt": Known("726c4871dcbf", "47f7", "the published list in its form `train/airfield/…`")}


def manifest(
    source_dir: str | Path,
    *,
    lists: str | Path | None = None,
    images_dir: str | Path | None = None,
    name_source: str | Path | None = None,
    texts: str | Sequence[str] | None = "auto",
) -> Manifest:
    """Places-LT as its lists describe it; splits `train`, `validation` (from Places' train) and `test` (its val).

    source_dir: the images of Places365-Standard and the lists. A list of one convention (`train/arena-hockey/FILE`,
    `data_256/a/arena/hockey/FILE`) finds images that lie in another, large or 256 pixels; the validation folder may
    be flat. lists: the lists' folder, if it is another one. images_dir: the folder that holds `train` or `data_256`.
    name_source: a file of class names; by default `categories_places365.txt` or `labels.txt` if one is there, else
    the folders in the lists. texts: a spec like `data.texts`; by default VL-LTR's corpus if there is a folder
    `wiki`, else none. Raises `UserError` for a list or folder that is missing or wrong.
    """
    folder = source_folder(source_dir)
    found = find_lists(folder, lists, LIST_FOLDERS, LISTS, PUBLISHED)
    lines = {split: read_list(file) for split, file in found.items()}
    scenes = class_folders(lines.values(), scene_of)
    homes = list(dict.fromkeys([folder, found["train"].parent]))
    classes, origin = named_classes(homes, name_source, scenes)
    forms = [partial(respelled, top=top, style=style, scenes=scenes) for top in TOPS for style in STYLES]
    splits = place_lists(lines, image_roots(folder, images_dir, IMAGE_FOLDERS), (as_listed, *forms))
    names, marks = [one.name for one in classes], [one.mark for one in classes]
    if texts == "auto":
        texts = [f"wiki:{folder}"] if (folder / "wiki").is_dir() else None
    return Manifest(
        name="places-lt",
        class_names=names,
        marks=marks,
        splits=splits,
        card=card(),
        about=about(list(found.values()), origin),
        texts=class_texts(texts, "places-lt", names, marks),
        expected=EXPECTED,
        sources=list(found.values()),
    )


def scene_of(path: str) -> str:
    """The scene that is the image's folder, as `arena/hockey`, or '' where the folder is flat."""
    folders = path.split("/")[:-1]
    if folders and folders[0] in TOPS:
        folders = folders[1:]
    return folder_name("/".join(folders)) if folders else ""


def respelled(line: Line, top: str, style: str, scenes: Mapping[int, str]) -> str:
    """The line's path in another convention; as listed where it has none."""
    file = line.path.rpartition("/")[2]
    scene = scene_of(line.path) or scenes.get(line.label, "")
    # only the names of validation images are unique without their folder
    if not scene or (style == "flat" and not file.startswith(HELD_OUT)):
        return line.path
    spelling = {
        "letter": f"{scene[0]}/{scene}",
        "dashed": scene.replace("/", "-"),
        "plain": scene,
        "letter-dashed": f"{scene[0]}/{scene.replace('/', '-')}",
        "flat": "",
    }
    return "/".join(part for part in (top, spelling[style], file) if part)


def named_classes(
    homes: Sequence[Path], name_source: str | Path | None, scenes: Mapping[int, str]
) -> tuple[list[ClassName], str]:
    """The classes by index, and where their names come from."""
    there = [home / name for home in homes for name in NAME_FILES if (home / name).is_file()]
    file = Path(name_source).expanduser() if name_source is not None else next(iter(there), None)
    if file is not None:
        return read_class_names(file), f"`{file.name}`"
    number = min(CLASSES, 1 + max(0, *scenes)) if scenes else CLASSES
    marks = [scenes.get(label, f"class {label}") for label in range(number)]
    return [ClassName(plain_name(mark), mark) for mark in marks], "the folders in the lists"


def card() -> DatasetCardData:
    """The dataset card's metadata."""
    return DatasetCardData(
        pretty_name="Places-LT",
        license="other",
        license_name="places-terms-of-use",
        license_link="http://places2.csail.mit.edu/download.html",
        language=["en"],
        task_categories=["image-classification", "zero-shot-image-classification"],
        size_categories=["100K<n<1M"],
        tags=["long-tailed", "scenes", "places365"],
    )


def about(lists: Sequence[Path], origin: str) -> str:
    """The dataset card's text."""
    text = files("hf_vlr.datasets_scripts").joinpath("places_lt.md").read_text(encoding="utf-8")
    return Template(text).substitute(checksums=checksum_table(lists, KNOWN), names=origin).rstrip()
