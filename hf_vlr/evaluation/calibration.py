"""Calibration: does a confidence of p mean to be right in a share p of the cases (Guo et al., ICML 2017).

Shapes: N images, B bins. Confidences, the highest probabilities of each image, fall into B bins of equal width,
right-closed: bin b holds (b/B, (b+1)/B].
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from hf_vlr.evaluation.outcome import Floats, Ints

BINS = 15


def calibration_errors(confidence: Floats, correct: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """(ECE, MCE) of confidences [N] in (0, 1], both fractions.

    ECE = Σ_b |Σ_{i in b} (confidence_i − correct_i)| / N; MCE = the largest gap of a bin that holds images,
    |mean confidence − accuracy|. N must not be 0.
    """
    images, gaps = _totals(confidence, confidence - correct)
    held = images > 0
    return float(np.abs(gaps).sum() / confidence.size), float((np.abs(gaps[held]) / images[held]).max())


def reliability(confidence: Floats, correct: npt.NDArray[np.bool_]) -> dict[str, list[Any]]:
    """The points of a reliability diagram: mean `confidence`, `accuracy` and `images` of each bin.

    Lists of length B; confidence and accuracy are None in a bin without images.
    """
    images, confidences = _totals(confidence, confidence)
    _, hits = _totals(confidence, correct)

    def means(sums: Floats) -> list[float | None]:
        return [float(total / count) if count else None for total, count in zip(sums, images)]

    return {"confidence": means(confidences), "accuracy": means(hits), "images": images.tolist()}


def _totals(confidence: Floats, values: npt.NDArray[Any]) -> tuple[Ints, Floats]:
    """Images and the sum of `values` in each bin."""
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return np.bincount(bins, minlength=BINS), np.bincount(bins, weights=values, minlength=BINS)
