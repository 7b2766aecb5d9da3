"""Metrics of one predictor on a long-tailed test set, numpy only.

Shapes: N images, C classes. A predictor is scores [N, C] (logits or log-probabilities: softmax is taken
here, which leaves log-probabilities as they are) or, where there are no scores, predictions [N].
"""

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_vlr.data.shots import ShotRule, shot_groups, shot_names, shot_rule
from hf_vlr.errors import UserError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ECE_BINS = 15
# One class that is never right would make the harmonic and geometric means 0, whatever the others do.
CLASS_ACCURACY_FLOOR = 1e-5
_CHUNK_NUMBERS = 2**22


@dataclass(frozen=True)
class _Outcome:
    """What a predictor did with each image; the last three are None where it has no scores."""

    predictions: Ints
    labels: Ints
    rank: Ints | None
    log_likelihood: Floats | None
    confidence: Floats | None

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        return self.predictions == self.labels


def evaluate_predictions(
    scores: npt.ArrayLike, labels: npt.ArrayLike, train_counts: npt.ArrayLike, rule: str | ShotRule = "oltr"
) -> dict[str, Any]:
    """All numbers of one predictor, as plain numbers that go into JSON.

    With a_c the accuracy of class c, over the classes that have test images (the others are left out of
    every class mean and counted in `classes_without_test_images`):

    - `accuracy` = correct / N; `top5` = share of images whose class is among the five highest scores (ties
      go to the lower index, as in argmax), None without scores or if C <= 5;
    - `balanced_accuracy` = mean a_c; `worst_class` = min a_c, `worst_class_label` the first such class;
    - `harmonic_mean` = 1 / mean(1/a_c), `geometric_mean` = exp(mean(log a_c)), a_c floored at 1e-5;
    - `macro_f1` = mean of 2·tp / (predicted + true);
    - `groups`: by shot group `accuracy` (averaged as the rule says, None for an empty group), and the
      `classes` and `images` that it was measured on;
    - `nll` = mean −log p(label) in nats; `ece` = Σ_bins |Σ confidence − correct| / N with 15 bins of equal
      width, right-closed; both None without scores.

    All rates are fractions in [0, 1]. Integer `scores` [N] are predictions, 2-D `scores` [N, C] are logits.
    Raises `UserError` for no images, lengths that differ, labels or predictions outside 0..C-1, scores that
    are not finite, and as `shot_groups` does.
    """
    outcome = _outcome(scores, labels, train_counts)
    groups = shot_groups(train_counts, rule)
    images, hits = _class_totals(outcome, num_classes=len(next(iter(groups.values()))))
    tested = images > 0
    rates = hits[tested] / images[tested]
    predicted = np.bincount(outcome.predictions, minlength=images.size)
    floored = np.maximum(rates, CLASS_ACCURACY_FLOOR)
    return {
        "num_images": int(images.sum()),
        "num_classes": int(images.size),
        "classes_without_test_images": int((~tested).sum()),
        "accuracy": float(outcome.correct.mean()),
        "top5": _top5(outcome, images.size),
        "balanced_accuracy": float(rates.mean()),
        "groups": _group_metrics(groups, images, hits, shot_rule(rule).averaging),
        "macro_f1": float((2 * hits[tested] / (predicted + images)[tested]).mean()),
        "harmonic_mean": float(1 / (1 / floored).mean()),
        "geometric_mean": float(np.exp(np.log(floored).mean())),
        "worst_class": float(rates.min()),
        "worst_class_label": int(np.flatnonzero(tested)[rates.argmin()]),
        "nll": None if outcome.log_likelihood is None else -float(outcome.log_likelihood.mean()),
        "ece": None if outcome.confidence is None else _calibration_error(outcome.confidence, outcome.correct),
    }


def confusion_matrix(predictions: npt.ArrayLike, labels: npt.ArrayLike, num_classes: int) -> Ints:
    """Counts [C, C] of (true class, predicted class). Raises `UserError` for values outside 0..C-1."""
    predictions = _checked_classes(predictions, "prediction", num_classes)
    labels = _checked_classes(labels, "label", num_classes)
    _check_lengths(len(predictions), len(labels))
    pairs = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def per_class_table(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    train_counts: npt.ArrayLike,
    class_names: Sequence[str],
    rule: str | ShotRule = "oltr",
) -> list[dict[str, Any]]:
    """One row for each class, in the order of the labels.

    Columns: label, class_name, train_count, shot, test_images, correct, accuracy (None without test
    images), mean_confidence (mean highest probability over the class's images; None without images or
    scores). Raises `UserError` as `evaluate_predictions` does, and if the names are not C.
    """
    outcome = _outcome(scores, labels, train_counts)
    counts = np.asarray(train_counts)
    shots = shot_names(counts, rule)
    if len(class_names) != counts.size:
        raise UserError(f"{len(class_names)} class names for {counts.size} classes: give one name for each class")
    images, hits = _class_totals(outcome, counts.size)
    confidence = None
    if outcome.confidence is not None:
        confidence = np.bincount(outcome.labels, weights=outcome.confidence, minlength=counts.size)
    return [
        {
            "label": label,
            "class_name": class_names[label],
            "train_count": int(counts[label]),
            "shot": shots[label],
            "test_images": int(total),
            "correct": int(hits[label]),
            "accuracy": float(hits[label] / total) if total else None,
            "mean_confidence": float(confidence[label] / total) if total and confidence is not None else None,
        }
        for label, total in enumerate(images)
    ]


def write_per_class_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of `per_class_table` as UTF-8 CSV, None as an empty cell, all of the file or none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 file beside its place and move it there: no reader and no crash sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _outcome(scores: npt.ArrayLike, labels: npt.ArrayLike, train_counts: npt.ArrayLike) -> _Outcome:
    """Check one predictor's input and reduce it to numbers for each image."""
    scores, num_classes = np.asarray(scores), np.asarray(train_counts).size
    labels = _checked_classes(labels, "label", num_classes)
    if scores.ndim not in (1, 2):
        raise UserError(f"scores have shape {scores.shape}: give scores [images, classes] or predictions [images]")
    _check_lengths(len(scores), len(labels))
    if len(labels) == 0:
        raise UserError("there are no test images: check the split that is evaluated")
    if scores.ndim == 1:
        return _Outcome(_checked_classes(scores, "prediction", num_classes), labels, None, None, None)
    if scores.shape[1] != num_classes:
        raise UserError(f"scores have {scores.shape[1]} columns for {num_classes} classes: give one for each class")
    columns = zip(*_score_chunks(scores, labels), strict=True)
    predictions, rank, log_likelihood, confidence = (np.concatenate(column) for column in columns)
    return _Outcome(predictions, labels, rank, log_likelihood, confidence)


def _score_chunks(scores: npt.NDArray[Any], labels: Ints) -> Iterator[tuple[Ints, Ints, Floats, Floats]]:
    """(prediction, rank of the label, log p(label), highest p) of some rows at a time, in float64."""
    num_classes = scores.shape[1]
    step = max(1, _CHUNK_NUMBERS // num_classes)
    for start in range(0, len(scores), step):
        part, own = scores[start : start + step].astype(np.float64), labels[start : start + step, None]
        broken = ~np.isfinite(part).all(axis=1)
        if broken.any():
            raise UserError(f"scores of image {start + int(broken.argmax())} are NaN or infinite: check the checkpoint")
        best = part.max(axis=1, keepdims=True)
        label_score = np.take_along_axis(part, own, axis=1)
        ahead = (part > label_score) | ((part == label_score) & (np.arange(num_classes) < own))
        log_sum = np.log(np.exp(part - best).sum(axis=1))
        log_likelihood = (label_score - best)[:, 0] - log_sum
        yield part.argmax(axis=1), ahead.sum(axis=1), log_likelihood, np.exp(-log_sum)


def _class_totals(outcome: _Outcome, num_classes: int) -> tuple[Ints, Ints]:
    """Test images and correct ones of each class, both [C]."""
    images = np.bincount(outcome.labels, minlength=num_classes)
    return images, np.bincount(outcome.labels[outcome.correct], minlength=num_classes)


def _group_metrics(
    groups: dict[str, npt.NDArray[np.bool_]], images: Ints, hits: Ints, averaging: str
) -> dict[str, dict[str, Any]]:
    metrics = {}
    for name, members in groups.items():
        tested = members & (images > 0)
        accuracy = None
        if tested.any():
            by_class = hits[tested] / images[tested]
            accuracy = float(by_class.mean() if averaging == "class" else hits[tested].sum() / images[tested].sum())
        metrics[name] = {
            "accuracy": accuracy,
            "classes": int(tested.sum()),
            "images": int(images[tested].sum()),
        }
    return metrics


def _top5(outcome: _Outcome, num_classes: int) -> float | None:
    return None if outcome.rank is None or num_classes <= 5 else float((outcome.rank < 5).mean())


def _calibration_error(confidence: Floats, correct: npt.NDArray[np.bool_]) -> float:
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / confidence.size)


def _checked_classes(values: npt.ArrayLike, noun: str, num_classes: int) -> Ints:
    classes = np.asarray(values)
    if classes.ndim != 1 or not (np.issubdtype(classes.dtype, np.integer) or classes.size == 0):
        raise UserError(f"{noun}s must be one integer for each image, got {classes.dtype} {classes.shape}")
    outside = (classes < 0) | (classes >= num_classes)
    if outside.any():
        image = int(outside.argmax())
        raise UserError(f"{noun} {classes[image]} of image {image} is outside 0..{num_classes - 1}: check the classes")
    return classes.astype(np.int64)


def _check_lengths(num_scores: int, num_labels: int) -> None:
    if num_scores != num_labels:
        raise UserError(f"{num_scores} predictions for {num_labels} labels: score the same images")
