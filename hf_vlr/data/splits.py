"""Folds of a labelled set, or a validation part of it: stratified, deterministic, groups kept whole."""

from collections.abc import Iterator

import numpy as np

from hf_vlr.errors import UserError
from hf_vlr.randomness import numpy_generator


def stratified_folds(labels: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """The fold `[N]` int64, in `0 … folds-1`, of every row.

    Rows are dealt class by class to the fold that holds the fewest of the class, then the fewest of all; so
    without groups every class, and the whole, is spread to within one row. Ties start at a fold drawn from
    `seed`, or classes smaller than `folds` would all land in the first. Rows with equal `groups` (copies of
    one picture) share a fold.
    """
    if folds < 2 or folds > len(labels):
        raise UserError(f"folds={folds}: choose a number from 2 to the number of rows ({len(labels)})")
    start = int(numpy_generator(seed, 0, 0, "folds").integers(folds))
    classes = labels - labels.min(initial=0)
    per_class = np.zeros((int(classes.max(initial=0)) + 1, folds), dtype=np.int64)
    total = np.zeros(folds, dtype=np.int64)
    turn = (np.arange(folds) - start) % folds
    fold_of = np.empty(len(labels), dtype=np.int64)
    for rows in _units(classes, seed, groups, big_first=True):
        held = per_class[classes[rows[0]]]
        fold = int(np.lexsort((turn, total, held))[0])
        fold_of[rows] = fold
        np.add.at(per_class[:, fold], classes[rows], 1)
        total[fold] += len(rows)
    return fold_of


def stratified_holdout(labels: np.ndarray, fraction: float, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """A mask `[N]`: True for the rows held out, about `fraction` of each class.

    A class of two or more rows gives at least one and keeps at least one; a class of one row gives none.
    Groups move as a whole, and none moves that would leave some class without a row.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"validation_fraction={fraction}: choose a number from 0 to below 1")
    held_out = np.zeros(len(labels), dtype=bool)
    if fraction == 0 or len(labels) == 0:
        return held_out
    classes = labels - labels.min(initial=0)
    kept = np.bincount(classes)
    wanted = np.where(kept >= 2, np.maximum(1, np.floor(kept * fraction + 0.5)), 0).astype(np.int64)
    # in random order: big groups first would fill the held-out part with copies
    for rows in _units(classes, seed, groups, big_first=False):
        taken = np.bincount(classes[rows], minlength=len(kept))
        touched = taken > 0
        fits = (wanted[touched] >= taken[touched]) | (taken[touched] == 1) & (wanted[touched] > 0)
        if fits.all() and (kept[touched] > taken[touched]).all():
            held_out[rows] = True
            kept -= taken
            wanted -= taken
    return held_out


def _units(classes: np.ndarray, seed: int, groups: np.ndarray | None, big_first: bool) -> Iterator[np.ndarray]:
    """The rows of each group (or each single row): class by class, in seeded order, on demand big groups first."""
    order = numpy_generator(seed, 0, 0, "split").permutation(len(classes))
    if groups is None:
        by_class = order[np.argsort(classes[order], kind="stable")]
        yield from by_class[:, None]
        return
    _, code = np.unique(groups, return_inverse=True)
    by_group = order[np.argsort(code[order], kind="stable")]
    units = np.split(by_group, np.cumsum(np.bincount(code))[:-1])
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    yield from sorted(units, key=lambda rows: (classes[rows[0]], -len(rows) * big_first, rank[rows[0]]))
