"""Class priors: the share of each class in the training or the test images."""

import numpy as np
import numpy.typing as npt

from hf_vlr.errors import UserError

Prior = npt.NDArray[np.float64]
LARGEST_POWER = 100.0


def from_counts(train_counts: npt.ArrayLike, power: float = 1.0) -> Prior:
    """π_c = max(n_c, 1)^p / Σ_k max(n_k, 1)^p of training images n per class [C] and a power p, float64.

    A class without training images counts as one image: log π is finite, and no class is rarer than a class of one.
    p = 1: the shares of the training images; ½: of classes drawn in proportion to √n; 0: uniform. Raises `UserError`
    for negative counts, where no class has an image, and for a power beyond ±100.
    """
    counts = np.asarray(train_counts)
    if counts.ndim != 1 or not counts.size or not np.issubdtype(counts.dtype, np.number):
        raise UserError(f"train counts are {counts.dtype} {counts.shape}: give one number of images per class")
    counts = counts.astype(np.float64)
    if not np.isfinite(counts).all() or counts.min() < 0:
        raise UserError("train counts must not be negative: give the number of training images of each class")
    if not counts.any():
        raise UserError("no class has training images: there is no training prior to correct for")
    with np.errstate(over="ignore"):
        raised = np.maximum(counts, 1.0) ** checked_power(power, "power")
        total = raised.sum()
    if not np.isfinite(total):
        raise UserError(f"power is {power}: counts to that power are too large; give one near 1")
    return raised / total


def checked_power(power: float, name: str) -> float:
    """A power of class shares or lengths; raises `UserError` beyond ±100, where numbers overflow."""
    if not abs(power) <= LARGEST_POWER:
        raise UserError(
            f"{name} is {power}: give a finite number of at most {LARGEST_POWER:g}, 1 for the whole correction"
        )
    return float(power)


def checked_prior(prior: npt.ArrayLike, num_classes: int, name: str, positive: bool = False) -> Prior:
    """A prior [C] divided by its sum; raises `UserError` for another length and for negative numbers.

    With `positive` also for a zero: scores that were trained without a class say nothing of how often it occurs.
    """
    array = np.asarray(prior, dtype=np.float64)
    if array.shape != (num_classes,):
        raise UserError(f"the {name} has shape {array.shape} for {num_classes} classes: give one number per class")
    if not np.isfinite(array).all() or array.min() < 0 or not array.any():
        raise UserError(f"the {name} must hold shares of classes, none negative, not all zero")
    if positive and array.min() == 0:
        empty = int(array.argmin())
        raise UserError(f"the {name} of class {empty} is 0: give counts, where an empty class counts as one image")
    return array / array.sum()
