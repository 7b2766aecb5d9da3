"""The long-tail metrics as a module of the `evaluate` library, computed offline.

    from hf_vlr.metrics import LongTailAccuracy

    metric = LongTailAccuracy()
    metric.add_batch(predictions=[0, 2], references=[0, 1])
    metric.compute(train_counts=[500, 60, 4], rule="oltr")

Without `evaluate`, `hf_vlr.evaluation.metrics.evaluate_predictions` computes the same numbers from numpy arrays.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from hf_vlr.data.shots import ShotRule
from hf_vlr.errors import UserError
from hf_vlr.evaluation.metrics import evaluate_predictions

try:
    import evaluate
    from datasets import Features, Sequence, Value
except ImportError as error:
    raise ImportError(
        'hf_vlr.metrics needs the library evaluate: pip install "hf_vlr[eval]", '
        "or call hf_vlr.evaluation.metrics.evaluate_predictions, which needs numpy only"
    ) from error

DESCRIPTION = """
Accuracy on a test set whose classes were unequally frequent in training: of all images, as the mean over classes, and
over the classes with many, a medium number of and few training images.
"""
USAGE = """
Args:
    predictions: class ids, one integer per image, or scores, one list of C numbers (logits or log-probabilities)
        per image.
    references: class ids, one integer per image.
    train_counts: training images of each class, C integers; given to compute().
    rule: which classes are many, medium and few: "oltr" (more than 100, fewer than 20; default), "vl-ltr", or
        "custom:HI,LO".
Returns a flat dict of numbers, fractions in [0, 1] but for nll (nats) and brier (0 to 2):
    accuracy, balanced_accuracy, macro_f1, harmonic_mean, geometric_mean, worst_class, worst_tenth;
    many_accuracy, medium_accuracy, few_accuracy; a group without test images is left out;
    top5 (with more than 5 classes), nll, brier, ece, mce: with scores only.
"""
NUMBERS = (
    "accuracy", "balanced_accuracy", "macro_f1", "harmonic_mean", "geometric_mean", "worst_class", "worst_tenth",
    "top5", "nll", "brier", "ece", "mce",
)  # fmt: skip


class LongTailAccuracy(evaluate.Metric):
    """`evaluate.Metric` of the numbers that long-tailed recognition reports; instantiated directly, without the Hub.

    `compute(predictions=, references=, train_counts=, rule="oltr")`, `add`, `add_batch` and `evaluate.combine` work
    as with any metric; `train_counts` [C] and `rule` go to `compute`. Predictions are class ids [N], or scores
    [N, C], which are kept as float32; one or the other until `compute`. The result is flat, and holds only numbers
    that could be measured. Scores pass through `evaluate`'s tables one number at a time: of large test sets,
    `evaluate_predictions` makes the same numbers a hundred times as fast. Raises `UserError` as
    `evaluate_predictions` does, and without `train_counts`.
    """

    def _info(self) -> evaluate.MetricInfo:
        # not int64, which would cut a score of 0.7 down to class 0 and say nothing
        number = Value("float64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=USAGE,
            features=[
                Features({"predictions": Sequence(Value("float32")), "references": number}),
                Features({"predictions": number, "references": number}),
            ],
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **more: Any) -> None:
        """Add images. Raises `UserError` where there are none."""
        for noun, values in (("predictions", predictions), ("references", references)):
            if values is not None and len(values) == 0:
                raise UserError(f"no images: {noun} are empty; give one prediction and one reference for each image")
        super().add_batch(predictions=predictions, references=references, **more)

    def compute(self, *, predictions: Any = None, references: Any = None, **more: Any) -> dict[str, float] | None:
        """The numbers of the images given here and added before. Raises `UserError` where there are none."""
        if predictions is None and references is None and self.writer is None:
            raise UserError("no images: give compute() predictions and references, or add some before")
        return super().compute(predictions=predictions, references=references, **more)

    def _compute(
        self,
        predictions: npt.ArrayLike,
        references: npt.ArrayLike,
        train_counts: npt.ArrayLike | None = None,
        rule: str | ShotRule = "oltr",
    ) -> dict[str, float]:
        if train_counts is None:
            raise UserError("train_counts is missing: give compute() the training images of each class")
        labels, scores = _classes(references, "references"), _numbers(predictions, "predictions")
        scores = scores if scores.ndim == 2 else _classes(scores, "predictions")
        return flat(evaluate_predictions(scores, labels, np.asarray(train_counts), rule))


def flat(entry: dict[str, Any]) -> dict[str, float]:
    """The headline numbers of an entry of `metrics.json` and its groups' accuracies, without those that are None."""
    groups = {f"{name}_accuracy": numbers["accuracy"] for name, numbers in entry["groups"].items()}
    chosen = {name: entry[name] for name in NUMBERS[:2]} | groups | {name: entry[name] for name in NUMBERS[2:]}
    return {name: value for name, value in chosen.items() if value is not None}


def _classes(values: npt.ArrayLike, noun: str) -> npt.NDArray[np.int64]:
    numbers = _numbers(values, noun)
    # a number that is none has no whole part either
    if not np.isfinite(numbers).all() or (numbers != np.floor(numbers)).any():
        raise _unfit(noun)
    return numbers.astype(np.int64)


def _numbers(values: npt.ArrayLike, noun: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError as error:
        # rows of different lengths
        raise _unfit(noun) from error


def _unfit(noun: str) -> UserError:
    return UserError(f"{noun} must be class ids, whole numbers, or predictions one list of scores for each image")
