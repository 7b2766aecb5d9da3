"""iNaturalist 2018: 8,142 species with 2 to 1,000 training images each, from the competition's annotation files."""

from collections import defaultdict
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import DatasetCardData

from hf_vlr.data.list_files import (
    NO_CLASS,
    ClassName,
    Line,
    as_listed,
    checksum_table,
    class_texts,
    find_lists,
    image_roots,
    place_lists,
    read_list,
    safe_path,
    source_folder,
)
from hf_vlr.data.manifest import Manifest
from hf_vlr.data.texts.files import read_json
from hf_vlr.errors import UserError

# The competition's validation images are what everybody tests on: its test images have no public labels.
LISTS = {
    "train": ("train2018.json", "iNaturalist18_train.txt"),
    "test": ("val2018.json", "val.json", "iNaturalist18_val.txt"),
}
PUBLISHED = (
    "by the iNaturalist 2018 competition (the repository visipedia/inat_comp links them), with categories.json and the "
    "images, train_val2018"
)
EXPECTED = {"train": 437_513, "test": 24_426}
LIST_FOLDERS = ("annotations", "iNaturalist18")
IMAGE_FOLDERS = ("images", "iNat", "inat2018", "iNaturalist18")
CATEGORIES = "categories.json"
TOP = "train_val2018/"


def manifest(
    source_dir: str | Path,
    *,
    lists: str | Path | None = None,
    images_dir: str | Path | None = None,
    texts: str | Sequence[str] | None = "auto",
) -> Manifest:
    """iNaturalist 2018 as its annotations describe it; splits `train` and `test` (the competition's validation).

    source_dir: `train2018.json`, `val2018.json` (or lists `iNaturalist18_{train,val}.txt`), `categories.json` and the
    images, `train_val2018`. lists: the annotations' folder, if it is another one. images_dir: the folder that holds
    `train_val2018`, or is it. texts: a spec like `data.texts`; by default what `categories.json` says of each
    species, and VL-LTR's corpus if there is a folder `wiki`. Raises `UserError` for a file or folder that is missing
    or wrong.
    """
    folder = source_folder(source_dir)
    found = find_lists(folder, lists, LIST_FOLDERS, LISTS, PUBLISHED)
    homes = dict.fromkeys([folder, found["train"].parent])
    categories = next((home / CATEGORIES for home in homes if (home / CATEGORIES).is_file()), None)
    lines = {split: read_annotations(file) for split, file in found.items()}
    classes = read_categories(categories or found["train"])
    splits = place_lists(lines, image_roots(folder, images_dir, IMAGE_FOLDERS), (as_listed, below_top))
    names, marks = [one.name for one in classes], [one.mark for one in classes]
    if texts == "auto":
        wiki = [f"wiki:{folder}"] if (folder / "wiki").is_dir() else []
        texts = [*wiki, f"taxonomy:{categories}" if categories else "templates"]
    sources = [*found.values(), *([categories] if categories else [])]
    return Manifest(
        name="inaturalist2018",
        class_names=names,
        marks=marks,
        splits=splits,
        card=card(),
        about=about(sources, categories),
        texts=class_texts(texts, "inaturalist2018", names, marks),
        expected=EXPECTED,
        sources=sources,
    )


def below_top(line: Line) -> str:
    """The path below `train_val2018`, for an `images_dir` that is this folder itself."""
    return line.path.removeprefix(TOP)


def read_annotations(file: Path) -> list[Line]:
    """The images of a split and their categories, in the order of `images`; of a `.txt` list, its lines.

    Annotations belong to images by `image_id`, not by their order. An image without a category or with two of them,
    and an annotation without an image, become faults. Raises `UserError` for a file of another form.
    """
    if file.suffix == ".txt":
        return read_list(file)
    found = read_json(file)
    labels: dict[Any, set[int]] = defaultdict(set)
    try:
        for one in found["annotations"]:
            labels[one["image_id"]].add(int(one["category_id"]))
        images = [(one["id"], str(one["file_name"])) for one in found["images"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: not iNaturalist's annotations; it needs images with id and file_name, and annotations with "
            "image_id and category_id"
        ) from error
    lines = [annotated(file.name, path, labels.pop(key, set())) for key, path in images]
    lost = [
        Line("", NO_CLASS, f"{file.name}: annotation of image {key}, which is not among the images") for key in labels
    ]
    return lines + lost


def annotated(where: str, path: str, labels: set[int]) -> Line:
    """An image with its one category, or a fault."""
    if len(labels) == 1:
        return Line(safe_path(path, where), min(labels))
    return Line("", NO_CLASS, f"{where}: {path} has {len(labels)} categories")


def read_categories(file: Path) -> list[ClassName]:
    """The species by id, from `categories.json` or from the categories in an annotation file.

    Raises `UserError` for a file of another form, and unless the ids are 0 … C-1.
    """
    if file.suffix == ".txt":
        raise UserError(f"{file.parent}: {CATEGORIES} is not here; the names of the species are published {PUBLISHED}")
    found = read_json(file)
    found = found.get("categories") if isinstance(found, dict) else found
    try:
        names = {int(one["id"]): str(one["name"]) for one in found}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: it must be a list of categories with id and name") from error
    if not names or sorted(names) != list(range(len(found))):
        raise UserError(f"{file}: the ids of its {len(found)} categories are not 0 … {len(found) - 1}, each once")
    return [ClassName(" ".join(name.split()), str(label)) for label, name in sorted(names.items())]


def card() -> DatasetCardData:
    """The dataset card's metadata."""
    return DatasetCardData(
        pretty_name="iNaturalist 2018",
        license="other",
        license_name="inaturalist-2018-terms-of-use",
        license_link="https://github.com/visipedia/inat_comp/tree/master/2018",
        language=["en", "la"],
        task_categories=["image-classification", "zero-shot-image-classification"],
        size_categories=["100K<n<1M"],
        tags=["long-tailed", "fine-grained", "species", "biology"],
    )


def about(sources: Sequence[Path], categories: Path | None) -> str:
    """The dataset card's text."""
    text = files("hf_vlr.datasets_scripts").joinpath("inaturalist2018.md").read_text(encoding="utf-8")
    names = f"the scientific names in `{CATEGORIES}`" if categories else "the annotations' own, which are only numbers"
    return Template(text).substitute(checksums=checksum_table(sources, {}), names=names).rstrip()
