# SPDX-License-Identifier: MIT
"""Log-sum-exps over the rows and the columns of a matrix of similarities that is never kept.

For queries q [N, D] and keys k [U, D], s_iu = q_i . k_u: rows_i = log sum_u m_u exp(s_iu) and
columns_u = log sum_i exp(s_iu). The backward pass recomputes s tile by tile, so memory is O((N + U) D + tile) and
work is 8 N U D floating-point operations: one product forward, three backward.

Where the queries are split over processes, rows are final and columns are the log-add-exp of all processes'.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .backend import kernels_for
from .derivatives import first_derivative_only
from .products import add_weighed_rows, inner_products

# One exponential around a common shift serves rows and columns while the logits of a tile lie this close
# together: in float32 every factor stays within exp(-50) and N exp(50), with room for gradients of size 1/N.
SHARED_SHIFT_SPAN = {torch.float32: 100.0, torch.float64: 1200.0}

# A tile stays in a CPU's cache; an accelerator wants few large ones.
TILE_BYTES_CPU = 8 << 20
TILE_BYTES_ACCELERATOR = 256 << 20


def two_sided_log_sum_exp(
    queries: Tensor, keys: Tensor, multiplicity: Tensor, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the rows and over the columns of ``queries @ keys.T``, which is never kept.

    rows_i = log sum_u m_u exp(q_i . k_u), columns_u = log sum_i exp(q_i . k_u).

    Args:
        queries: [N, D], float32 or float64.
        keys: [U, D], same dtype.
        multiplicity: [U] non-negative, not all zero, same dtype; no gradient.
        chunk_size: queries in a tile; None takes a default by memory.

    Returns:
        rows [N] and columns [U], in float64 where the device has it: a softmax is only as exact as its logarithm,
        whose rounding grows with tau. They are right wherever the logits lie: a tile whose logits spread too far for
        float32 is taken in float64, and beyond that by the maxima of its rows and columns.
    """
    rows, columns = log_sums(queries, keys, multiplicity, chunk_size)
    return log_sums_with_gradient(queries, keys, multiplicity, rows, columns, chunk_size)


@torch.no_grad()
def log_sums(
    queries: Tensor, keys: Tensor, multiplicity: Tensor, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The values of `two_sided_log_sum_exp` without gradients; no own queries (N = 0) give columns of -inf."""
    kernels = kernels_for(queries)
    if kernels is not None:
        return kernels.log_sums(queries, keys, multiplicity, chunk_size)
    wide = widest(queries)
    rows, columns = (queries.new_full((len(vectors),), -torch.inf, dtype=wide) for vectors in (queries, keys))
    for part, block, tile, shift in _tiles(queries, keys, chunk_size):
        if shift is None:
            tile = tile.to(wide)
            tile_rows, tile_columns = (tile + multiplicity[block].log()).logsumexp(1), tile.logsumexp(0)
        else:
            tile.exp_()
            tile_rows = (tile @ multiplicity[block].to(tile.dtype)).to(wide).log_().add_(shift)
            tile_columns = tile.sum(0).to(wide).log_().add_(shift)
        rows[part] = torch.logaddexp(rows[part], tile_rows)
        columns[block] = torch.logaddexp(columns[block], tile_columns)
    return rows, columns


def log_sums_with_gradient(
    queries: Tensor, keys: Tensor, multiplicity: Tensor, rows: Tensor, columns: Tensor, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """`rows` and `columns`, values of `log_sums`, as functions of queries and keys.

    The gradient is what the own queries contribute, so `columns` must be those of all processes.
    """
    return _LogSums.apply(queries, keys, multiplicity, rows, columns, chunk_size or 0)


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, queries: Tensor, keys: Tensor, multiplicity: Tensor, rows: Tensor, columns: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(queries, keys, multiplicity, rows, columns)
        # the backward pass may run in another thread, which does not see what this one has asked for
        ctx.chunk_size, ctx.kernels = size, kernels_for(queries)
        return rows.clone(), columns.clone()

    @staticmethod
    @first_derivative_only
    def backward(
        ctx: FunctionCtx, rows_gradient: Tensor, columns_gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        queries, keys, multiplicity, *sums = ctx.saved_tensors
        need_queries, need_keys = ctx.needs_input_grad[:2]
        wanted = queries if need_keys else None, keys if need_queries else None
        compute = weighted_sums if ctx.kernels is None else ctx.kernels.weighted_sums
        with full_precision(queries):
            scales = rows_gradient, columns_gradient
            gradients = compute(queries, keys, multiplicity, *sums, *scales, *wanted, ctx.chunk_size)
        return *gradients, None, None, None, None


def weighted_sums(
    queries: Tensor,
    keys: Tensor,
    multiplicity: Tensor,
    rows: Tensor,
    columns: Tensor,
    row_scale: Tensor,
    column_scale: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    chunk_size: int | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """W @ right and W.T @ left, W_iu = row_scale_i m_u exp(s_iu - rows_i) + column_scale_u exp(s_iu - columns_u).

    s = queries @ keys.T, of which tiles are computed anew and not kept. With left = queries, right = keys and the
    gradients of rows and columns as scales these are the gradients of `log_sums`. Plain torch; no gradient.

    Args:
        queries, keys, multiplicity, chunk_size: as in `two_sided_log_sum_exp`.
        rows, columns: what `log_sums` gives; columns may be those of more queries than these.
        row_scale, column_scale: [N] and [U].
        left: [N, E], or None: the second result is not wanted. right: [U, E], likewise for the first.

    Returns:
        [N, E] and [U, E].
    """
    for_rows = None if right is None else right.new_zeros(len(queries), right.shape[1])
    for_columns = None if left is None else left.new_zeros(len(keys), left.shape[1])
    for part, block, tile, shift in _tiles(queries, keys, chunk_size):
        scales = row_scale[part], column_scale[block], multiplicity[block]
        weights = _tile_weights(tile, shift, (rows[part], columns[block]), scales)
        if for_rows is not None:
            for_rows[part].add_(inner_products(weights, right[block].T))
        if for_columns is not None:
            add_weighed_rows(for_columns[block], weights, left[part])
    return for_rows, for_columns


def _tiles(queries: Tensor, keys: Tensor, size: int | None) -> Iterator[tuple[slice, slice, Tensor, float | None]]:
    """Parts of queries and of keys, their logits [n, w] less a shift, and the shift, as `_less_shift` says."""
    height, width = _tile_shape(queries, keys, size)
    # by Cauchy and Schwarz most often no logit is so large as to be looked at
    largest = queries.norm(dim=1).amax() * keys.norm(dim=1).amax() if len(queries) else 0.0
    near = 2.0 * float(largest) <= SHARED_SHIFT_SPAN[keys.dtype]
    for left, top in product(range(0, len(keys), width), range(0, len(queries), height)):
        part, block = slice(top, top + height), slice(left, left + width)
        tile = inner_products(queries[part], keys[block])
        yield part, block, *((tile, 0.0) if near else _less_shift(tile))


def _tile_shape(queries: Tensor, keys: Tensor, size: int | None) -> tuple[int, int]:
    """Queries and keys in a tile, at most about eight times as high as wide: few vectors are read for many logits."""
    budget = TILE_BYTES_CPU if queries.device.type == "cpu" else TILE_BYTES_ACCELERATOR
    numbers = budget // queries.element_size()
    blocks = math.ceil(len(keys) / math.sqrt(numbers / 8))
    width = math.ceil(len(keys) / max(1, blocks)) or 1
    return size or max(1, numbers // width), width


def _less_shift(tile: Tensor) -> tuple[Tensor, float | None]:
    """The tile less about the middle of its range, and that; in float64 where the range is too wide for float32.

    As it is, and None, where one shift cannot serve every row and column.
    """
    low, high = torch.stack(tile.aminmax()).tolist()
    for dtype in (tile.dtype, widest(tile)):
        # nan and infinite logits are in no range
        if high - low <= SHARED_SHIFT_SPAN[dtype]:
            shift = float(round(0.5 * (low + high)))  # a whole number is the same in every dtype
            return tile.to(dtype).sub_(shift), shift
    return tile, None


def _tile_weights(tile: Tensor, shift: float | None, sums: tuple[Tensor, ...], scales: tuple[Tensor, ...]) -> Tensor:
    """r_i m_u exp(s_iu - rows_i) + c_u exp(s_iu - columns_u) [n, w], scales (r, c, m); the tile is spent."""
    (rows, columns), (row_scale, column_scale, multiplicity) = sums, scales
    if shift is None:
        row_softmax = (tile + (multiplicity.log() - rows[:, None])).exp_().mul_(row_scale[:, None])
        return (row_softmax + (tile - columns).exp_().mul_(column_scale)).to(tile.dtype)
    row_factor = (row_scale * (shift - rows).exp()).to(tile.dtype)
    column_factor = (column_scale * (shift - columns).exp()).to(tile.dtype)
    factors = torch.addcmul(column_factor, row_factor[:, None], multiplicity.to(tile.dtype))
    return tile.exp_().mul_(factors).to(multiplicity.dtype)


def expected_logits(
    teacher_queries: Tensor,
    teacher_keys: Tensor,
    teacher_rows: Tensor,
    teacher_columns: Tensor,
    queries: Tensor,
    keys: Tensor,
    multiplicity: Tensor,
    chunk_size: int | None = None,
) -> Tensor:
    """sum_iu W_iu q_i . k_u over the own queries i, W the teacher's row softmax plus its column softmax.

    The teacher's log-sums are those of `log_sums` (columns of all processes); multiplicities are within W.
    """
    kernels = kernels_for(teacher_queries)
    compute = weighted_sums if kernels is None else kernels.weighted_sums
    with torch.no_grad():
        sums = teacher_rows, teacher_columns, torch.ones_like(teacher_rows), multiplicity
        keys_sum, queries_sum = compute(teacher_queries, teacher_keys, multiplicity, *sums, queries, keys, chunk_size)
    # The sum is bilinear: its value is taken once, its gradient from either side.
    return (queries * keys_sum).sum(dtype=widest(queries)) + ((keys - keys.detach()) * queries_sum).sum()


def widest(tensor: Tensor) -> torch.dtype:
    """float64 where the tensor's device has it."""
    return tensor.dtype if tensor.device.type == "mps" else torch.float64


def full_precision(tensor: Tensor) -> torch.autocast:
    """A context without autocast on the tensor's device: logits of size tau need more than bfloat16's 8 bits."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)
