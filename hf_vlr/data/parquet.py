"""Writing a dataset that `datasets.load_dataset(folder)` reads and `push_to_hub` publishes."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, DatasetInfo, Features, Value
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from hf_vlr.data.corpus import TextRow
from hf_vlr.errors import UserError

# Small enough that the Hub's viewer can open a single row group of pictures.
ROWS_PER_GROUP = 100


def free_folder(out: str | Path) -> Path:
    """`out` as a path, or `UserError` if something lies there already: no builder writes over a dataset."""
    path = Path(out).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: exists already; remove it or choose another out folder")
    return path


def text_features(names: list[str]) -> Features:
    """Columns of the config `texts`: sentences of the classes, with where they come from."""
    strings = {column: Value("string") for column in ("class_name", "text", "source", "license")}
    return Features({"label": ClassLabel(names=names), **strings})


def write_dataset(
    splits: dict[str, Iterable[dict[str, Any]]],
    features: Features,
    out: str | Path,
    card: DatasetCardData,
    describe: Any,
    texts: Iterable[TextRow] | None = None,
) -> Path:
    """Stream the rows of each split into `out/data/SPLIT-00000-of-00001.parquet` and write `out/README.md`.

    Rows are dicts by column; an image is `{"bytes": …, "path": …}`. `describe()` is called when all rows are
    written and gives the card's text. `texts` become the config `texts`. The folder appears whole or not at all.
    Returns `out`.
    """
    path = free_folder(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        (partial / "data").mkdir()
        for split, rows in splits.items():
            _write_split(rows, features, partial / "data" / f"{split}-00000-of-00001.parquet")
        if texts is not None:
            write_texts(texts, features["label"].names, partial)
        write_card(partial, card, features, list(splits), describe())
        partial.chmod(0o755)
        if path.exists():
            path.rmdir()
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def write_texts(texts: Iterable[TextRow], names: list[str], folder: Path, plain: Sequence[str] | None = None) -> None:
    """Write the config `texts` below `folder`; names by class index, `plain` where they differ from the unique ones."""
    (folder / "texts").mkdir(exist_ok=True)
    rows = [{**row._asdict(), "class_name": (plain or names)[row.label]} for row in texts]
    table = pa.Table.from_pylist(rows, schema=text_features(names).arrow_schema)
    pq.write_table(table, folder / "texts" / "train-00000-of-00001.parquet")


def write_card(folder: Path, card: DatasetCardData, features: Features, splits: list[str], text: str) -> None:
    """Write `folder/README.md`, from which `load_dataset` learns the configs, their files and their columns."""
    configs = {"default": {"data_files": [{"split": split, "path": f"data/{split}-*"} for split in splits]}}
    infos = {"default": DatasetInfo(features=features)}
    if (folder / "texts").is_dir():
        configs["texts"] = {"data_files": [{"split": "train", "path": "texts/train-*"}]}
        infos["texts"] = DatasetInfo(features=text_features(features["label"].names))
    MetadataConfigs(configs).to_dataset_card_data(card)
    DatasetInfosDict(infos).to_dataset_card_data(card)
    DatasetCard(f"---\n{card.to_yaml()}\n---\n\n{text}").save(folder / "README.md")


def _write_split(rows: Iterable[dict[str, Any]], features: Features, file: Path) -> None:
    # The schema carries the features, so that the file is understood even without the card.
    schema = features.arrow_schema
    with pq.ParquetWriter(file, schema) as writer:
        for group in _groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    iterator = iter(rows)
    while group := list(islice(iterator, ROWS_PER_GROUP)):
        yield group
