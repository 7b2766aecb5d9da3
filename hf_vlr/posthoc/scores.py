"""Scores as the post-hoc methods take them: checked, and softmaxed in pieces that fit a processor's cache.

Letters: `N` images, `C` classes. Scores [N, C] are logits or log-probabilities, known up to a constant per image.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_vlr.errors import UserError

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]

# 2 MB in float64
CHUNK_NUMBERS = 2**18


def shifted_log_softmax(scores: npt.ArrayLike, shift: npt.ArrayLike = 0.0) -> Floats:
    """log softmax(z + s) of scores z [N, C] and a shift s, [C] or one number.

    Computed in float64; the result is float64 for float64 and integer scores, float32 for narrower ones. Raises
    `UserError` as `checked_scores` does.
    """
    scores = checked_scores(scores)
    shift = np.asarray(shift, dtype=np.float64)
    result = np.empty(scores.shape, dtype=np.promote_types(scores.dtype, np.float32))
    for rows in row_chunks(*scores.shape):
        result[rows] = normalise(scores[rows] + shift)
    return result


def shifted_log_softmax_reference(scores: npt.ArrayLike, shift: npt.ArrayLike = 0.0) -> Floats:
    """The same at once, in float64."""
    shifted = np.asarray(scores, dtype=np.float64) + shift
    return shifted - np.logaddexp.reduce(shifted, axis=1, keepdims=True)


def normalise(part: Floats) -> Floats:
    """log softmax of some rows [n, C] in float64, which are changed in place where they are float64 already."""
    part = part.astype(np.float64, copy=False)
    part -= part.max(axis=1, keepdims=True)
    part -= np.log(np.exp(part).sum(axis=1, keepdims=True))
    return part


def row_chunks(num_images: int, num_classes: int) -> Iterator[slice]:
    """The rows of an array [N, C] in consecutive slices of about `CHUNK_NUMBERS` numbers."""
    step = max(1, CHUNK_NUMBERS // max(1, num_classes))
    for start in range(0, num_images, step):
        yield slice(start, min(start + step, num_images))


def checked_scores(scores: npt.ArrayLike, name: str = "scores") -> Floats:
    """Scores as a floating array [N, C]; raises `UserError` for another shape, no number, and numbers not finite."""
    array = np.asarray(scores)
    if array.ndim != 2 or not array.size:
        raise UserError(f"{name} have shape {array.shape}: give one row per image, one column per class")
    if not np.issubdtype(array.dtype, np.floating):
        if not np.issubdtype(array.dtype, np.integer):
            raise UserError(f"{name} are {array.dtype}: give real numbers, logits or log-probabilities")
        array = array.astype(np.float64)
    for rows in row_chunks(*array.shape):
        finite = np.isfinite(array[rows])
        if not finite.all():
            image = rows.start + int((~finite).any(axis=1).argmax())
            raise UserError(f"{name} of image {image} are NaN or infinite: give finite logits or log-probabilities")
    return array


def checked_labels(labels: npt.ArrayLike, shape: tuple[int, int]) -> Ints:
    """Labels as int64 [N] of scores of that shape; raises `UserError` for others, and for a class not in 0 … C-1."""
    array, (num_images, num_classes) = np.asarray(labels), shape
    if array.shape != (num_images,) or not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"labels are {array.dtype} {array.shape} for {num_images} images: give one integer per image")
    outside = (array < 0) | (array >= num_classes)
    if outside.any():
        image = int(outside.argmax())
        raise UserError(f"label {array[image]} of image {image} is outside 0..{num_classes - 1}: check the classes")
    return array.astype(np.int64)


def balanced_weights(labels: Ints) -> npt.NDArray[np.float64]:
    """Weights [N] that sum to 1 and give each class of labels [N] as much as any other."""
    counts = np.bincount(labels)
    return 1.0 / (counts[labels] * np.count_nonzero(counts))
