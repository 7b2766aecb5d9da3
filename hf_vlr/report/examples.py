"""Test images worth looking at: what a predictor gets right and wrong, the rare classes first."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from hf_vlr.errors import UserError
from hf_vlr.evaluation.predictions import Predictions

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_CHUNK_NUMBERS = 2**22


@dataclass(frozen=True)
class Example:
    """One test image, what it shows and what was made of it.

    `true` and `predicted` are class names, `shot` the true class's group, `confidence` and `true_probability` the
    probabilities of the predicted and of the true class. `sentences`: (weight, sentence) of what the language branch
    attended to, heaviest first; the weights are fractions in [0, 1].
    """

    image: Image.Image
    true: str
    predicted: str
    shot: str
    confidence: float
    true_probability: float
    sentences: tuple[tuple[float, str], ...] = ()


def pick_examples(predictions: Predictions, predictor: str, count: int) -> list[int]:
    """At most `count` rows of N, half of them failures (they come first), half successes; the same rows every time.

    Of each kind every class gives its most confident image, in the order of their training images, rarest first;
    then every class its second, and so on. Where one kind runs out, the other fills up. Confidence is the highest
    probability of the softmax; a predictor without scores has none, and the test set's order stands in for it.
    Raises `UserError` for an unknown predictor and a negative count.
    """
    if predictor not in predictions.scores:
        raise UserError(f"there is no predictor '{predictor}'; there are {', '.join(predictions.scores)}")
    if count < 0:
        raise UserError(f"{count} examples cannot be shown: give a number from 0 on")
    predicted, confidence = _choices(predictions.scores[predictor])
    right = predicted == predictions.labels
    failures = _rare_first(np.flatnonzero(~right), confidence, predictions)
    successes = _rare_first(np.flatnonzero(right), confidence, predictions)
    kept = max(count // 2, count - len(successes))
    failures = failures[:kept]
    return [*failures, *successes[: count - len(failures)]]


def _rare_first(rows: Ints, confidence: Floats, predictions: Predictions) -> list[int]:
    """The rows by turn within their class (most confident first), then by training images, class and row."""
    labels = predictions.labels[rows]
    by_class = np.lexsort((rows, -confidence[rows], labels))
    starts = np.flatnonzero(np.r_[True, np.diff(labels[by_class]) != 0]) if rows.size else np.array([], dtype=np.int64)
    lengths = np.diff(np.r_[starts, rows.size])
    turn = np.empty(rows.size, dtype=np.int64)
    turn[by_class] = np.arange(rows.size) - np.repeat(starts, lengths)
    order = np.lexsort((rows, labels, predictions.train_counts[labels], turn))
    return rows[order].tolist()


def _choices(scores: npt.NDArray[Any]) -> tuple[Ints, Floats]:
    """Predicted class and confidence of each image, both [N]; confidence 0 where there are no scores."""
    if scores.ndim == 1:
        return scores.astype(np.int64), np.zeros(len(scores))
    columns = [np.concatenate(column) for column in zip(*_choice_chunks(scores), strict=True)]
    return columns[0], columns[1]


def _choice_chunks(scores: npt.NDArray[Any]) -> Iterator[tuple[Ints, Floats]]:
    step = max(1, _CHUNK_NUMBERS // scores.shape[1])
    for start in range(0, len(scores), step):
        part = scores[start : start + step]
        best = part.max(axis=1, keepdims=True)
        yield part.argmax(axis=1), 1 / np.exp(part - best).sum(axis=1, dtype=np.float64)
