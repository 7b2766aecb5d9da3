"""One row of numbers for each class, and the CSV file they go into."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_vlr.data.shots import ShotRule, shot_names
from hf_vlr.errors import UserError
from hf_vlr.evaluation.outcome import measure
from hf_vlr.evaluation.text_file import write_text


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
    counts = np.asarray(train_counts)
    shots = shot_names(counts, rule)
    outcome = measure(scores, labels, counts.size)
    if len(class_names) != counts.size:
        raise UserError(f"{len(class_names)} class names for {counts.size} classes: give one name for each class")
    images, hits = outcome.class_totals()
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
