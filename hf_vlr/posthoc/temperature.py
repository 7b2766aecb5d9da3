"""Temperature scaling (Guo et al., ICML 2017, §4.2)."""

import numpy as np
import numpy.typing as npt

from hf_vlr.errors import UserError
from hf_vlr.posthoc.scores import (
    Floats,
    Ints,
    balanced_weights,
    checked_labels,
    checked_scores,
    normalise,
    row_chunks,
)

BOUNDS = (1e-3, 1e3)
_TOLERANCE = 1e-8
_MAX_STEPS = 100


def fit(scores: npt.ArrayLike, labels: npt.ArrayLike, balanced: bool = False) -> float:
    """The T > 0 with the lowest mean −log softmax(z / T)_label of scores z [N, C] and labels [N].

    The loss is convex in β = 1/T; its slope, mean(Σ_c p_c z_c − z_label), is brought to zero by Newton steps in log β,
    with bisection where a step would leave the interval known to hold the root. T lies in `BOUNDS`: scores that are
    right for every image have no best T above 0 and get the lower bound, scores worse than chance the upper one. With
    `balanced` each class counts the same, whatever its number of images. Where no T is better than another (one class,
    equal scores) it is 1. Raises `UserError` for arrays that do not fit.
    """
    scores = checked_scores(scores)
    labels = checked_labels(labels, scores.shape)
    if (scores[np.arange(len(labels)), labels] == scores.max(axis=1)).all():
        return BOUNDS[0] if np.ptp(scores, axis=1).any() else 1.0
    weights = balanced_weights(labels) if balanced else np.full(len(labels), 1.0 / len(labels))
    low, high = -np.log(BOUNDS[1]), -np.log(BOUNDS[0])
    # the sign of a slope that points beyond, and the temperature that is returned then
    ends = {low: (1, BOUNDS[1]), high: (-1, BOUNDS[0])}
    log_inverse = 0.0
    for _ in range(_MAX_STEPS):
        inverse = float(np.exp(log_inverse))
        slope, curvature = _derivatives(scores, labels, weights, inverse)
        beyond, bound = ends.pop(log_inverse, (0, 1.0))
        if beyond * slope > 0:
            return bound
        if slope == 0.0:
            break
        low, high = (log_inverse, high) if slope < 0 else (low, log_inverse)
        # Newton's step in β, taken as a share of β
        proposed = log_inverse - slope / (curvature * inverse) if curvature > 0 else -np.sign(slope) * np.inf
        if not low < proposed < high:
            near = low if proposed <= low else high
            proposed = near if near in ends else 0.5 * (low + high)
        if abs(proposed - log_inverse) < _TOLERANCE:
            break
        log_inverse = proposed
    return float(np.clip(np.exp(-log_inverse), *BOUNDS))


def scaled(scores: npt.ArrayLike, temperature: float) -> Floats:
    """log softmax(z / T) of scores z [N, C], in their dtype. Raises `UserError` for a T outside `BOUNDS`."""
    if not BOUNDS[0] <= temperature <= BOUNDS[1]:
        raise UserError(
            f"temperature is {temperature}: give a positive number between {BOUNDS[0]:g} and {BOUNDS[1]:g}, 1 changes "
            "nothing"
        )
    scores = checked_scores(scores)
    result = np.empty(scores.shape, dtype=np.promote_types(scores.dtype, np.float32))
    for rows in row_chunks(*scores.shape):
        result[rows] = normalise(scores[rows].astype(np.float64) / temperature)
    return result


def _derivatives(scores: Floats, labels: Ints, weights: Floats, inverse: float) -> tuple[float, float]:
    """First and second derivative of the weighted loss by β = 1/T."""
    slope = curvature = 0.0
    for rows in row_chunks(*scores.shape):
        part = scores[rows].astype(np.float64)
        part -= part.max(axis=1, keepdims=True)
        own = part[np.arange(len(part)), labels[rows]]
        shares = np.exp(inverse * part)
        total = shares.sum(axis=1)
        mean = np.einsum("nc,nc->n", shares, part) / total
        part *= part
        square = np.einsum("nc,nc->n", shares, part) / total
        slope += float(weights[rows] @ (mean - own))
        curvature += float(weights[rows] @ (square - mean**2))
    return slope, curvature
