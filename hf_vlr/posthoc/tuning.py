"""One parameter of a method chosen on labelled images that are not the ones reported.

A search takes whatever images it is given: that they are others is checked where predictions carry their identities
(`hf_vlr.evaluation.adjustment`), and the result says what they were.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_vlr.errors import UserError
from hf_vlr.posthoc.scores import Floats, Ints, balanced_weights, checked_labels, row_chunks

# name: (each class counts the same, likelihood rather than right or wrong)
CRITERIA = {
    "balanced-nll": (True, True),
    "nll": (False, True),
    "balanced-accuracy": (True, False),
    "accuracy": (False, False),
}

UNLIMITED = (-math.inf, math.inf)
# a probability of 0 must not make a whole grid infinite
_SMALLEST = 1e-300


@dataclass(frozen=True)
class Tuned:
    """A chosen value, and all that a reader needs to judge the choice.

    scores: the criterion at each value of the grid, lower is better for a likelihood. split: what the images are
    called; images: how many.
    """

    parameter: str
    value: float
    criterion: str
    grid: tuple[float, ...]
    scores: tuple[float, ...]
    split: str
    images: int
    limits: tuple[float, float] = UNLIMITED

    @property
    def warning(self) -> str | None:
        """A line where the best value is the first or the last that was tried, else None."""
        edge = {min(self.grid): "lowest", max(self.grid): "highest"}.get(self.value)
        if edge is None or len(self.grid) < 2:
            return None
        found = f"{self.parameter}={self.value:g} is the {edge} value tried on {self.split}"
        return f"{found}, and the end of its range" if self.value in self.limits else f"{found}: try further ones"

    def as_dict(self) -> dict[str, Any]:
        """For a file: the choice, with the grid's ends and size in place of all its values."""
        return {
            "parameter": self.parameter,
            "value": self.value,
            "criterion": self.criterion,
            "score": self.scores[self.grid.index(self.value)],
            "grid": {"low": min(self.grid), "high": max(self.grid), "values": len(self.grid)},
            "split": self.split,
            "images": self.images,
            "at_edge": self.warning is not None,
        }


def search(
    parameter: str,
    grid: Sequence[float],
    candidates: Callable[[slice], Callable[[float], Floats]],
    labels: npt.ArrayLike,
    num_classes: int,
    *,
    split: str,
    criterion: str = "balanced-nll",
    neutral: float = 0.0,
    limits: tuple[float, float] = UNLIMITED,
    probabilities: bool = False,
) -> Tuned:
    """The value of `grid` with the best criterion; of several the nearest to `neutral`, which changes least.

    `candidates(rows)` gives the function from a value to the scores [n, C] of those rows as the modules of this
    package make it: logits, normalised or not, or `probabilities`. `labels` int [N]. Criteria: "balanced-nll" (mean
    over the classes of the mean −log p of their images; a likelihood because a handful of images per rare class makes
    accuracy a step function), "nll", "balanced-accuracy", "accuracy". `limits`: what the parameter may be at all.
    Raises `UserError` for an unknown criterion, an empty or not finite grid, and no images.
    """
    grid = _checked_grid(parameter, grid)
    labels = checked_labels(labels, (np.size(labels), num_classes))
    weights = image_weights(labels, criterion)
    totals = np.zeros(len(grid))
    for rows in row_chunks(len(labels), num_classes):
        at = candidates(rows)
        totals += [weights[rows] @ losses(at(value), labels[rows], criterion, probabilities) for value in grid]
    images = len(labels)
    return choose(parameter, grid, totals, criterion, neutral=neutral, limits=limits, split=split, images=images)


def choose(
    parameter: str,
    grid: Sequence[float],
    totals: npt.ArrayLike,
    criterion: str,
    *,
    neutral: float,
    split: str,
    images: int,
    limits: tuple[float, float] = UNLIMITED,
) -> Tuned:
    """The result of a search from the mean losses at each value of the grid (NLL, or the share that is wrong)."""
    totals = np.asarray(totals, dtype=np.float64)
    # equal but for the order of summation
    best = [value for value, total in zip(grid, totals) if total <= totals.min() + 1e-12]
    value = min(best, key=lambda one: (abs(one - neutral), one))
    scores = totals if CRITERIA[criterion][1] else 1.0 - totals
    return Tuned(parameter, float(value), criterion, tuple(grid), tuple(scores.tolist()), split, images, limits)


def mean_loss(scores: npt.ArrayLike, labels: Ints, criterion: str) -> float:
    """The criterion of scores [N, C] as a loss: NLL, or the share of images (of classes) that is wrong."""
    scores = np.asarray(scores)
    weights = image_weights(labels, criterion)
    chunks = row_chunks(*scores.shape)
    return float(sum(weights[rows] @ losses(scores[rows], labels[rows], criterion) for rows in chunks))


def losses(scores: Floats, labels: Ints, criterion: str, probabilities: bool = False) -> npt.NDArray[np.float64]:
    """What each image [n] adds: −log p(label), or 1 where the highest score [n, C] is another class's."""
    if not CRITERIA[criterion][1]:
        return (scores.argmax(axis=1) != labels).astype(np.float64)
    rows = np.arange(len(labels))
    if probabilities:
        return -np.log(np.maximum(scores[rows, labels], _SMALLEST))
    part = scores - scores.max(axis=1, keepdims=True)
    return np.log(np.exp(part, dtype=np.float64).sum(axis=1)) - part[rows, labels]


def image_weights(labels: Ints, criterion: str) -> npt.NDArray[np.float64]:
    """What each image [N] counts, summing to 1; raises `UserError` for an unknown criterion and for no images."""
    if criterion not in CRITERIA:
        raise UserError(f"unknown criterion '{criterion}': use {', '.join(CRITERIA)}")
    if not len(labels):
        raise UserError("there are no images to tune on: give a split that has some")
    return balanced_weights(labels) if CRITERIA[criterion][0] else np.full(len(labels), 1.0 / len(labels))


def _checked_grid(parameter: str, grid: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(value) for value in grid)
    if not values or not all(map(math.isfinite, values)):
        raise UserError(f"the values of {parameter} to try are {list(values)}: give one finite number or more")
    return values
