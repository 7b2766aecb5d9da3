"""VL-LTR's own convention: accuracy from one predictor, shot groups from another.

The original evaluates the fused probabilities for the headline and the sum of the two branches' scores for the
groups (Tian et al., ECCV 2022; its evaluation code), so a row's groups do not average to its accuracy. The numbers
are needed to compare with published rows, and are labelled wherever they appear.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from hf_vlr.data.shots import SHOT_NAMES, ShotRule
from hf_vlr.errors import UserError
from hf_vlr.evaluation.metrics import evaluate_outcome
from hf_vlr.evaluation.outcome import Ints, Outcome, measure
from hf_vlr.evaluation.priors import PRIORS

NOTE = (
    "accuracy and top-5 are of the fused probabilities, the groups of the sum of both branches' log-probabilities: "
    "two predictors, as VL-LTR reports them"
)
_CHUNK_ROWS = 256


def mixed_convention(
    fused: npt.ArrayLike | Outcome,
    visual: npt.NDArray[Any],
    language: npt.NDArray[Any],
    labels: npt.ArrayLike,
    train_counts: npt.ArrayLike,
    rule: str | ShotRule = "vl-ltr",
    resamples: int = 0,
) -> dict[str, Any]:
    """An entry with the keys of `evaluate_predictions`, `mixed` (True) and `note`.

    `accuracy` and `top5` are of `fused` (scores [N, C], or what `measure` made of them); the groups' `accuracy` is
    of argmax_c (log p_visual + log p_language), from `visual` and `language`, scores [N, C] each. Sizes and shares
    of test images are stated; everything else would mix the two and is None. Raises `UserError` as
    `evaluate_predictions` does, and unless the branches score the same images and classes.
    """
    outcome = fused if isinstance(fused, Outcome) else measure(fused, labels, np.asarray(train_counts).size)
    predictions = summed_predictions(visual, language)
    headline = evaluate_outcome(outcome, train_counts, rule, resamples)
    product = measure(predictions, outcome.labels, outcome.num_classes)
    by_group = evaluate_outcome(product, train_counts, rule, resamples)
    sizes = ("accuracy", "classes", "images", "share")
    groups = {
        name: {key: value if key in sizes else None for key, value in numbers.items()}
        for name, numbers in by_group["groups"].items()
    }
    kept = ("num_images", "num_classes", "classes_without_test_images", "accuracy", "top5")
    entry = {key: headline[key] if key in kept else None for key in headline}
    entry |= {
        "groups": groups,
        "group_confusion": {"groups": list(SHOT_NAMES), "counts": None},
        "shifted_priors": dict.fromkeys(PRIORS),
        "mixed": True,
        "note": NOTE,
    }
    if resamples:
        own = {"balanced_accuracy": None, "groups": by_group["intervals"]["groups"]}
        entry["intervals"] = headline["intervals"] | own
    return entry


def summed_predictions(visual: npt.NDArray[Any], language: npt.NDArray[Any]) -> Ints:
    """argmax_c (log p_visual + log p_language) [N]: softmax's normalisation is the same for every class."""
    if visual.shape != language.shape or visual.ndim != 2:
        raise UserError(f"the branches score {visual.shape} and {language.shape}: give both the same images [N, C]")
    starts = range(0, len(visual), _CHUNK_ROWS)
    parts = (slice(start, start + _CHUNK_ROWS) for start in starts)
    return np.concatenate([np.add(visual[part], language[part], dtype=np.float64).argmax(axis=1) for part in parts])
