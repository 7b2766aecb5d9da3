"""τ-normalisation of a linear classifier (Kang et al., ICLR 2020, §4.2), on cached features.

Letters: `N` images, `C` classes, `D` width of the features.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hf_vlr.errors import UserError
from hf_vlr.posthoc.class_prior import checked_power
from hf_vlr.posthoc.scores import Floats, checked_scores, row_chunks


def normalised(weights: npt.ArrayLike, tau: float) -> npt.NDArray[np.float64]:
    """g^τ w_c / ‖w_c‖^τ of the rows of a classifier's weights [C, D], g the geometric mean of the ‖w_c‖; float64.

    τ = 0 leaves the weights, τ = 1 gives all rows the length g. The common factor changes no prediction; it keeps the
    logits at the scale they were trained to have, and with it the probabilities. A zero row stays. Raises `UserError`
    for weights that are no finite matrix, a τ beyond ±100, and weights that it makes too long for float64.
    """
    checked_power(tau, "tau")
    weights = checked_scores(weights, "classifier weights").astype(np.float64)
    with np.errstate(over="ignore"):
        made = weights * np.exp(tau * _log_factors(weights))[:, None]
    if not np.isfinite(made).all():
        raise UserError(f"tau is {tau}: the weights become too long; give a smaller one, 1 for rows of one length")
    return made


def logits(features: npt.ArrayLike, weights: npt.ArrayLike, bias: npt.ArrayLike | None = None) -> Floats:
    """x W^T + b of features x [N, D], weights [C, D] and a bias [C] or none; computed in float64, given as float32.

    The bias is for the classifier as it was trained; τ-normalised weights go without one, as in the paper.
    Raises `UserError` for arrays that do not fit.
    """
    features, weights = _checked(features, weights)
    offset = np.zeros(len(weights)) if bias is None else np.asarray(bias, dtype=np.float64)
    if offset.shape != (len(weights),):
        raise UserError(f"the bias has shape {offset.shape} for {len(weights)} classes: give one number per class")
    result = np.empty((len(features), len(weights)), dtype=np.float32)
    for rows in row_chunks(*result.shape):
        result[rows] = features[rows].astype(np.float64) @ weights.T + offset
    return result


def candidates(features: npt.ArrayLike, weights: npt.ArrayLike) -> Callable[[slice], Callable[[float], Floats]]:
    """The logits of some rows under τ-normalised weights as a function of τ; for `tuning.search`."""
    features, weights = _checked(features, weights)
    factors = _log_factors(weights)

    def of_rows(rows: slice) -> Callable[[float], Floats]:
        plain = features[rows].astype(np.float64) @ weights.T
        return lambda tau: plain * np.exp(tau * factors)

    return of_rows


def _log_factors(weights: Floats) -> Floats:
    """log g − log ‖w_c‖ [C]; a zero row counts as one of length 1, as it has no direction to keep."""
    norms = np.linalg.norm(weights, axis=1)
    logs = np.log(np.where(norms > 0, norms, 1.0))
    return logs.mean() - logs


def _checked(features: npt.ArrayLike, weights: npt.ArrayLike) -> tuple[Floats, npt.NDArray[np.float64]]:
    features = checked_scores(features, "features")
    weights = checked_scores(weights, "classifier weights").astype(np.float64)
    if features.shape[1] != weights.shape[1]:
        raise UserError(
            f"features of width {features.shape[1]} for weights of width {weights.shape[1]}: give what the last layer "
            "sees, [images, width], and its weight, [classes, width]"
        )
    return features, weights
