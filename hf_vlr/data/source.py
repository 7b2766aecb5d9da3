"""Sources of `(image, text, label)`: what a run trains and tests on, wherever it lies."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np

from hf_vlr.data.images import SelectedImages, identity_of
from hf_vlr.data.shapes_lt import load_shapes
from hf_vlr.data.splits import stratified_folds, stratified_holdout
from hf_vlr.data.stored import Rows, stored_splits
from hf_vlr.data.streaming.splits import STREAM
from hf_vlr.errors import UserError

SPLITS = ("train", "validation", "test", "unseen")


@dataclass(frozen=True)
class ImageSource:
    """N rows `(image, caption, label)` of one split.

    images: `images[i]` is a `PIL.Image` in RGB, decoded when it is asked for.
    labels: int64 `[N]`; 0 … C-1 is a class, -1 an image-text pair that is positive with itself alone.
    captions: the row's own text, None or '' where it has none.
    class_names: C names by class index; they may repeat.
    groups: `[N]` or None; rows with equal values are copies of one picture and never straddle a split.
    parts: int64 `[N]` or None; which of several mixed sources a row is of.
    blocks: int64 `[N]` or None; which rows of a streamed source are fetched together, -1 for a row that is at hand.
    """

    name: str
    split: str
    images: Sequence
    labels: np.ndarray
    captions: list[str | None]
    class_names: list[str]
    groups: np.ndarray | None = field(default=None)
    parts: np.ndarray | None = field(default=None)
    blocks: np.ndarray | None = field(default=None)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def class_counts(self) -> np.ndarray:
        """Rows per class, int64 `[C]`; image-text pairs are not counted."""
        return np.bincount(self.labels[self.labels >= 0], minlength=self.num_classes).astype(np.int64)

    def subset(self, indices: Sequence[int] | np.ndarray, split: str | None = None) -> "ImageSource":
        """The rows at `indices`, in that order; class names stay whole."""
        rows = np.asarray(indices, dtype=np.int64)
        return ImageSource(
            name=self.name,
            split=split or self.split,
            images=SelectedImages(self.images, rows),
            labels=self.labels[rows],
            captions=[self.captions[row] for row in rows],
            class_names=self.class_names,
            groups=None if self.groups is None else self.groups[rows],
            parts=None if self.parts is None else self.parts[rows],
            blocks=None if self.blocks is None else self.blocks[rows],
        )

    def fingerprint(self) -> str:
        """32 hex digits that change with any part of the source (images by the identity of their files)."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.name, self.split, self.class_names, self.captions, identity_of(self.images)):
            digest.update(repr(part).encode())
        digest.update(np.ascontiguousarray(self.labels).tobytes())
        return digest.hexdigest()


def load_source(
    spec: str,
    split: str,
    *,
    seed: int = 0,
    folds: int | None = None,
    fold: int | None = None,
    validation_fraction: float = 0.1,
    options: dict[str, Any] | None = None,
) -> ImageSource:
    """One split of a dataset.

    spec: `imagefolder:DIR`, `ORG/NAME` or `ORG/NAME:CONFIG` on the Hub, a folder of Parquet, or `shapes-lt`. With
    `stream:` before it, images are read only when they are asked for: `stream:DIR` of Parquet, `stream:ORG/NAME`,
    `stream:hf://PATH`, `stream:webdataset:DIR` or `…:GLOB` of tar shards; the source's name goes without the prefix.
    split: "train", "validation" or "test"; for `shapes-lt` also "unseen".
    folds, fold: test on fold number `fold` (0 … folds-1) of everything in the split "train", or of its column
        `fold`; over all folds every row is tested exactly once.
    validation_fraction: where there is no validation split, this share of every class is cut off the training
    rows.
    options: for `shapes-lt` the fields of `ShapesOptions`; otherwise `image`, `label` and `text` name the
    columns; of a streamed source also `cache_dir` and `cache_gib`, where blocks are kept and how much of them.

    Raises `UserError` naming what is wrong with the spec, the split, the folder or the labels.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}{_nearest(split, SPLITS)}; there are: {', '.join(SPLITS)}")
    if spec == "shapes-lt":
        if folds is not None or fold is not None:
            raise UserError("shapes-lt has its own test split; leave data.folds and data.fold out")
        return ImageSource(name=spec, split=split, **load_shapes(split, seed=seed, options=options or {}))
    if split == "unseen":
        raise UserError(f"{spec} has no split 'unseen'; only shapes-lt has one")
    stored = stored_splits(spec, options or {})
    spec = spec.removeprefix(STREAM)
    if folds is not None or fold is not None:
        return _fold_split(spec, stored, split, seed, folds, fold, validation_fraction)
    return _own_split(spec, stored, split, seed, validation_fraction)


def check_source(source: ImageSource) -> None:
    """Raise `UserError` if a training source is empty or has a class without images."""
    if len(source) == 0:
        raise UserError(f"{source.name}: the split {source.split} has no rows")
    missing = [name for name, count in zip(source.class_names, source.class_counts()) if count == 0]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise UserError(f"{source.name}: no {source.split} images for class {shown}; add images or remove the class")


def _own_split(spec: str, stored: dict[str, Rows], split: str, seed: int, validation_fraction: float) -> ImageSource:
    if split == "test" and "test" not in stored:
        raise UserError(f"{spec} has no test split; set data.folds=4 data.fold=0 to test on a fold of train")
    if split == "test" or (split == "validation" and "validation" in stored):
        return _source(spec, split, stored[split])
    whole = _source(spec, split, _train_rows(spec, stored))
    if "validation" in stored:
        return whole
    return _inner_split(whole, np.arange(len(whole)), split, seed, validation_fraction)


def _fold_split(
    spec: str,
    stored: dict[str, Rows],
    split: str,
    seed: int,
    folds: int | None,
    fold: int | None,
    validation_fraction: float,
) -> ImageSource:
    rows = _train_rows(spec, stored)
    fold_of = rows.folds
    if fold_of is None:
        if folds is None:
            raise UserError(f"data.fold={fold} needs data.folds, the number of folds")
        fold_of = stratified_folds(rows.labels, folds, seed, rows.groups)
    elif folds not in (None, len(np.unique(fold_of))):
        raise UserError(f"{spec}: its column 'fold' has {len(np.unique(fold_of))} folds, not data.folds={folds}")
    numbers = np.unique(fold_of).tolist()
    if fold not in numbers:
        raise UserError(f"data.fold={fold}: choose a fold from {numbers[0]} to {numbers[-1]}")
    whole = _source(spec, split, rows)
    if split == "test":
        return whole.subset(np.flatnonzero(fold_of == fold))
    return _inner_split(whole, np.flatnonzero(fold_of != fold), split, seed, validation_fraction)


def _inner_split(
    whole: ImageSource, rows: np.ndarray, split: str, seed: int, validation_fraction: float
) -> ImageSource:
    """The training or the validation part of `rows`."""
    groups = None if whole.groups is None else whole.groups[rows]
    held_out = stratified_holdout(whole.labels[rows], validation_fraction, seed, groups)
    if split == "validation" and not held_out.any():
        raise UserError(f"{whole.name} has no validation split; set data.validation_fraction above 0")
    return whole.subset(rows[held_out if split == "validation" else ~held_out])


def _train_rows(spec: str, stored: dict[str, Rows]) -> Rows:
    if "train" not in stored:
        raise UserError(f"{spec} has no train split; it has: {', '.join(stored)}")
    return stored["train"]


def _source(spec: str, split: str, rows: Rows) -> ImageSource:
    return ImageSource(
        name=spec,
        split=split,
        images=rows.images,
        labels=rows.labels,
        captions=rows.captions,
        class_names=rows.class_names,
        groups=rows.groups,
        blocks=rows.blocks,
    )


def _nearest(word: str, known: Sequence[str]) -> str:
    match = get_close_matches(word, known, n=1)
    return f", did you mean {match[0]!r}" if match else ""
