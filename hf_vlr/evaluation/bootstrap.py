"""Bootstrap confidence intervals over test images, stratified by class.

Shapes: N test images, C classes, S runs (seeds) that were scored on the same images.

Images are drawn with replacement *within* their class, so the test set's class counts, and with them every
class mean, exist in every resample. Two refinements keep small classes honest. A class of n images is
redrawn n - 1 times, because a mean of n draws would understate the variance by (n - 1)/n, a fifth of the
interval at three images a class (the rescaling of Rao and Wu, JASA 1988). Classes with a single image have
no spread of their own and are drawn from one pool, which errs towards the wide side.

Several runs are averaged for each image before images are drawn: the interval says how far the mean of
these very runs depends on the test images. It says nothing about other seeds; report the spread over runs
for that.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_vlr.errors import UserError
from hf_vlr.randomness import numpy_generator

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A percentile interval and the statistic on the images themselves, all fractions, not percentages."""

    low: float
    high: float
    estimate: float


def paired_bootstrap(
    correct_a: npt.ArrayLike,
    correct_b: npt.ArrayLike,
    labels: npt.ArrayLike,
    statistic: str | npt.NDArray[np.bool_] = "accuracy",
    num_resamples: int = 10000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Interval of statistic(a) - statistic(b) when both predictors see the same resampled images.

    `correct_a`, `correct_b`: [N], or [S, N] for several runs (S may differ), true or 1 where the predictor
    is right; `labels` [N] the classes. `statistic` is "accuracy" (share of images), "balanced" (mean of the
    accuracies of the classes that occur in `labels`), or a boolean mask [C]: that mean over a group of
    classes. The estimate is positive where a is better. Raises `UserError` for arrays that do not fit,
    values outside [0, 1], a group without images, fewer than one resample, and a confidence outside (0, 1).
    """
    labels = _checked_labels(labels)
    difference = _mean_correct(correct_a, labels) - _mean_correct(correct_b, labels)
    return _interval(difference, labels, statistic, num_resamples, seed, confidence)


def bootstrap_intervals(
    correct: npt.ArrayLike,
    labels: npt.ArrayLike,
    groups: Mapping[str, npt.NDArray[np.bool_]],
    averaging: str = "class",
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """The intervals of one predictor as `metrics.json` holds them, [low, high] each, fractions.

    `groups` maps names to masks [C]; `averaging` is how a group's accuracy is averaged, over "class" or "image". Keys:
    `confidence`, `resamples`, `accuracy`, `balanced_accuracy`, `groups` (None for a group without test images). Other
    arguments and errors as in `paired_bootstrap`.
    """
    labels = _checked_labels(labels)
    values = _mean_correct(correct, labels)

    def interval(rows: npt.NDArray[np.bool_], statistic: str) -> list[float] | None:
        if not rows.any():
            return None
        found = _interval(values[rows], labels[rows], statistic, num_resamples, seed, confidence)
        return [found.low, found.high]

    every = np.ones(labels.size, dtype=bool)
    statistic = "balanced" if averaging == "class" else "accuracy"
    return {
        "confidence": confidence,
        "resamples": num_resamples,
        "accuracy": interval(every, "accuracy"),
        "balanced_accuracy": interval(every, "balanced"),
        "groups": {name: interval(members[labels], statistic) for name, members in groups.items()},
    }


def resample(values: Floats, strata: Ints, weights: Floats, num_resamples: int, seed: int) -> Floats:
    """The statistic sum_s W_s mean(values drawn from stratum s) in each resample, float64 [num_resamples].

    `values`, `strata`, `weights` are [N]; W_s is the sum of the weights in stratum s, n_s images, of which
    max(n_s - 1, 1) are drawn. Outcomes take few values (right or wrong for both, one, the other, neither),
    so the number of times that each value is drawn comes from one multinomial. Strata that hold the same values
    the same number of times, and weigh the same, draw together, as the sum of their multinomials is one multinomial:
    with n images in each class there are at most n + 1 kinds of classes for one predictor, however many classes.
    """
    generator = numpy_generator(seed, 0, 0, "bootstrap")
    totals = np.zeros(num_resamples)
    for distinct, counts, weight, alike in _kinds(values, strata, weights):
        images = counts.sum()
        draws = max(images - 1, 1)
        times = generator.multinomial(alike * draws, counts / images, size=num_resamples)
        totals += times @ (weight * distinct / draws)
    return totals


def resample_reference(values: Floats, strata: Ints, weights: Floats, num_resamples: int, seed: int) -> Floats:
    """The same distribution (not the same draws) by drawing images one by one."""
    generator = numpy_generator(seed, 0, 1, "bootstrap")
    totals = np.zeros(num_resamples)
    for members in _strata_members(strata):
        drawn = generator.choice(members, size=(num_resamples, max(len(members) - 1, 1)), replace=True)
        totals += weights[members].sum() * values[drawn].mean(axis=1)
    return totals


def _interval(
    values: Floats,
    labels: Ints,
    statistic: str | npt.NDArray[np.bool_],
    num_resamples: int,
    seed: int,
    confidence: float,
) -> Interval:
    if num_resamples < 1:
        raise UserError(f"num_resamples is {num_resamples}: draw at least one, 10000 for a table")
    if not 0 < confidence < 1:
        raise UserError(f"confidence is {confidence}: give a fraction between 0 and 1, as in 0.95")
    kept = np.flatnonzero(_in_group(labels, statistic))
    if kept.size == 0:
        raise UserError("no test image belongs to the group: there is nothing to resample")
    values, labels = values[kept], labels[kept]
    images = np.bincount(labels)
    if isinstance(statistic, str) and statistic == "accuracy":
        weights = np.full(kept.size, 1 / kept.size)
    else:
        weights = 1 / (images[labels] * (images > 0).sum())
    strata = np.where(images[labels] == 1, -1, labels)
    totals = resample(values, strata, weights, num_resamples, seed)
    low, high = np.quantile(totals, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), float(weights @ values))


def _kinds(values: Floats, strata: Ints, weights: Floats) -> Iterator[tuple[Floats, Ints, float, int]]:
    """Strata by what they hold: distinct values, images of each, a stratum's weight, and how many are alike."""
    order = np.lexsort((values, strata))
    value, stratum = values[order], strata[order]
    starts = np.flatnonzero(np.r_[True, (np.diff(stratum) != 0) | (np.diff(value) != 0)])
    counts, value, stratum = np.diff(np.r_[starts, value.size]), value[starts], stratum[starts]
    firsts = np.flatnonzero(np.r_[True, np.diff(stratum) != 0])
    total = np.add.reduceat(weights[order], starts[firsts])
    kinds: dict[tuple[bytes, bytes, float], list[slice]] = {}
    for first, last, weight in zip(firsts, np.r_[firsts[1:], len(starts)], total):
        own = slice(first, last)
        kinds.setdefault((value[own].tobytes(), counts[own].tobytes(), float(weight)), []).append(own)
    for (_, _, weight), alike in kinds.items():
        yield value[alike[0]], counts[alike[0]], weight, len(alike)


def _strata_members(strata: Ints) -> Iterator[Ints]:
    """The positions of each stratum's images, by rising stratum."""
    order = np.argsort(strata, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(strata[order])) + 1)


def _in_group(labels: Ints, statistic: str | npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    if isinstance(statistic, str):
        if statistic not in ("accuracy", "balanced"):
            raise UserError(f"unknown statistic '{statistic}': use accuracy, balanced or a mask of classes")
        return np.ones(labels.size, dtype=bool)
    mask = np.asarray(statistic)
    if mask.dtype != np.bool_ or mask.ndim != 1 or labels.max(initial=-1) >= mask.size:
        raise UserError(f"the group mask is {mask.dtype} {mask.shape}: give one boolean for each class")
    return mask[labels]


def _mean_correct(correct: npt.ArrayLike, labels: Ints) -> Floats:
    """Correctness of each image, averaged over runs: [N] in [0, 1]."""
    runs = np.atleast_2d(np.asarray(correct, dtype=np.float64))
    if runs.ndim != 2 or runs.shape[1] != labels.size:
        raise UserError(f"correct has shape {np.shape(correct)} for {labels.size} labels: score the same images")
    if not ((runs >= 0) & (runs <= 1)).all():
        raise UserError("correct must hold true or false for each image, or 1 or 0")
    return runs.mean(axis=0)


def _checked_labels(labels: npt.ArrayLike) -> Ints:
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"labels must be one integer for each test image, got {labels.dtype} {labels.shape}")
    if labels.min() < 0:
        raise UserError(f"label {labels.min()} is negative: only images of a class can be tested")
    return labels.astype(np.int64)
