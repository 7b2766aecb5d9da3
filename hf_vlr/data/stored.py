"""Datasets that lie in files: image folders, Parquet folders and Hub repositories, read by `datasets`."""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset, load_dataset_builder

from hf_vlr.data.columns import Rows, class_names, described_rows
from hf_vlr.data.images import DatasetImages
from hf_vlr.data.places import HUB_NAME, IMAGE_SUFFIXES, SPLIT_NAMES, existing_folder, loaded
from hf_vlr.data.streaming.splits import STREAM, streamed_splits
from hf_vlr.errors import UserError

FORMS = ("imagefolder:DIR", "ORG/NAME", "ORG/NAME:CONFIG", "a folder of Parquet files", "stream:SPEC", "shapes-lt")


def stored_splits(spec: str, options: dict[str, Any]) -> dict[str, Rows]:
    """Every split of the dataset `spec`, by its normal name (train, validation, test)."""
    if spec.startswith(STREAM):
        return streamed_splits(spec.removeprefix(STREAM), options)
    unknown = set(options) - {"image", "label", "text"}
    if unknown:
        raise UserError(
            f"unknown data option {sorted(unknown)[0]!r}; there are: image, label, text "
            "(data.options={} drops those of a recipe)"
        )
    dataset, empty = _open(spec)
    names = class_names(spec, dataset[next(iter(dataset))].features, dataset, options) + empty
    splits = {}
    for key, rows in dataset.items():
        splits[SPLIT_NAMES.get(key, key)] = _rows(f"{spec} {key}", rows, names, options)
    return splits


def _open(spec: str) -> tuple[DatasetDict, list[str]]:
    """The dataset, and the class folders without an image, which `datasets` passes over in silence."""
    kind, _, rest = spec.partition(":")
    if kind == "imagefolder":
        folder = existing_folder(rest)
        if not any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*")):
            raise UserError(f"{folder}: no images in this folder; put them into one sub-folder per class")
        dataset = loaded(load_dataset, spec, "imagefolder", data_dir=str(folder))
        if not any("label" in rows.features for rows in dataset.values()):
            dataset = _labelled_by_folder(folder, dataset)
        return dataset, _empty_classes(folder, dataset)
    if Path(spec).expanduser().is_dir():
        folder = Path(spec).expanduser()
        if not any(folder.rglob("*.parquet")):
            raise UserError(f"{folder}: no Parquet files here; for a folder of images write imagefolder:{spec}")
        return _parquet(spec, folder), []
    if spec.startswith((".", "/", "~")):
        existing_folder(spec)
    if not re.fullmatch(HUB_NAME, spec):
        match = get_close_matches(kind, ("imagefolder", "shapes-lt", "stream"), n=1)
        hint = f"did you mean {match[0]!r}? " if match else ""
        if kind in ("hf", "webdataset"):
            hint = f"did you mean {STREAM}{spec}? "
        raise UserError(f"data.source={spec} is not understood; {hint}It takes: {', '.join(FORMS)}")
    return loaded(load_dataset, spec, kind, *([rest] if rest else [])), []


def _parquet(spec: str, folder: Path) -> DatasetDict:
    """The folder's splits as its card and file names say, read so that a rebuilt folder is read anew.

    `load_dataset(folder)` takes an older dataset of the same path from its cache; named files are told apart
    by their times.
    """
    builder = loaded(load_dataset_builder, spec, str(folder))
    files = {str(split): list(paths) for split, paths in builder.config.data_files.items()}
    first = next(iter(files.values()))[0]
    described = b"huggingface" in (pq.read_schema(first).metadata or {})
    features = None if described else builder.info.features
    return loaded(load_dataset, spec, "parquet", data_files=files, features=features)


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


def _image_column(spec: str, features: Features, options: dict[str, Any]) -> str:
    found = [name for name, kind in features.items() if isinstance(kind, Image)]
    wanted = options.get("image", found[0] if found else None)
    if wanted not in found:
        raise UserError(f"{spec}: no image column {wanted or ''}; the columns are {', '.join(features)}")
    return wanted


def _rows(where: str, dataset: Dataset, names: list[str], options: dict[str, Any]) -> Rows:
    image = _image_column(where, dataset.features, options)
    raw = dataset.cast_column(image, Image(decode=False)).select_columns([image])
    images = DatasetImages(raw, image, np.arange(len(dataset)), where)
    return described_rows(where, dataset, images, names, options)
