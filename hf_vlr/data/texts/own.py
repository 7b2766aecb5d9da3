"""The class texts that a dataset brings along: its config `texts`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError

from hf_vlr.data.texts.row import TextRow
from hf_vlr.errors import UserError

CONFIG = "texts"


def own_rows(spec: str) -> Iterator[TextRow]:
    """The rows of the config `texts` of a built folder or a Hub dataset; raises `UserError` where it has none."""
    for row in stored_rows(spec):
        yield TextRow(int(row["label"]), row["text"], row.get("source") or spec, row.get("license") or "")


def has_own_texts(spec: str) -> bool:
    """Whether a built folder or a Hub dataset brings class texts along; other sources have no place for them."""
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return any((folder / CONFIG).glob("*.parquet"))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", spec):
        return False
    return CONFIG in datasets.get_dataset_config_names(spec.partition(":")[0])


def stored_rows(spec: str) -> list[dict[str, Any]]:
    """The config's rows, `label, class_name, text, source, license`."""
    folder = Path(spec).expanduser()
    if folder.is_dir():
        files = sorted((folder / CONFIG).glob("*.parquet"))
        if not files:
            raise UserError(f"{spec} has no class texts of its own (no folder {CONFIG}/); take 'own' out of data.texts")
        return [row for file in files for row in pq.read_table(file).to_pylist()]
    try:
        return datasets.load_dataset(spec.partition(":")[0], CONFIG, split="train").to_list()
    except (DatasetsError, OSError, ValueError) as error:
        raise UserError(f"{spec} has no class texts of its own; take 'own' out of data.texts ({error})") from error
