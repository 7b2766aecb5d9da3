"""`stream:SPEC`: the splits of a dataset whose images are read only when they are asked for."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, Image, load_dataset_builder
from datasets.table import InMemoryTable

from hf_vlr.data.columns import FOLD, GROUP, Rows, class_names, described_rows, label_column, text_column
from hf_vlr.data.places import HUB_NAME, SPLIT_NAMES, existing_folder, loaded
from hf_vlr.data.streaming.files import ShardFile
from hf_vlr.data.streaming.images import Shards, StreamedImages, require_room
from hf_vlr.data.streaming.listing import HUB, WILD, find_shards, fixed_part, named_shards, read_text
from hf_vlr.data.streaming.parquet import ParquetShards, features_of, read_columns, read_footers
from hf_vlr.data.streaming.store import FileStore, cache_bytes, cache_folder
from hf_vlr.data.streaming.tar import TarShards, tar_columns
from hf_vlr.data.streaming.tar_index import read_indexes
from hf_vlr.errors import UserError

STREAM = "stream:"
TAR = "webdataset:"
FORMS = ("a folder of Parquet files", "ORG/NAME", "ORG/NAME:CONFIG", "hf://PATH", "webdataset:DIR", "webdataset:GLOB")
OPTIONS = ("cache_dir", "cache_gib", "image", "label", "text")
# A file beside tar shards, whose numbered classes have no names: one a line.
NAMES_FILE = "classnames.txt"

# By split: its columns of labels and texts, and its images.
Made = dict[str, tuple[Dataset, Shards]]


def streamed_splits(spec: str, options: dict[str, Any]) -> dict[str, Rows]:
    """Every split of the dataset `spec`, by its normal name, with the block of each row.

    spec: what follows `stream:`, one of `FORMS`. options: `image`, `label`, `text` name columns (of tar shards: what
    follows the key, or a field of `.json`); `cache_dir` and `cache_gib` say where blocks are kept and how much of them.

    Reads labels and texts, and no image. Raises `UserError`.
    """
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise UserError(f"unknown data option {unknown[0]!r} of a streamed source; there are: {', '.join(OPTIONS)}")
    folder, budget = cache_folder(options), cache_bytes(options)
    indexes, blocks = FileStore(folder / "index"), FileStore(folder / "blocks", budget)
    files, described = _files(spec)
    mixed = {Path(shard.name).suffix for shards in files.values() for shard in shards}
    if mixed == {".tar"}:
        made = _tar_splits(spec, files, options, indexes, blocks)
    elif mixed == {".parquet"}:
        made = _parquet_splits(spec, files, described, options, indexes, blocks)
    else:
        found = " and ".join(sorted(mixed)) or "no"
        raise UserError(f"{spec}: has {found} files; those of a streamed source are all .parquet or all .tar")
    for name, (_, shards) in made.items():
        require_room(f"{spec} {name}", shards.sizes, budget)
    columns = {name: dataset for name, (dataset, _) in made.items()}
    # the columns of tar shards are called as usual, whatever they were made of
    chosen, listed = ({}, _listed_names(spec, files)) if mixed == {".tar"} else (options, ())
    names = class_names(spec, next(iter(columns.values())).features, columns, chosen, listed)
    return {
        name: described_rows(f"{spec} {name}", dataset, StreamedImages(shards), names, chosen, shards.blocks)
        for name, (dataset, shards) in made.items()
    }


def _files(spec: str) -> tuple[dict[str, list[ShardFile]], Features | None]:
    """The shards by split, and what the dataset's card says of their columns."""
    if spec.startswith(TAR):
        return find_shards(spec.removeprefix(TAR), (".tar",)), None
    if spec.startswith(HUB):
        return find_shards(spec), None
    place = Path(spec).expanduser()
    if place.is_dir() and not any(place.rglob("*.parquet")):
        raise UserError(f"{spec}: no Parquet files here; for tar shards write stream:webdataset:{spec}")
    if not place.is_dir() and spec.startswith((".", "/", "~")):
        existing_folder(spec)
    if not place.is_dir() and not re.fullmatch(HUB_NAME, spec):
        raise UserError(f"stream:{spec} is not understood; stream: takes: {', '.join(FORMS)}")
    name, _, config = (str(place), "", "") if place.is_dir() else spec.partition(":")
    builder = loaded(load_dataset_builder, spec, name, *([config] if config else []))
    splits = {str(split): named_shards(paths) for split, paths in (builder.config.data_files or {}).items()}
    return {SPLIT_NAMES.get(split, split): files for split, files in splits.items()}, builder.info.features


def _parquet_splits(
    spec: str,
    files: dict[str, list[ShardFile]],
    described: Features | None,
    options: dict[str, Any],
    indexes: FileStore,
    blocks: FileStore,
) -> Made:
    footers = {split: read_footers(shards, indexes) for split, shards in files.items()}
    features = features_of(next(iter(footers.values()))[0].schema.to_arrow_schema(), described)
    image = _image_column(spec, features, options)
    known = {label_column(features, options), text_column(features, options), GROUP, FOLD}
    columns = [name for name in features if name in known and name != image]
    if not {*columns} - {GROUP, FOLD}:
        class_names(spec, features, {}, options)
    made = {}
    for split, shards in files.items():
        table = read_columns(shards, footers[split], columns, indexes)
        images = ParquetShards(shards, footers[split], image, blocks, f"{spec} {split}")
        made[split] = (_dataset(table, Features({name: features[name] for name in columns})), images)
    return made


def _tar_splits(
    spec: str, files: dict[str, list[ShardFile]], options: dict[str, Any], indexes: FileStore, blocks: FileStore
) -> Made:
    made = {}
    for split, shards in files.items():
        found = read_indexes(shards, indexes)
        images = TarShards(shards, found, options.get("image"), blocks)
        made[split] = (tar_columns(shards, found, options), images)
    return made


def _listed_names(spec: str, files: dict[str, list[ShardFile]]) -> list[str]:
    """The names of numbered classes, from the file beside the shards or above them, where there is one."""
    place = spec.removeprefix(TAR)
    first = next(iter(files.values()))[0].name
    folders = dict.fromkeys([fixed_part(place) if WILD.search(place) else place, first.rpartition("/")[0]])
    texts = (read_text(folder, NAMES_FILE) for folder in folders)
    text = next((text for text in texts if text is not None), "")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _image_column(spec: str, features: Features, options: dict[str, Any]) -> str:
    found = [name for name, kind in features.items() if isinstance(kind, Image)]
    wanted = options.get("image", found[0] if found else None)
    binary = getattr(features.get(wanted), "dtype", None) in ("binary", "large_binary")
    if wanted not in found and not binary:
        raise UserError(f"{spec}: no image column {wanted or ''}; the columns are {', '.join(features)}")
    return wanted


def _dataset(table: pa.Table, features: Features) -> Dataset:
    """Columns in memory as a dataset of the given types."""
    cast = table.select(list(features)).cast(features.arrow_schema)
    return Dataset(InMemoryTable(cast), info=DatasetInfo(features=features))
