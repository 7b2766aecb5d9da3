"""Long-tail accuracy as an `evaluate` module that needs numpy only; `hf_vlr.metrics` gives the same numbers and more.

Letters: N images, C classes; a_c is the accuracy of class c, over the classes that have test images.
"""

import datasets
import evaluate
import numpy as np

DESCRIPTION = """
Accuracy on a test set whose classes were unequally frequent in training: of all images, as the mean over classes, and
over the classes with many, a medium number of and few training images.
"""
USAGE = """
Args:
    predictions: class ids, one integer per image.
    references: class ids, one integer per image.
    train_counts: training images of each class, C integers; given to compute().
    rule: which classes are many, medium and few: "oltr" (more than 100, fewer than 20; default), "vl-ltr" (more than
        99, fewer than 21, and a group's accuracy is that of its images, not the mean over its classes), or
        "custom:HI,LO" (more than HI, fewer than LO).
Returns a flat dict of fractions in [0, 1]:
    accuracy, balanced_accuracy (mean a_c), macro_f1, harmonic_mean and geometric_mean (of a_c, floored at 1e-5),
    worst_class (min a_c), worst_tenth (mean of the lowest tenth of a_c, rounded up);
    many_accuracy, medium_accuracy, few_accuracy; a group without test images is left out.
"""
# many above, few below, and further groups by their largest count
RULES = {"oltr": (100, 20, {}), "vl-ltr": (99, 21, {"10-shot": 10, "5-shot": 5})}
FLOOR = 1e-5


class LongTailAccuracy(evaluate.Metric):
    """Accuracy of all images, of classes, and of shot groups."""

    def _info(self):
        # not int64, which would cut a score of 0.7 down to class 0 and say nothing
        number = datasets.Value("float64")
        features = datasets.Features({"predictions": number, "references": number})
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation="", inputs_description=USAGE, features=features, format="numpy"
        )

    def _compute(self, predictions, references, train_counts=None, rule="oltr"):
        if train_counts is None:
            raise ValueError("train_counts is missing: give compute() the training images of each class")
        counts = whole(train_counts, "train_counts")
        if counts.size == 0:
            raise ValueError("train_counts must be a list of whole numbers, at least one")
        if counts.min() < 0:
            raise ValueError(f"class {counts.argmin()} has a negative train count: count its training images again")
        predictions, labels = whole(predictions, "predictions"), whole(references, "references")
        for noun, values in (("predictions", predictions), ("references", labels)):
            if values.size == 0 or values.min() < 0 or values.max() >= counts.size:
                raise ValueError(f"{noun} must be class ids in 0..{counts.size - 1}, at least one")
        return class_numbers(predictions, labels, counts.size) | group_numbers(predictions, labels, counts, rule)


def class_numbers(predictions, labels, num_classes):
    """The numbers that need no training counts."""
    images = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels[predictions == labels], minlength=num_classes)
    predicted, tested = np.bincount(predictions, minlength=num_classes), images > 0
    rates = np.sort(hits[tested] / images[tested])
    floored = np.maximum(rates, FLOOR)
    return {
        "accuracy": float((predictions == labels).mean()),
        "balanced_accuracy": float(rates.mean()),
        "macro_f1": float((2 * hits[tested] / (predicted + images)[tested]).mean()),
        "harmonic_mean": float(1 / (1 / floored).mean()),
        "geometric_mean": float(np.exp(np.log(floored).mean())),
        "worst_class": float(rates[0]),
        "worst_tenth": float(rates[: -(-rates.size // 10)].mean()),
    }


def group_numbers(predictions, labels, counts, rule):
    """The accuracy of each shot group that has test images."""
    correct, images = predictions == labels, np.bincount(labels, minlength=counts.size)
    # a class mean is a mean over images that weigh one over the images of their class
    weights = np.ones(labels.size) if rule == "vl-ltr" else 1 / images[labels]
    rows = {name: members[labels] for name, members in shot_groups(counts, rule).items()}
    return {
        f"{name}_accuracy": float((weights * correct)[inside].sum() / weights[inside].sum())
        for name, inside in rows.items()
        if inside.any()
    }


def shot_groups(counts, rule):
    """Masks [C] of many, medium and few, and of the rule's further groups."""
    if rule.startswith("custom:"):
        high, low, further = *custom_limits(rule), {}
    elif rule in RULES:
        high, low, further = RULES[rule]
    else:
        raise ValueError(f"unknown rule '{rule}': use {', '.join(RULES)} or custom:HI,LO")
    many, few = counts > high, counts < low
    groups = {"many": many, "medium": ~(many | few), "few": few}
    return groups | {name: counts <= most for name, most in further.items()}


def custom_limits(rule):
    """HI and LO of "custom:HI,LO"; LO at most HI, so that no class is in both groups."""
    try:
        high, low = (int(limit) for limit in rule.removeprefix("custom:").split(","))
    except ValueError as error:
        raise ValueError(f"rule '{rule}' needs two integers: custom:HI,LO, as in custom:100,20") from error
    if not 0 <= low <= high:
        raise ValueError(f"rule '{rule}' needs 0 <= LO <= HI: many is above HI, few is below LO")
    return high, low


def whole(values, noun):
    """Whole numbers as int64 [N]."""
    numbers = np.asarray(values)
    if numbers.ndim != 1 or not np.isfinite(numbers).all() or (numbers != np.floor(numbers)).any():
        raise ValueError(f"{noun} must be a list of whole numbers")
    return numbers.astype(np.int64)
