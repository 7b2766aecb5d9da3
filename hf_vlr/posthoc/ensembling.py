"""A zero-shot and a fine-tuned model of the same classes as one predictor."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hf_vlr.errors import UserError
from hf_vlr.posthoc.class_prior import checked_prior
from hf_vlr.posthoc.scores import Floats, checked_scores, normalise, row_chunks

SPACES = ("probability", "logit")


def mixed(fine_tuned: npt.ArrayLike, zero_shot: npt.ArrayLike, weight: float, space: str = "probability") -> Floats:
    """Log-probabilities [N, C] of an ensemble; `weight` w in [0, 1] is that of the fine-tuned scores f, 1 − w of g.

    In probability space log(w softmax(f) + (1 − w) softmax(g)), the arithmetic mean, which follows whichever of the
    two is sure; in logit space log softmax(w f + (1 − w) g), the geometric mean, which follows neither where the other
    excludes it and depends on the temperatures of both. w = 0 and w = 1 give the parts. Float64 inside, the wider
    dtype of the two outside. Raises `UserError` for arrays of different shapes and a weight outside [0, 1].
    """
    if not 0.0 <= weight <= 1.0:
        raise UserError(f"weight is {weight}: give the fine-tuned model's share, between 0 and 1")
    _check_space(space)
    fine_tuned, zero_shot = _checked(fine_tuned, zero_shot)
    result = np.empty(fine_tuned.shape, dtype=_dtype(fine_tuned, zero_shot))
    for rows in row_chunks(*result.shape):
        own, other = fine_tuned[rows].astype(np.float64), zero_shot[rows].astype(np.float64)
        if space == "probability":
            result[rows] = _log_mean(normalise(own), normalise(other), weight)
        else:
            result[rows] = normalise(weight * own + (1.0 - weight) * other)
    return result


def generalised_logit_adjustment(
    fine_tuned: npt.ArrayLike, zero_shot: npt.ArrayLike, train_prior: npt.ArrayLike, zero_shot_prior: npt.ArrayLike
) -> Floats:
    """GLA (Zhu et al., NeurIPS 2023): log softmax((f − log π) + (g − log q)), float64 inside, [N, C].

    f: scores of the fine-tuned model, π the class shares that they have learnt, as counts or fractions.
    g: scores of the zero-shot model, q its label bias, `label_bias.estimate(...).prior`. Both sides are freed of their
    priors, then multiplied. Raises `UserError` for arrays that do not fit and for zeros in priors.
    """
    fine_tuned, zero_shot = _checked(fine_tuned, zero_shot)
    num_classes = zero_shot.shape[1]
    log_bias = np.log(checked_prior(zero_shot_prior, num_classes, "zero-shot prior", positive=True))
    log_bias += np.log(checked_prior(train_prior, num_classes, "train prior", positive=True))
    result = np.empty(fine_tuned.shape, dtype=_dtype(fine_tuned, zero_shot))
    for rows in row_chunks(*result.shape):
        result[rows] = normalise(fine_tuned[rows] + zero_shot[rows].astype(np.float64) - log_bias)
    return result


def candidates(
    fine_tuned: npt.ArrayLike, zero_shot: npt.ArrayLike, space: str = "probability"
) -> Callable[[slice], Callable[[float], Floats]]:
    """The ensemble of some rows as a function of the weight, for `tuning.search`.

    In probability space it is probabilities (`probabilities=True` there), in logit space logits.
    """
    _check_space(space)
    fine_tuned, zero_shot = _checked(fine_tuned, zero_shot)

    def of_rows(rows: slice) -> Callable[[float], Floats]:
        own, other = fine_tuned[rows].astype(np.float64), zero_shot[rows].astype(np.float64)
        if space == "probability":
            own, other = np.exp(normalise(own)), np.exp(normalise(other))
        return lambda weight: weight * own + (1.0 - weight) * other

    return of_rows


def _log_mean(own: Floats, other: Floats, weight: float) -> Floats:
    """log(w e^own + (1 − w) e^other), exact at both ends."""
    if weight in (0.0, 1.0):
        return own if weight else other
    own, other = own + np.log(weight), other + np.log1p(-weight)
    # numpy's logaddexp is six times slower
    return np.maximum(own, other) + np.log(1.0 + np.exp(-np.abs(own - other)))


def _check_space(space: str) -> None:
    if space not in SPACES:
        raise UserError(f"unknown space '{space}' of an ensemble: use {' or '.join(SPACES)}")


def _dtype(one: Floats, other: Floats) -> np.dtype:
    return np.result_type(one.dtype, other.dtype, np.float32)


def _checked(fine_tuned: npt.ArrayLike, zero_shot: npt.ArrayLike) -> tuple[Floats, Floats]:
    own, other = checked_scores(fine_tuned, "fine-tuned scores"), checked_scores(zero_shot, "zero-shot scores")
    if own.shape != other.shape:
        raise UserError(f"fine-tuned scores {own.shape} and zero-shot scores {other.shape}: score the same images")
    return own, other
