"""The class shares that a zero-shot model assumes without ever having been told (Zhu et al., NeurIPS 2023).

Contrastive pre-training has seen some classes more often than others, and its scores favour those. A few labelled
images show by how much: the bias is what has to be taken away for the scores to fit balanced classes best.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hf_vlr.posthoc.class_prior import Prior
from hf_vlr.posthoc.scores import Floats, Ints, balanced_weights, checked_labels, checked_scores, row_chunks

_TOLERANCE = 1e-6
_MAX_STEPS = 1000


@dataclass(frozen=True)
class LabelBias:
    """prior: the estimated shares [C], sums to 1. unseen: classes without a labelled image, whose share is a guess."""

    prior: Prior
    unseen: int
    iterations: int
    converged: bool


def estimate(scores: npt.ArrayLike, labels: npt.ArrayLike) -> LabelBias:
    """q that minimises the class-balanced mean of −log softmax(z − log q)_label of scores z [N, C], labels [N].

    Each class counts the same, so that the shares of the labelled images themselves play no part. The loss is convex
    in log q, and has one minimum where every class has an image: there the balanced mean of the softmax gives every
    class the same mass. A class without labelled images takes no part in the softmax and gets the geometric mean of
    the others' shares. Each step divides q by what is missing to that balance, which never raises the loss; the last
    one changes no share by more than a millionth. Float64; holds one array [N, C] of it. Raises `UserError` for arrays
    that do not fit.
    """
    scores = checked_scores(scores)
    labels = checked_labels(labels, scores.shape)
    present, weights = np.unique(labels), balanced_weights(labels)
    exponentials = _exponentials(scores, present)
    log_prior, converged, iterations = np.zeros(len(present)), False, 0
    while not converged and iterations < _MAX_STEPS:
        change = np.log(_mean_softmax(exponentials, weights, log_prior) * len(present))
        log_prior += change
        converged = bool(np.abs(change).max() < _TOLERANCE)
        iterations += 1
    whole = np.zeros(scores.shape[1])
    whole[present] = log_prior - log_prior.mean()
    prior = np.exp(whole - whole.max())
    return LabelBias(prior / prior.sum(), scores.shape[1] - len(present), iterations, converged)


def _mean_softmax(exponentials: Floats, weights: Floats, log_prior: Floats) -> Floats:
    """The weighted mean of softmax(z − log q) [C']; both products of a piece while it is in the cache."""
    factors = np.exp(log_prior.min() - log_prior)
    gathered = np.zeros(factors.size)
    for rows in row_chunks(*exponentials.shape):
        gathered += (weights[rows] / (exponentials[rows] @ factors)) @ exponentials[rows]
    return gathered * factors


def _exponentials(scores: Floats, present: Ints) -> Floats:
    """e^z of the present classes over each image's largest one, [N, C'], at least e^-700: no class is impossible."""
    result = np.empty((len(scores), len(present)))
    for rows in row_chunks(*result.shape):
        part = scores[rows][:, present].astype(np.float64)
        result[rows] = np.exp(np.maximum(part - part.max(axis=1, keepdims=True), -700.0))
    return result
