"""Accuracy where the classes are as unevenly met in testing as in training, or the other way round.

Shapes: C classes. The protocol of SADE (Zhang et al., Self-Supervised Aggregation of Diverse Experts, NeurIPS 2022):
test sets whose class frequencies fall geometrically from the head to the tail ("forward") or from the tail to the
head ("backward"), with the most frequent class 50, 25, 10, 5 or 2 times as frequent as the rarest.
"""

import numpy as np
import numpy.typing as npt

from hf_vlr.evaluation.outcome import Floats

RATIOS = (50, 25, 10, 5, 2)
PRIORS = (*(f"forward-{ratio}" for ratio in RATIOS), "uniform", *(f"backward-{ratio}" for ratio in reversed(RATIOS)))


def shifted_priors(class_accuracy: Floats, train_counts: npt.NDArray[np.integer]) -> dict[str, float]:
    """The accuracy under each prior of `PRIORS`: Σ_c w_c a_c / Σ_c w_c over the classes that were tested.

    `class_accuracy` [C] in [0, 1], NaN for a class without test images; at least one is tested. The weights are
    `prior_weights`. Where the protocol draws such a test set from the images, this is what it gives on average:
    nothing is drawn here, and no image is left out.
    """
    tested = ~np.isnan(class_accuracy)
    accuracies = {}
    for prior in PRIORS:
        weights = prior_weights(prior, train_counts)[tested]
        accuracies[prior] = float(weights @ class_accuracy[tested] / weights.sum())
    return accuracies


def prior_weights(prior: str, train_counts: npt.NDArray[np.integer]) -> Floats:
    """Relative class frequencies [C] of one of `PRIORS`, 1 for the most frequent class.

    "forward-r": r^(−i/(C−1)) for the class at place i when they are sorted by falling training count (equal counts
    keep their order); "backward-r": r^(−(C−1−i)/(C−1)); "uniform": 1.
    """
    num_classes = len(train_counts)
    direction, _, ratio = prior.partition("-")
    if direction == "uniform":
        return np.ones(num_classes)
    order = np.argsort(-np.asarray(train_counts, dtype=np.int64), kind="stable")
    place = np.empty(num_classes)
    place[order] = np.arange(num_classes)
    if direction == "backward":
        place = num_classes - 1 - place
    return float(ratio) ** (-place / max(num_classes - 1, 1))
