"""Logit adjustment after training (Menon et al., ICLR 2021, §4.1)."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hf_vlr.errors import UserError
from hf_vlr.posthoc.class_prior import checked_power, from_counts
from hf_vlr.posthoc.scores import Floats, checked_scores, shifted_log_softmax


def adjusted(scores: npt.ArrayLike, train_counts: npt.ArrayLike, tau: float = 1.0) -> Floats:
    """log softmax(z − τ log π) of scores z [N, C], π the shares of the classes in training.

    The log-probabilities [N, C] of p(c|x) π_c^−τ, renormalised: τ = 0 gives log softmax(z), τ = 1 what a model
    trained by plain cross-entropy says where all classes are equally frequent. `train_counts` [C]: training images
    per class; a class without any counts as one image (`class_prior.from_counts`). Float64 inside, the dtype of the
    scores outside. Raises `UserError` for arrays that do not fit, scores that are not finite, and a τ beyond ±100.
    """
    return shifted_log_softmax(scores, -checked_power(tau, "tau") * _log_prior(scores, train_counts))


def candidates(scores: npt.ArrayLike, train_counts: npt.ArrayLike) -> Callable[[slice], Callable[[float], Floats]]:
    """The adjusted scores of some rows as a function of τ, not normalised; for `tuning.search`."""
    scores, log_prior = checked_scores(scores), _log_prior(scores, train_counts)

    def of_rows(rows: slice) -> Callable[[float], Floats]:
        part = scores[rows].astype(np.float64)
        return lambda tau: part - tau * log_prior

    return of_rows


def _log_prior(scores: npt.ArrayLike, train_counts: npt.ArrayLike) -> Floats:
    prior = from_counts(train_counts)
    if np.ndim(scores) == 2 and prior.size != np.shape(scores)[1]:
        raise UserError(f"{prior.size} train counts for scores of {np.shape(scores)[1]} classes: give one per class")
    return np.log(prior)
