"""What the losses over all pairs of a batch share: unit vectors, sums over classes, tiles of similarities.

Shapes: `N` rows of the batch, `n` of them that one process is in charge of, `U` unique texts, `D` width.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_vlr.modeling.log_sums import TILE_BYTES_ACCELERATOR, TILE_BYTES_CPU


def unit_vectors(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows [N, D] over their L2 norms, as `dtype`."""
    return normalize(features.to(dtype), dim=-1)


def wide_dtype(*features: Tensor) -> torch.dtype:
    """What a loss is computed in: float32, or float64 where any of the features are."""
    dtype = torch.float32
    for tensor in features:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def place_of_class(labels: Tensor, own: Tensor | None = None) -> Tensor:
    """A number in [0, N) for the class of each row [N], the same for the rows of one class and of no other.

    labels: [N] classes >= 0, or -1: the row's class is its own, or that of all rows with label -1 and its number in
    `own` [N]. The result has the shape of the labels whatever the number of classes.
    """
    if own is None:
        own = torch.arange(len(labels), device=labels.device)
    # a class is known by the place of its first member in sorted order
    labels = torch.where(labels < 0, labels.max() + 1 + own, labels)
    return torch.searchsorted(labels.sort().values, labels)


def class_sums(vectors: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the vectors [N, D] of each class, at its place [N, D], and how many there are [N]."""
    counts = vectors.new_zeros(len(place)).index_add_(0, place, vectors.new_ones(len(place)))
    return torch.zeros_like(vectors).index_add(0, place, vectors), counts


def rows_per_tile(queries: Tensor, keys: Tensor, chunk_size: int | None) -> int:
    """Queries in a tile: `chunk_size`, or as many as take a few MiB of similarities (more on an accelerator)."""
    budget = TILE_BYTES_CPU if queries.device.type == "cpu" else TILE_BYTES_ACCELERATOR
    return chunk_size or max(1, budget // (len(keys) * queries.element_size()))


def check_batch(
    labels: Tensor, logit_scale: Tensor, rows: Tensor | None, chunk_size: int | None, **numbers: Tensor | None
) -> None:
    """Raise `ValueError` for labels, a scale, rows, a chunk size or further [N] numbers that no batch can have."""
    if labels.ndim != 1 or len(labels) == 0 or labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"labels must be [N] integers, not empty; got {labels.dtype} {tuple(labels.shape)}")
    if int(labels.min()) < -1:
        raise ValueError(f"labels must be -1 (no class) or a class >= 0, got {int(labels.min())}")
    if logit_scale.numel() != 1:
        raise ValueError(f"logit_scale must be one number, got shape {tuple(logit_scale.shape)}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if rows is not None:
        check_places("rows", rows, len(labels))
    for name, values in numbers.items():
        if values is not None and tuple(values.shape) != tuple(labels.shape):
            raise ValueError(f"{name} must hold {len(labels)} integers, got shape {tuple(values.shape)}")


def check_places(name: str, places: Tensor, size: int) -> None:
    """Raise `ValueError` unless `places` are integers in [0, size), in one dimension."""
    if places.ndim != 1 or places.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} must be integers in one dimension, got {places.dtype} {tuple(places.shape)}")
    if len(places) == 0:
        return
    low, high = torch.stack(places.aminmax()).tolist()
    if low < 0 or high >= size:
        raise ValueError(f"{name} must lie in [0, {size}), got {low} to {high}")
