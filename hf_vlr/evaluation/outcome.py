"""What one predictor did with each test image: scores [N, C] reduced to a few numbers per image, in one pass.

Shapes: N images, C classes. Everything that is measured afterwards reads these numbers, never the scores.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_vlr.errors import UserError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Chunk = tuple[Ints, Ints, Floats, Floats, Floats]

# numbers per chunk, 2 MiB of float64: what is computed of a chunk stays in a core's cache
_CHUNK_NUMBERS = 2**18


@dataclass(frozen=True)
class Outcome:
    """Per image, [N] each; the last four are None for a predictor that has no scores.

    predictions: the class with the highest score, the lowest index among equals. labels: the true class.
    num_classes: C. rank: how many classes are ahead of the true one (equals ahead by lower index). log_likelihood:
    log p(label) in nats. confidence: the highest p. brier: Σ_c (p_c − 1[c = label])², 0 to 2.
    """

    predictions: Ints
    labels: Ints
    num_classes: int
    rank: Ints | None = None
    log_likelihood: Floats | None = None
    confidence: Floats | None = None
    brier: Floats | None = None

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        return self.predictions == self.labels

    def class_totals(self) -> tuple[Ints, Ints]:
        """Test images and correct ones of each class, both [C]."""
        images = np.bincount(self.labels, minlength=self.num_classes)
        return images, np.bincount(self.labels[self.correct], minlength=self.num_classes)


def measure(scores: npt.ArrayLike, labels: npt.ArrayLike, num_classes: int) -> Outcome:
    """Reduce one predictor's scores, a few MiB at a time; a memory map is never read as a whole.

    `scores` [N, C] are logits or log-probabilities of any real dtype: p = softmax(scores), which leaves
    log-probabilities as they are; computed in float64. Integer `scores` [N] are predicted classes. Raises
    `UserError` for no images, lengths that differ, labels or predictions outside 0..C-1, another number of columns,
    and scores that are not finite.
    """
    scores, labels = np.asarray(scores), checked_classes(labels, "label", num_classes)
    if scores.ndim not in (1, 2):
        raise UserError(f"scores have shape {scores.shape}: give scores [images, classes] or predictions [images]")
    check_lengths(len(scores), len(labels))
    if len(labels) == 0:
        raise UserError("there are no test images: check the split that is evaluated")
    if scores.ndim == 1:
        return Outcome(checked_classes(scores, "prediction", num_classes), labels, num_classes)
    if scores.shape[1] != num_classes:
        raise UserError(f"scores have {scores.shape[1]} columns for {num_classes} classes: give one for each class")
    if not (np.issubdtype(scores.dtype, np.number) and np.isrealobj(scores)):
        raise UserError(f"scores are {scores.dtype}: give real numbers")
    columns = zip(*_chunks(scores, labels), strict=True)
    predictions, *rest = (np.concatenate(column) for column in columns)
    return Outcome(predictions, labels, num_classes, *rest)


def measure_reference(scores: npt.ArrayLike, labels: npt.ArrayLike, num_classes: int) -> Outcome:
    """The same by the definitions, in float64 and all at once."""
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    order = np.argsort(-scores, axis=1, kind="stable")
    rank = (order == labels[:, None]).argmax(axis=1)
    likelihood = scores[rows, labels] - np.logaddexp.reduce(scores, axis=1)
    brier = ((probabilities - np.eye(num_classes)[labels]) ** 2).sum(axis=1)
    return Outcome(order[:, 0], labels, num_classes, rank, likelihood, probabilities.max(axis=1), brier)


def _chunks(scores: npt.NDArray[Any], labels: Ints) -> Iterator[Chunk]:
    num_classes = scores.shape[1]
    step = max(1, _CHUNK_NUMBERS // num_classes)
    buffer = np.empty((min(step, len(scores)), num_classes), dtype=np.float64)
    for start in range(0, len(scores), step):
        part = scores[start : start + step].astype(np.float64, copy=False)
        finite = np.isfinite(part).all(axis=1)
        if not finite.all():
            image = start + int(finite.argmin())
            raise UserError(
                f"scores of image {image} are NaN or infinite: check the checkpoint, or mask classes with -1e4"
            )
        yield _reduced(part, labels[start : start + step], buffer[: len(part)])


def _reduced(part: Floats, labels: Ints, powers: Floats) -> Chunk:
    """Prediction, rank, log-likelihood, confidence and Brier term of some rows; `powers` is overwritten."""
    rows = np.arange(len(part))
    predictions = part.argmax(axis=1)
    best, own = part[rows, predictions], part[rows, labels]
    # a difference beyond float64's range is -inf, whose power is the right 0
    with np.errstate(over="ignore", under="ignore"):
        np.exp(np.subtract(part, best[:, None], out=powers), out=powers)
        total = powers.sum(axis=1)
        likelihood = own - best - np.log(total)
    np.square(powers, out=powers)
    squares = powers.sum(axis=1) / total**2
    # rounding could leave a certain and right prediction just below zero
    brier = np.maximum(squares - 2 * np.exp(likelihood) + 1, 0)
    return predictions, _rank(part, own, labels), likelihood, 1 / total, brier


def _rank(part: Floats, own: Floats, labels: Ints) -> Ints:
    """Classes ahead of the label: a higher score, or the same one and a lower index."""
    ahead = np.count_nonzero(part > own[:, None], axis=1)
    tied = np.flatnonzero(np.count_nonzero(part >= own[:, None], axis=1) - ahead > 1)
    for row in tied:
        ahead[row] += np.count_nonzero(part[row, : labels[row]] == own[row])
    return ahead


def checked_classes(values: npt.ArrayLike, noun: str, num_classes: int) -> Ints:
    """`values` as int64 [N]; raises `UserError` with the noun unless they are integers in 0..C-1."""
    classes = np.asarray(values)
    if classes.ndim != 1 or not (np.issubdtype(classes.dtype, np.integer) or classes.size == 0):
        raise UserError(f"{noun}s must be one integer for each image, got {classes.dtype} {classes.shape}")
    outside = (classes < 0) | (classes >= num_classes)
    if outside.any():
        image = int(outside.argmax())
        raise UserError(f"{noun} {classes[image]} of image {image} is outside 0..{num_classes - 1}: check the classes")
    return classes.astype(np.int64)


def check_lengths(num_scores: int, num_labels: int) -> None:
    """Raise `UserError` unless there is one prediction for each label."""
    if num_scores != num_labels:
        raise UserError(f"{num_scores} predictions for {num_labels} labels: score the same images")
