"""`hf_vlr.load_dataset`: a long-tailed dataset by name, built once from its published files."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from hf_vlr.data.registry import BUILDERS, build_dataset
from hf_vlr.errors import UserError

LIST_SUFFIXES = {".txt", ".json", ".csv", ".gz"}


def load_dataset(
    name: str,
    config: str = "default",
    *,
    data_dir: str | Path | None = None,
    split: str | None = None,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> Dataset | DatasetDict | IterableDataset | IterableDatasetDict:
    """A dataset as `datasets.load_dataset` gives it.

    Args:
        name: a builder's name (`imagenet-lt`) with `data_dir`; else a built folder or a Hub id.
        config: `default` (`image, label, class_name, shot, text, file`) or `texts` (the class texts).
        data_dir: the published files. The dataset is built once into the cache, with images left where they are
            (`images="paths"`) unless `options` say otherwise; another list file or option builds anew.
        split: `train`, `validation`, `test`; None for all.
        streaming: read row by row instead of mapping the files into memory.
        cache_dir: where built datasets are kept; by default beside those of `datasets`.
        options: of the builder.

    Raises `UserError` for an unknown name, option or file.
    """
    if data_dir is None:
        if name in BUILDERS:
            raise UserError(f"{name} needs data_dir=, the folder of its published files (or name a built folder)")
        return datasets.load_dataset(name, config, split=split, streaming=streaming)
    options = {"images": "paths", **options} if name != "openclipart-lt" else options
    cache = Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "hf_vlr")
    folder = cache / f"{name}-{cache_key(name, Path(data_dir), options)}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        build_dataset(name, data_dir, folder, **options)
    return datasets.load_dataset(str(folder), config, split=split, streaming=streaming)


def cache_key(name: str, data_dir: Path, options: dict[str, Any]) -> str:
    """16 hex digits that change with the options, the building code, and the list files the dataset is made of.

    List files are those in `data_dir` and in its folders, and those that options name. Image files are looked at when
    the dataset is built, not here: a benchmark has hundreds of thousands.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(json.dumps([str(data_dir.resolve()), options], sort_keys=True, default=str).encode())
    for package, pattern in (("hf_vlr.datasets_scripts", BUILDERS.get(name, "")), ("hf_vlr.data", "")):
        for file in sorted(files(package).iterdir(), key=lambda file: file.name):
            if file.name.startswith(pattern) and file.name.endswith((".py", ".md")):
                digest.update(file.read_bytes())
    named = [Path(value) for value in options.values() if isinstance(value, str) and Path(value).exists()]
    places = [data_dir, *named]
    found = {path for place in places for path in ([place] if place.is_file() else list_files(place))}
    for path in sorted(found):
        stat = path.stat()
        digest.update(f"{path.name}/{stat.st_size}/{stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def list_files(folder: Path) -> list[Path]:
    """The list files in a folder and in the folders directly below it."""
    found = [*folder.glob("*"), *folder.glob("*/*")]
    return [path for path in found if path.suffix in LIST_SUFFIXES and path.is_file()]
