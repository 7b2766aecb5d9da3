"""From the columns of a dataset to labels, captions and class names, whatever the images come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value

from hf_vlr.errors import UserError

TEXT_COLUMNS = ("text", "caption", "captions")
# Read beside label and text where a dataset has them: copies of one picture, and the fold a row is tested in.
GROUP, FOLD = "group", "fold"
# Larger numbers are identifiers, and each class would need a name.
MAX_CLASSES = 10_000_000


@dataclass(frozen=True)
class Rows:
    """All rows of one stored split; `groups` and `folds` are None where the dataset has no such column.

    blocks: int64 `[N]`, which rows are fetched together; None where every row is as near as any other.
    """

    images: Sequence
    labels: np.ndarray
    captions: list[str | None]
    class_names: list[str]
    groups: np.ndarray | None
    folds: np.ndarray | None
    blocks: np.ndarray | None = None


def label_column(features: Features, options: dict[str, Any]) -> str | None:
    """The column of labels: the one that the options name, `label`, or the first of class labels."""
    if "label" in options:
        if options["label"] not in features:
            raise UserError(f"no column {options['label']!r} for the label; there are: {', '.join(features)}")
        return options["label"]
    if "label" in features:
        return "label"
    return next((name for name, kind in features.items() if isinstance(kind, ClassLabel)), None)


def text_column(features: Features, options: dict[str, Any]) -> str | None:
    """The column of captions: the one that the options name, or the first that is called like one."""
    if "text" in options:
        if options["text"] not in features:
            raise UserError(f"no column {options['text']!r} for the text; there are: {', '.join(features)}")
        return options["text"]
    return next((name for name in TEXT_COLUMNS if name in features), None)


def class_names(
    spec: str, features: Features, splits: dict[str, Dataset], options: dict[str, Any], names: Sequence[str] = ()
) -> list[str]:
    """The names by class index; classes that are only numbered or spelled are collected over all splits.

    names: what numbered classes are called, where somebody knows.
    """
    column = label_column(features, options)
    if column is None:
        if text_column(features, options) is None:
            raise UserError(
                f"{spec}: neither a label nor a text column; the columns are {', '.join(features)}, "
                "name one with data.options.label=COLUMN"
            )
        return []
    kind = features[column]
    if isinstance(kind, ClassLabel):
        return list(kind.names)
    values = {value for split in splits.values() for value in split.unique(column)}
    if is_text(kind):
        return sorted(value for value in values if value is not None)
    if isinstance(kind, Value) and "int" in kind.dtype:
        count = max((value for value in values if value is not None), default=-1) + 1
        if count > MAX_CLASSES:
            raise UserError(f"{spec}: the label {count - 1} in {column!r} is no class number; name another column")
        return list(names) or [str(index) for index in range(count)]
    raise UserError(f"{spec}: the label column {column!r} holds {kind}; it must hold class numbers or names")


def described_rows(
    where: str,
    dataset: Dataset,
    images: Sequence,
    names: list[str],
    options: dict[str, Any],
    blocks: np.ndarray | None = None,
) -> Rows:
    """The rows of a split: its images with what the columns of `dataset` say about them."""
    columns = dataset.features
    label, text = label_column(columns, options), text_column(columns, options)
    captions = _values(dataset, text) if text else [None] * len(dataset)
    return Rows(
        images=images,
        labels=_labels(where, dataset, label, names),
        captions=[_caption(caption) for caption in captions],
        class_names=names,
        groups=np.asarray(_values(dataset, GROUP)) if GROUP in columns else None,
        folds=np.asarray(_values(dataset, FOLD), dtype=np.int64) if FOLD in columns else None,
        blocks=blocks,
    )


def is_text(kind: Any) -> bool:
    """Whether a column holds strings."""
    return isinstance(kind, Value) and kind.dtype in ("string", "large_string")


def _values(dataset: Dataset, column: str) -> list[Any]:
    """A whole column at once, several hundred times as fast as value by value."""
    return dataset.select_columns([column])[:][column]


def _caption(value: str | list[str] | None) -> str | None:
    """A caption on one line, spelled as a corpus spells it; the first where a row has several."""
    if isinstance(value, list):
        value = value[0] if value else None
    return None if value is None else " ".join(value.split())


def _labels(where: str, dataset: Dataset, column: str | None, names: list[str]) -> np.ndarray:
    if column is None:
        return np.full(len(dataset), -1, dtype=np.int64)
    values = _values(dataset, column)
    if is_text(dataset.features[column]):
        number = {name: index for index, name in enumerate(names)}
        unknown = next((value for value in values if value is not None and value not in number), None)
        if unknown is not None:
            raise UserError(
                f"{where}: label {unknown!r} is none of the first split's kind; use names or numbers in all"
            )
        values = [None if value is None else number[value] for value in values]
    labels = np.array([-1 if value is None else value for value in values], dtype=np.int64)
    wrong = np.flatnonzero((labels < -1) | (labels >= len(names)))
    if len(wrong):
        raise UserError(f"{where} row {wrong[0]}: label {labels[wrong[0]]} is outside -1 … {len(names) - 1}; mend it")
    return labels
