"""What the parts of a report share: the test set by class and group, and what each predictor said of it.

Letters: N images, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_vlr.data.shots import SHOT_NAMES, ShotRule, shot_groups
from hf_vlr.errors import UserError
from hf_vlr.evaluation.main_predictor import main_of
from hf_vlr.evaluation.predictions import Predictions

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class View:
    """Predictions and their metrics, seen by class.

    `predicted`: by predictor the predicted classes [N], of those in the document that have scores of their own.
    """

    predictions: Predictions
    document: Mapping[str, Any]
    predicted: Mapping[str, Ints]

    @classmethod
    def of(cls, predictions: Predictions, document: Mapping[str, Any]) -> "View":
        """Raises `UserError` where the document and the predictions have no predictor in common."""
        names = [name for name in document["predictors"] if name in predictions.scores]
        if not names:
            raise UserError(
                f"the metrics are of {', '.join(document['predictors'])}, the predictions of "
                f"{', '.join(predictions.scores)}: report a document with its own predictions"
            )
        return cls(predictions, document, {name: predicted_classes(predictions.scores[name]) for name in names})

    @property
    def main(self) -> str:
        """The predictor that the report is about, see `hf_vlr.evaluation.main_predictor`."""
        return main_of(self.predicted, self.document["protocol"])

    @cached_property
    def rule(self) -> ShotRule:
        stated = dict(self.document["protocol"]["rule"])
        return ShotRule(**stated | {"at_most": tuple((name, most) for name, most in stated["at_most"])})

    @cached_property
    def groups(self) -> dict[str, Bools]:
        """Masks [C] of many, medium and few, which are a partition."""
        found = shot_groups(self.predictions.train_counts, self.rule)
        return {name: found[name] for name in SHOT_NAMES}

    @cached_property
    def shots(self) -> list[str]:
        """The group of each class, C strings."""
        return np.select([self.groups[name] for name in SHOT_NAMES], SHOT_NAMES, default="").tolist()

    @cached_property
    def images(self) -> Ints:
        """Test images of each class [C]."""
        return np.bincount(self.predictions.labels, minlength=self.predictions.num_classes)

    @cached_property
    def order(self) -> Ints:
        """The classes by falling number of training images, ties by label."""
        return np.argsort(-self.predictions.train_counts, kind="stable")

    def correct(self, predictor: str) -> Bools:
        """Whether each image is right [N]."""
        return self.predicted[predictor] == self.predictions.labels

    def class_accuracy(self, correct: Bools) -> Floats:
        """The share of each class's images that are right [C], NaN without images; `correct` [N]."""
        hits = np.bincount(self.predictions.labels[correct], minlength=self.predictions.num_classes)
        return np.divide(hits, self.images, out=np.full(hits.size, np.nan), where=self.images > 0)

    def group_accuracy(self, correct: Bools) -> dict[str, float | None]:
        """The accuracy of many, medium and few, averaged as the rule says; None for a group without images."""
        by_class = self.class_accuracy(correct)
        weights = np.where(self.images > 0, 1 if self.rule.averaging == "class" else self.images, 0)
        found: dict[str, float | None] = {}
        for name, members in self.groups.items():
            tested = members & (self.images > 0)
            found[name] = float(np.average(by_class[tested], weights=weights[tested])) if tested.any() else None
        return found

    def scored(self) -> list[str]:
        """The predictors that gave scores, not only classes."""
        return [name for name in self.predicted if self.document["predictors"][name]["nll"] is not None]


def predicted_classes(scores: npt.NDArray[Any]) -> Ints:
    """The class of the highest score, ties to the lower one, int64 [N]; from scores [N, C] or classes [N]."""
    return scores.astype(np.int64) if scores.ndim == 1 else scores.argmax(axis=1)
