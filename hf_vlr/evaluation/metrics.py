"""Metrics of one predictor on a long-tailed test set, numpy only.

Shapes: N images, C classes. A predictor is scores [N, C] (logits or log-probabilities: softmax is taken
here, which leaves log-probabilities as they are) or, where there are no scores, predictions [N].
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_vlr.data.shots import ShotRule, shot_groups, shot_rule
from hf_vlr.evaluation.bootstrap import bootstrap_intervals
from hf_vlr.evaluation.calibration import calibration_errors, reliability
from hf_vlr.evaluation.confusion import confusion_matrix, group_confusion, tail_to_head
from hf_vlr.evaluation.outcome import Floats, Ints, Outcome, measure
from hf_vlr.evaluation.per_class import per_class_table, write_per_class_csv
from hf_vlr.evaluation.priors import shifted_priors
from hf_vlr.evaluation.text_file import write_text

__all__ = [
    "confusion_matrix",
    "evaluate_outcome",
    "evaluate_predictions",
    "per_class_table",
    "write_per_class_csv",
    "write_text",
]

# One class that is never right would make the harmonic and geometric means 0, whatever the others do.
CLASS_ACCURACY_FLOOR = 1e-5

Groups = Mapping[str, npt.NDArray[np.bool_]]


def evaluate_predictions(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    train_counts: npt.ArrayLike,
    rule: str | ShotRule = "oltr",
    resamples: int = 0,
) -> dict[str, Any]:
    """All numbers of one predictor, as plain numbers that go into JSON.

    With a_c the accuracy of class c, over the T classes that have test images (the others are left out of
    every class mean and counted in `classes_without_test_images`), and p = softmax(scores):

    - `accuracy` = correct / N; `top5` = share of images whose class is among the five highest scores (ties
      go to the lower index, as in argmax), None without scores or if C <= 5;
    - `balanced_accuracy` = mean a_c; `worst_class` = min a_c, `worst_class_label` the first such class;
      `worst_tenth` = mean of the ceil(T / 10) lowest a_c;
    - `harmonic_mean` = 1 / mean(1/a_c), `geometric_mean` = exp(mean(log a_c)), a_c floored at 1e-5;
    - `macro_f1` = mean of 2·tp / (predicted + true);
    - `nll` = mean −log p(label) in nats; `brier` = mean Σ_c (p_c − 1[c = label])², 0 to 2; `ece`, `mce` and
      `reliability` (of all images and of each group) in 15 bins, see `hf_vlr.evaluation.calibration`; all None
      without scores;
    - `groups`: by shot group `accuracy` (averaged as the rule says), the `classes` and `images` that it was
      measured on, `nll`, `brier` and `ece` over its images, its `share` of the test images and its
      `predicted_share` of the predictions. A group without test images has None for all but the two counts;
    - `group_confusion` and `tail_to_head`: see `hf_vlr.evaluation.confusion`;
    - `shifted_priors`: see `hf_vlr.evaluation.priors`;
    - `intervals`, with `resamples` > 0: 95 % bootstrap intervals of accuracies, see
      `hf_vlr.evaluation.bootstrap.bootstrap_intervals`.

    All rates are fractions in [0, 1]. Integer `scores` [N] are predictions, 2-D `scores` [N, C] are logits,
    read as `hf_vlr.evaluation.outcome.measure` does.
    Raises `UserError` for no images, lengths that differ, labels or predictions outside 0..C-1, scores that
    are not finite, and as `shot_groups` does.
    """
    return evaluate_outcome(measure(scores, labels, np.asarray(train_counts).size), train_counts, rule, resamples)


def evaluate_outcome(
    outcome: Outcome, train_counts: npt.ArrayLike, rule: str | ShotRule = "oltr", resamples: int = 0
) -> dict[str, Any]:
    """The numbers of `evaluate_predictions` from scores that were reduced before."""
    groups, averaging = shot_groups(train_counts, rule), shot_rule(rule).averaging
    images, hits = outcome.class_totals()
    tested = images > 0
    rates = np.divide(hits, images, out=np.full(images.size, np.nan), where=tested)
    worst = int(np.nanargmin(rates))
    numbers = {
        "num_images": int(images.sum()),
        "num_classes": int(images.size),
        "classes_without_test_images": int((~tested).sum()),
        "accuracy": float(outcome.correct.mean()),
        "top5": _top5(outcome),
        "balanced_accuracy": float(rates[tested].mean()),
        "groups": {name: _group(outcome, members, averaging) for name, members in groups.items()},
        **_class_means(outcome, images, hits),
        "worst_class": float(rates[worst]),
        "worst_class_label": worst,
        "worst_tenth": _worst_tenth(rates[tested]),
        **_probabilities(outcome, np.ones(len(outcome.labels), dtype=bool)),
        "group_confusion": group_confusion(outcome.predictions, outcome.labels, groups),
        "tail_to_head": tail_to_head(outcome.predictions, outcome.labels, groups),
        "shifted_priors": shifted_priors(rates, np.asarray(train_counts)),
        "reliability": _reliability(outcome, groups),
    }
    if resamples:
        numbers["intervals"] = bootstrap_intervals(outcome.correct, outcome.labels, groups, averaging, resamples)
    return numbers


def _class_means(outcome: Outcome, images: Ints, hits: Ints) -> dict[str, float]:
    """Means over the tested classes other than the plain one."""
    tested = images > 0
    predicted = np.bincount(outcome.predictions, minlength=images.size)
    floored = np.maximum(hits[tested] / images[tested], CLASS_ACCURACY_FLOOR)
    return {
        "macro_f1": float((2 * hits[tested] / (predicted + images)[tested]).mean()),
        "harmonic_mean": float(1 / (1 / floored).mean()),
        "geometric_mean": float(np.exp(np.log(floored).mean())),
    }


def _group(outcome: Outcome, members: npt.NDArray[np.bool_], averaging: str) -> dict[str, Any]:
    """The numbers of one shot group; `members` [C]."""
    images, hits = outcome.class_totals()
    tested, inside = members & (images > 0), members[outcome.labels]
    numbers: dict[str, Any] = {"accuracy": None, "classes": int(tested.sum()), "images": int(inside.sum())}
    if not tested.any():
        return numbers | dict.fromkeys(("nll", "brier", "ece", "share", "predicted_share"))
    by_class = hits[tested] / images[tested]
    numbers["accuracy"] = float(by_class.mean() if averaging == "class" else outcome.correct[inside].mean())
    probabilities = _probabilities(outcome, inside)
    return numbers | {
        **{name: probabilities[name] for name in ("nll", "brier", "ece")},
        "share": float(inside.mean()),
        "predicted_share": float(members[outcome.predictions].mean()),
    }


def _probabilities(outcome: Outcome, inside: npt.NDArray[np.bool_]) -> dict[str, float | None]:
    """What needs probabilities, over some images, at least one; None without scores."""
    if outcome.confidence is None:
        return dict.fromkeys(("nll", "brier", "ece", "mce"))
    ece, mce = calibration_errors(outcome.confidence[inside], outcome.correct[inside])
    return {
        "nll": -float(outcome.log_likelihood[inside].mean()),
        "brier": float(outcome.brier[inside].mean()),
        "ece": ece,
        "mce": mce,
    }


def _reliability(outcome: Outcome, groups: Groups) -> dict[str, Any] | None:
    if outcome.confidence is None:
        return None
    chosen = {"all": np.ones(outcome.num_classes, dtype=bool), **groups}
    inside = {name: members[outcome.labels] for name, members in chosen.items()}
    return {name: reliability(outcome.confidence[rows], outcome.correct[rows]) for name, rows in inside.items()}


def _top5(outcome: Outcome) -> float | None:
    return None if outcome.rank is None or outcome.num_classes <= 5 else float((outcome.rank < 5).mean())


def _worst_tenth(rates: Floats) -> float:
    return float(np.sort(rates)[: -(-rates.size // 10)].mean())
