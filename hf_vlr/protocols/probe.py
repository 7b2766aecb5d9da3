"""The probe: multinomial logistic regression on frozen features (scikit-learn).

Letters: `N` images, `C` classes, `D` width.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_vlr.errors import UserError
from hf_vlr.evaluation.predictors import log_softmax
from hf_vlr.randomness import numpy_generator

# the probability of a class that the probe has seen no image of
UNSEEN = 1e-12
# what a choice maximises, in words
CHOSEN_BY = {"balanced": "mean class accuracy", "accuracy": "accuracy"}


@dataclass(frozen=True)
class ProbeData:
    """Images to fit on or to measure: features float `[N, D]` and labels int `[N]`."""

    features: np.ndarray
    labels: np.ndarray

    def take(self, rows: np.ndarray) -> "ProbeData":
        """The images at `rows`."""
        return ProbeData(self.features[rows], self.labels[rows])

    def joined(self, other: "ProbeData") -> "ProbeData":
        """These images and the other's."""
        return ProbeData(np.concatenate([self.features, other.features]), np.concatenate([self.labels, other.labels]))


@dataclass(frozen=True)
class Probe:
    """A fitted probe over C classes, and whether L-BFGS reached its tolerance."""

    model: Any
    num_classes: int
    converged: bool

    def log_probabilities(self, features: np.ndarray) -> np.ndarray:
        """float32 `[N, C]`; log `UNSEEN` for classes without an image in the fit, and at least that for others."""
        found = np.full((len(features), self.num_classes), np.log(UNSEEN), dtype=np.float32)
        logits = self.model.decision_function(features)
        if logits.ndim == 1:
            # of two classes scikit-learn gives the logit of the second
            logits = np.stack([np.zeros_like(logits), logits], axis=1)
        found[:, self.model[-1].classes_] = np.maximum(log_softmax(logits), np.log(UNSEEN))
        return found


def fit_probe(
    data: ProbeData,
    num_classes: int,
    C: float,
    *,
    features: str = "unit",
    class_weight: str = "none",
    max_iter: int = 1000,
) -> Probe:
    """Minimise Σ_i w_i · −log softmax(W x_i + b)[y_i] + ‖W‖² / (2 C) by L-BFGS; the intercept b is not penalised.

    features: what x is made of the given ones; "unit" divides by the norm, "standard" brings each dimension to mean 0
    and deviation 1 over these very images, "raw" takes them as they are. class_weight: "balanced" weighs an image of a
    class of n by N / (classes · n), "none" by 1. Raises `UserError` for images of fewer than two classes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

    if len(np.unique(data.labels)) < 2:
        raise UserError("a linear probe needs images of two classes at least; check the training split")
    steps = {"unit": [Normalizer()], "standard": [StandardScaler()], "raw": []}[features]
    weight = None if class_weight == "none" else class_weight
    model = make_pipeline(*steps, LogisticRegression(C=C, max_iter=max_iter, class_weight=weight))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(data.features, data.labels)
    stopped = any(issubclass(one.category, ConvergenceWarning) for one in said)
    return Probe(model, num_classes, not stopped)


def draw_shots(labels: np.ndarray, shots: int, seed: int, use: str) -> np.ndarray:
    """Rows of at most `shots` images of each class, rising; 0 for all.

    A draw of fewer shots is part of a draw of more with the same seed and `use`; a class of fewer images gives all.
    """
    if shots == 0:
        return np.arange(len(labels))
    order = numpy_generator(seed, 0, 0, f"shots/{use}").permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(by_class[place < shots])


def class_mean_accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that occur in `labels` of the share of their images that are right."""
    counts = np.bincount(labels)
    hits = np.bincount(labels[predictions == labels], minlength=len(counts))
    return float((hits[counts > 0] / counts[counts > 0]).mean())


def chosen_score(predictions: np.ndarray, labels: np.ndarray, choose_by: str) -> float:
    """What a choice maximises: "balanced" the mean class accuracy, "accuracy" the share of images that are right."""
    return (
        class_mean_accuracy(predictions, labels) if choose_by == "balanced" else float((predictions == labels).mean())
    )
