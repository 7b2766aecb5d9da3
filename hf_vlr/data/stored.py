"""Datasets that lie in files: image folders, Parquet folders and Hub repositories, read by `datasets`."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetsError

from hf_vlr.data.images import DatasetImages
from hf_vlr.errors import UserError

T = TypeVar("T")

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"}
SPLIT_NAMES = {
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "eval": "test",
}
TEXT_COLUMNS = ("text", "caption", "captions")
FORMS = ("imagefolder:DIR", "ORG/NAME", "ORG/NAME:CONFIG", "a folder of Parquet files", "shapes-lt")


@dataclass(frozen=True)
class Rows:
    """All rows of one stored split; `groups` and `folds` are None where the dataset has no such column."""

    images: DatasetImages
    labels: np.ndarray
    captions: list[str | None]
    class_names: list[str]
    groups: np.ndarray | None
    folds: np.ndarray | None


def stored_splits(spec: str, options: dict[str, Any]) -> dict[str, Rows]:
    """Every split of the dataset `spec`, by its normal name (train, validation, test)."""
    unknown = set(options) - {"image", "label", "text"}
    if unknown:
        raise UserError(
            f"unknown data option {sorted(unknown)[0]!r}; there are: image, label, text "
            "(data.options={} drops those of a recipe)"
        )
    dataset, empty = _open(spec)
    names = _class_names(spec, dataset, options) + empty
    splits = {}
    for key, rows in dataset.items():
        splits[SPLIT_NAMES.get(key, key)] = _rows(f"{spec} {key}", rows, names, options)
    return splits


def _open(spec: str) -> tuple[DatasetDict, list[str]]:
    """The dataset, and the class folders without an image, which `datasets` passes over in silence."""
    kind, _, rest = spec.partition(":")
    if kind == "imagefolder":
        folder = _existing(rest)
        if not any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*")):
            raise UserError(f"{folder}: no images in this folder; put them into one sub-folder per class")
        dataset = _load(load_dataset, spec, "imagefolder", data_dir=str(folder))
        if not any("label" in rows.features for rows in dataset.values()):
            dataset = _labelled_by_folder(folder, dataset)
        return dataset, _empty_classes(folder, dataset)
    if Path(spec).expanduser().is_dir():
        folder = Path(spec).expanduser()
        if not any(folder.rglob("*.parquet")):
            raise UserError(f"{folder}: no Parquet files here; for a folder of images write imagefolder:{spec}")
        return _parquet(spec, folder), []
    if spec.startswith((".", "/", "~")):
        _existing(spec)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", spec):
        match = get_close_matches(kind, ("imagefolder", "shapes-lt"), n=1)
        hint = f"did you mean {match[0]!r}? " if match else ""
        raise UserError(f"data.source={spec} is not understood; {hint}It takes: {', '.join(FORMS)}")
    return _load(load_dataset, spec, kind, *([rest] if rest else [])), []


def _parquet(spec: str, folder: Path) -> DatasetDict:
    """The folder's splits as its card and file names say, read so that a rebuilt folder is read anew.

    `load_dataset(folder)` takes an older dataset of the same path from its cache; named files are told apart
    by their times.
    """
    builder = _load(load_dataset_builder, spec, str(folder))
    files = {str(split): list(paths) for split, paths in builder.config.data_files.items()}
    first = next(iter(files.values()))[0]
    described = b"huggingface" in (pq.read_schema(first).metadata or {})
    features = None if described else builder.info.features
    return _load(load_dataset, spec, "parquet", data_files=files, features=features)


def _existing(folder: str) -> Path:
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"{folder or 'imagefolder:'}: there is no such folder; check the path in data.source")
    return path


def _load(function: Callable[..., T], spec: str, *args: str, **kwargs: Any) -> T:
    try:
        return function(*args, **kwargs)
    except (DatasetsError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{spec}: the dataset could not be loaded ({reason}); check its name and files") from error


def _split_folders(folder: Path) -> list[Path]:
    """The folders `train`, `test`, … in an image folder, or the folder itself where there are none."""
    splits = {"train", "test", "validation", *SPLIT_NAMES}
    return [path for path in folder.iterdir() if path.is_dir() and path.name.lower() in splits] or [folder]


def _labelled_by_folder(folder: Path, dataset: DatasetDict) -> DatasetDict:
    """The dataset with labels from its sub-folders, which `datasets` leaves out where a metadata file has
    captions.

    It stays without labels where the images lie in no sub-folder.
    """
    parents = {
        split: [Path(image["path"]).parent for image in rows.cast_column("image", Image(decode=False))["image"]]
        for split, rows in dataset.items()
    }
    found = {path for paths in parents.values() for path in paths}
    if found <= {path.resolve() for path in _split_folders(folder)} | {*_split_folders(folder)}:
        return dataset
    names = sorted({path.name for path in found})
    number = {name: index for index, name in enumerate(names)}
    return DatasetDict(
        {
            split: rows.add_column(
                "label", [number[path.name] for path in parents[split]], feature=ClassLabel(names=names)
            )
            for split, rows in dataset.items()
        }
    )


def _empty_classes(folder: Path, dataset: DatasetDict) -> list[str]:
    """Class folders without an image. Their labels go last, so that no given label moves."""
    label = dataset[next(iter(dataset))].features.get("label")
    known = set(label.names) if isinstance(label, ClassLabel) else set()
    found = {path.name for root in _split_folders(folder) for path in root.iterdir() if path.is_dir()}
    return sorted(name for name in found - known if known and not name.startswith("."))


def _label_column(dataset: Dataset, options: dict[str, Any]) -> str | None:
    columns = dataset.features
    if "label" in options:
        if options["label"] not in columns:
            raise UserError(f"no column {options['label']!r} for the label; there are: {', '.join(columns)}")
        return options["label"]
    if "label" in columns:
        return "label"
    return next((name for name, kind in columns.items() if isinstance(kind, ClassLabel)), None)


def _text_column(dataset: Dataset, options: dict[str, Any]) -> str | None:
    if "text" in options:
        if options["text"] not in dataset.features:
            raise UserError(f"no column {options['text']!r} for the text; there are: {', '.join(dataset.features)}")
        return options["text"]
    return next((name for name in TEXT_COLUMNS if name in dataset.features), None)


def _image_column(spec: str, dataset: Dataset, options: dict[str, Any]) -> str:
    found = [name for name, kind in dataset.features.items() if isinstance(kind, Image)]
    wanted = options.get("image", found[0] if found else None)
    if wanted not in found:
        raise UserError(f"{spec}: no image column {wanted or ''}; the columns are {', '.join(dataset.features)}")
    return wanted


def _class_names(spec: str, dataset: DatasetDict, options: dict[str, Any]) -> list[str]:
    """The names by class index; classes that are only numbered or spelled are collected over all splits."""
    first = dataset[next(iter(dataset))]
    column = _label_column(first, options)
    if column is None:
        if _text_column(first, options) is None:
            raise UserError(
                f"{spec}: neither a label nor a text column; the columns are {', '.join(first.features)}, "
                "name one with data.options.label=COLUMN"
            )
        return []
    kind = first.features[column]
    if isinstance(kind, ClassLabel):
        return list(kind.names)
    values = {value for split in dataset.values() for value in split.unique(column)}
    if isinstance(kind, Value) and kind.dtype == "string":
        return sorted(value for value in values if value is not None)
    if isinstance(kind, Value) and "int" in kind.dtype:
        return [str(index) for index in range(max((value for value in values if value is not None), default=-1) + 1)]
    raise UserError(f"{spec}: the label column {column!r} holds {kind}; it must hold class numbers or names")


def _rows(where: str, dataset: Dataset, names: list[str], options: dict[str, Any]) -> Rows:
    image = _image_column(where, dataset, options)
    label, text = _label_column(dataset, options), _text_column(dataset, options)
    captions = list(dataset[text]) if text else [None] * len(dataset)
    raw = dataset.cast_column(image, Image(decode=False)).select_columns([image])
    columns = dataset.features
    return Rows(
        images=DatasetImages(raw, image, np.arange(len(dataset)), where),
        labels=_labels(where, dataset, label, names),
        captions=[_caption(caption) for caption in captions],
        class_names=names,
        groups=np.asarray(dataset["group"]) if "group" in columns else None,
        folds=np.asarray(dataset["fold"], dtype=np.int64) if "fold" in columns else None,
    )


def _caption(value: str | list[str] | None) -> str | None:
    """A caption on one line, spelled as a corpus spells it; the first where a row has several."""
    if isinstance(value, list):
        value = value[0] if value else None
    return None if value is None else " ".join(value.split())


def _labels(where: str, dataset: Dataset, column: str | None, names: list[str]) -> np.ndarray:
    if column is None:
        return np.full(len(dataset), -1, dtype=np.int64)
    values = list(dataset[column])
    if isinstance(dataset.features[column], Value) and dataset.features[column].dtype == "string":
        number = {name: index for index, name in enumerate(names)}
        values = [None if value is None else number[value] for value in values]
    labels = np.array([-1 if value is None else value for value in values], dtype=np.int64)
    wrong = np.flatnonzero((labels < -1) | (labels >= len(names)))
    if len(wrong):
        raise UserError(f"{where} row {wrong[0]}: label {labels[wrong[0]]} is outside -1 … {len(names) - 1}; mend it")
    return labels
