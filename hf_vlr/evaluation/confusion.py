"""What is taken for what: confusions of classes, and of shot groups.

Shapes: N images, C classes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_vlr.data.shots import SHOT_NAMES
from hf_vlr.evaluation.outcome import Ints, check_lengths, checked_classes


def confusion_matrix(predictions: npt.ArrayLike, labels: npt.ArrayLike, num_classes: int) -> Ints:
    """Counts [C, C] of (true class, predicted class). Raises `UserError` for values outside 0..C-1."""
    predictions = checked_classes(predictions, "prediction", num_classes)
    labels = checked_classes(labels, "label", num_classes)
    check_lengths(len(predictions), len(labels))
    pairs = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def group_confusion(
    predictions: Ints, labels: Ints, groups: Mapping[str, npt.NDArray[np.bool_]]
) -> dict[str, list[Any]]:
    """Images by the shot group of their true (rows) and of their predicted class (columns), right ones included.

    `groups` are the masks [C] of `shot_groups`; only the three that partition the classes are counted.
    """
    group = np.select([groups[name] for name in SHOT_NAMES], range(len(SHOT_NAMES)))
    counts = confusion_matrix(group[predictions], group[labels], len(SHOT_NAMES))
    return {"groups": list(SHOT_NAMES), "counts": counts.tolist()}


def tail_to_head(predictions: Ints, labels: Ints, groups: Mapping[str, npt.NDArray[np.bool_]]) -> float | None:
    """Share of the few-shot images' errors that were taken for a many-shot class.

    None where no few-shot image was missed, and where there is no many-shot class.
    """
    missed = predictions[groups["few"][labels] & (predictions != labels)]
    if missed.size == 0 or not groups["many"].any():
        return None
    return float(groups["many"][missed].mean())
