"""The fusion weight α of the two branches, chosen on validation data."""

import numpy as np
import numpy.typing as npt

from hf_vlr.errors import UserError

GRID = np.linspace(0.0, 1.0, 41)


def fused_log_probabilities(
    visual: npt.NDArray[np.floating], language: npt.NDArray[np.floating], alpha: float
) -> npt.NDArray[np.floating]:
    """log(α softmax(visual) + (1 − α) softmax(language)) of log-probabilities [N, C]; exact at α = 0 and 1."""
    if alpha == 0.0:
        return language
    if alpha == 1.0:
        return visual
    return np.logaddexp(np.log(alpha) + visual, np.log1p(-alpha) + language)


def choose_fusion_weight(
    visual: npt.NDArray[np.floating], language: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]
) -> float:
    """The α in [0, 1] with the lowest class-balanced negative log-likelihood of the mixture.

    min over α of mean_c mean_{i in c} −log(α p_i + (1 − α) q_i), p and q the branches' probabilities of the label
    (`visual`, `language`: log-probabilities [N, C]). The likelihood rather than the accuracy, because a handful of
    validation images per tail class makes accuracy a step function; balanced, because the tail is what the language
    branch is for. Raises `UserError` without validation images.
    """
    if len(labels) == 0:
        raise UserError(
            "no validation images to choose the fusion weight on: set model.fusion_weight, "
            "or raise data.validation_fraction"
        )
    counts = np.bincount(labels)
    weights = 1.0 / counts[labels]
    rows = np.arange(len(labels))
    p, q = np.exp(visual[rows, labels]), np.exp(language[rows, labels])
    losses = [-(weights * np.log(np.maximum(a * p + (1 - a) * q, 1e-12))).sum() / weights.sum() for a in GRID]
    return float(GRID[int(np.argmin(losses))])
