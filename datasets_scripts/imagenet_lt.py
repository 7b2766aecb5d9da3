"""ImageNet-LT: 1,000 classes of ImageNet with 5 to 1,280 training images each, from its published lists."""

import re
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
    image_roots,
    place_lists,
    read_class_names,
    read_list,
    source_folder,
)
from hf_vlr.data.manifest import Manifest
from hf_vlr.errors import UserError

LISTS = {
    "train": ("ImageNet_LT_train.txt",),
    "validation": ("ImageNet_LT_val.txt",),
    "test": ("ImageNet_LT_test.txt",),
}
PUBLISHED = (
    "by Liu et al., Large-Scale Long-Tailed Recognition in an Open World (CVPR 2019; the repository "
    "zhmiao/OpenLongTailRecognition-OLTR links them), beside ImageNet's folders train and val from image-net.org"
)
EXPECTED = {"train": 115_846, "validation": 20_000, "test": 50_000}
LIST_FOLDERS = ("ImageNet_LT",)
IMAGE_FOLDERS = ("ImageNet", "imagenet", "images", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "ILSVRC2012")
NAME_FILES = ("classnames.txt", "labels.txt", "LOC_synset_mapping.txt")
WNID = re.compile(r"n\d{8}")
KNOWN = {
    "ImageNet_LT_train.txt": Known(
        "efdbdad4f050237c310b2f354cf95a8b1d7c8d57a63c4ea4bb6bf2bcb012f37f", "", "the published list"
    ),
    "ImageNet_LT_val.txt": Known("9af7ba688acf95", "142e", "the published list"),
}


def manifest(
    source_dir: str | Path,
    *,
    lists: str | Path | None = None,
    images_dir: str | Path | None = None,
    name_source: str | Path | None = None,
    texts: str | Sequence[str] | None = "auto",
) -> Manifest:
    """ImageNet-LT as its lists describe it; splits `train`, `validation` (from ImageNet's train) and `test` (its val).

    source_dir: ImageNet's folders, as torchvision or Kaggle lay them out (`val` may be flat), and the lists.
    lists: the lists' folder, if it is another one. images_dir: the folder that holds `train` and `val`.
    name_source: a file of class names, or `timm` for WordNet's; by default `classnames.txt`, `labels.txt` or
    `LOC_synset_mapping.txt` if one is there, else timm. texts: a spec like `data.texts`; by default VL-LTR's
    corpus if there is a folder `wiki`, else none. Raises `UserError` for a list or folder that is missing or wrong.
    """
    folder = source_folder(source_dir)
    found = find_lists(folder, lists, LIST_FOLDERS, LISTS, PUBLISHED)
    lines = {split: read_list(file) for split, file in found.items()}
    wnids = class_folders(lines.values(), wnid_of)
    homes = list(dict.fromkeys([folder, found["train"].parent]))
    named, origin = named_classes(homes, name_source)
    classes = ordered(named, wnids)
    roots = image_roots(folder, images_dir, IMAGE_FOLDERS)
    splits = place_lists(lines, roots, (as_listed, flat, partial(foldered, wnids=wnids)))
    names, marks = [one.name for one in classes], [one.mark for one in classes]
    if texts == "auto":
        texts = [f"wiki:{folder}"] if (folder / "wiki").is_dir() else None
    return Manifest(
        name="imagenet-lt",
        class_names=names,
        marks=marks,
        splits=splits,
        card=card(),
        about=about(list(found.values()), origin),
        texts=class_texts(texts, "imagenet-lt", names, marks),
        expected=EXPECTED,
        sources=list(found.values()),
    )


def wnid_of(path: str) -> str:
    """The WordNet id that is the image's folder, or ''."""
    parent = path.rpartition("/")[0].rpartition("/")[2]
    return parent if WNID.fullmatch(parent) else ""


def flat(line: Line) -> str:
    """`val/FILE` for `val/WNID/FILE`: ImageNet's own archive of validation images has no folders."""
    return re.sub(r"/n\d{8}/(?=[^/]+$)", "/", line.path)


def foldered(line: Line, wnids: Mapping[int, str]) -> str:
    """`val/WNID/FILE` for `val/FILE`."""
    head, _, file = line.path.rpartition("/")
    return line.path if wnid_of(line.path) or line.label not in wnids else f"{head}/{wnids[line.label]}/{file}"


def named_classes(homes: Sequence[Path], name_source: str | Path | None) -> tuple[list[ClassName], str]:
    """The classes' names by WordNet id where they have one, and where the names come from."""
    if name_source is not None and name_source != "timm":
        file = Path(name_source).expanduser()
        return read_class_names(file), f"`{file.name}`"
    there = [home / name for home in homes for name in NAME_FILES if (home / name).is_file()]
    if there and name_source is None:
        return read_class_names(there[0]), f"`{there[0].name}`"
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    lemmas = info.label_descriptions(as_dict=True)
    return [ClassName(lemmas[wnid].split(",")[0], wnid) for wnid in sorted(lemmas)], "WordNet's first lemmas (timm)"


def ordered(named: Sequence[ClassName], wnids: Mapping[int, str]) -> list[ClassName]:
    """The classes by index: as the lists' folders number them, the others in the order of their WordNet ids."""
    if not all(WNID.fullmatch(one.mark) for one in named):
        return [ClassName(one.name, wnids.get(label, one.mark)) for label, one in enumerate(named)]
    names = {one.mark: one.name for one in named}
    inside = {label: wnid for label, wnid in wnids.items() if 0 <= label < len(named)}
    if inside and not set(inside.values()) & set(names):
        raise UserError(f"the class names are for none of the lists' folders, such as {next(iter(inside.values()))}")
    rest = iter(sorted(set(names) - set(inside.values())))
    marks = [inside[label] if label in inside else next(rest) for label in range(len(named))]
    return [ClassName(names.get(mark, mark), mark) for mark in marks]


def card() -> DatasetCardData:
    """The dataset card's metadata."""
    return DatasetCardData(
        pretty_name="ImageNet-LT",
        license="other",
        license_name="imagenet-terms-of-access",
        license_link="https://image-net.org/download.php",
        language=["en"],
        task_categories=["image-classification", "zero-shot-image-classification"],
        size_categories=["100K<n<1M"],
        tags=["long-tailed", "imagenet"],
    )


def about(lists: Sequence[Path], origin: str) -> str:
    """The dataset card's text."""
    text = files("hf_vlr.datasets_scripts").joinpath("imagenet_lt.md").read_text(encoding="utf-8")
    return Template(text).substitute(checksums=checksum_table(lists, KNOWN), names=origin).rstrip()
