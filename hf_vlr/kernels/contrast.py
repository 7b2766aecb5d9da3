"""Log-sum-exps over rows and columns of a matrix of similarities, and sums weighted by their softmaxes, by tiles.

With S = Q K^T [N, U] and multiplicities m [U] these are rows_i = log sum_u m_u exp(S_iu) and columns_u = log sum_i
exp(S_iu), and W K, W^T Q for W_iu = a_i m_u exp(S_iu - rows_i) + b_u exp(S_iu - columns_u), which are gradients of the
former. 2 N U D floating-point operations for the sums, 6 N U D for the weighted ones: 8 in all.

S never exists. Every tile of it takes its own maxima, so that any size of logit is safe, and leaves the sums of its
exponentials over rows and columns; those of a band of rows are combined in float64. W exists one block of BLOCK_EDGE^2
at a time. There are no atomic sums: results repeat bit for bit.

Checked in Triton's interpreter and compiled ahead of time; not run on a GPU yet.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hf_vlr.kernels.products import BLOCK, add_product, block_for, has_large_tiles, on_device, operand, row_dots

# Rows of a band, and columns of a block of weights: 64 MiB in float32, near what a GPU's second cache holds.
BLOCK_EDGE = 4096


@triton.jit
def sums_kernel(
    queries,
    keys,
    multiplicity,
    row_maxima,
    row_sums,
    column_maxima,
    column_sums,
    query_count,
    key_count,
    width,
    OPERAND: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Of one tile: each row's maximum and sum of m exp(S - maximum), and each column's, without m."""
    row_tiles = tl.cdiv(query_count, BLOCK_ROWS)
    row_tile, column_tile = tl.program_id(0) % row_tiles, tl.program_id(0) // row_tiles
    rows = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = column_tile * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    logits = row_dots(queries, keys, rows, columns, query_count, key_count, width, OPERAND, BLOCK_WIDTH)
    real_row, real_column = rows < query_count, columns < key_count

    # A text that no pair uses is no part of a row, however large its logit; a tile may hold nothing else.
    times = tl.load(multiplicity + columns, mask=real_column, other=0.0).to(tl.float32)
    row_logits = tl.where((times > 0)[None, :], logits, float("-inf"))
    maxima = tl.max(row_logits, 1)
    shift = tl.where(maxima == float("-inf"), 0.0, maxima)
    sums = tl.sum(tl.exp(row_logits - shift[:, None]) * times[None, :], 1)
    tl.store(row_maxima + column_tile.to(tl.int64) * query_count + rows, maxima, mask=real_row)
    tl.store(row_sums + column_tile.to(tl.int64) * query_count + rows, sums, mask=real_row)

    column_logits = tl.where(real_row[:, None], logits, float("-inf"))
    maxima = tl.max(column_logits, 0)
    sums = tl.sum(tl.exp(column_logits - maxima[None, :]), 0)
    tl.store(column_maxima + row_tile.to(tl.int64) * key_count + columns, maxima, mask=real_column)
    tl.store(column_sums + row_tile.to(tl.int64) * key_count + columns, sums, mask=real_column)


@triton.jit
def weights_kernel(
    queries,
    keys,
    multiplicity,
    row_log,
    row_factor,
    column_log,
    column_factor,
    weights,
    query_count,
    key_count,
    width,
    OPERAND: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """One tile of row_factor_i m_u exp(S_iu - row_log_i) + column_factor_u exp(S_iu - column_log_u)."""
    row_tiles = tl.cdiv(query_count, BLOCK_ROWS)
    row_tile, column_tile = tl.program_id(0) % row_tiles, tl.program_id(0) // row_tiles
    rows = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = column_tile * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    logits = row_dots(queries, keys, rows, columns, query_count, key_count, width, OPERAND, BLOCK_WIDTH)
    real_row, real_column = rows < query_count, columns < key_count
    times = tl.load(multiplicity + columns, mask=real_column, other=0.0).to(tl.float32)
    log = tl.load(row_log + rows, mask=real_row, other=0.0)
    factor = tl.load(row_factor + rows, mask=real_row, other=0.0)
    # The logit of an unused text may lie far above its row's log-sum: infinity times zero is not a number.
    row_logits = tl.where((times > 0)[None, :], logits - log[:, None], float("-inf"))
    total = tl.exp(row_logits) * factor[:, None] * times[None, :]
    log = tl.load(column_log + columns, mask=real_column, other=0.0)
    factor = tl.load(column_factor + columns, mask=real_column, other=0.0)
    total += tl.exp(logits - log[None, :]) * factor[None, :]
    mask = real_row[:, None] & real_column[None, :]
    place = rows.to(tl.int64)[:, None] * key_count + columns[None, :]
    tl.store(weights + place, total.to(weights.dtype.element_ty), mask=mask)


@torch.no_grad()
def log_sums(
    queries: Tensor, keys: Tensor, multiplicity: Tensor, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the rows and over the columns of ``queries @ keys.T``, without gradients.

    Args:
        queries: [N, D], float32 or bfloat16; N = 0 gives columns of -inf.
        keys: [U, D], same dtype.
        multiplicity: [U] non-negative, not all zero.
        chunk_size: queries in a band, the unit of the memory that this takes; None: `BLOCK_EDGE`.

    Returns:
        rows [N] and columns [U], float64.
    """
    queries, keys, multiplicity = queries.contiguous(), keys.contiguous(), multiplicity.contiguous()
    rows = queries.new_empty(len(queries), dtype=torch.float64)
    columns = queries.new_full((len(keys),), -torch.inf, dtype=torch.float64)
    for start in range(0, len(queries), chunk_size or BLOCK_EDGE):
        part = slice(start, start + (chunk_size or BLOCK_EDGE))
        band = queries[part]
        blocks = _blocks(band, keys)
        row_tiles, column_tiles = _tiles(band, keys, blocks)
        by_row = queries.new_empty(2, column_tiles, len(band), dtype=torch.float32)
        by_column = queries.new_empty(2, row_tiles, len(keys), dtype=torch.float32)
        sizes = len(band), len(keys), band.shape[1]
        with on_device(queries):
            sums_kernel[(row_tiles * column_tiles,)](band, keys, multiplicity, *by_row, *by_column, *sizes, **blocks)
        rows[part] = _combined(by_row)
        columns = torch.logaddexp(columns, _combined(by_column))
    return rows, columns


@torch.no_grad()
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
    """W @ right and W.T @ left, W_iu = row_scale_i m_u exp(S_iu - rows_i) + column_scale_u exp(S_iu - columns_u).

    With left = queries, right = keys and the gradients of rows and columns as scales these are the gradients of
    `log_sums` with respect to queries and keys.

    Args:
        queries, keys, multiplicity: as in `log_sums`; they make S = queries @ keys.T.
        rows, columns: what `log_sums` gives; columns may be those of more queries than these.
        row_scale, column_scale: [N] and [U].
        left: [N, E], of the dtype of queries, or None: the second result is not wanted.
        right: [U, E], likewise for the first.
        chunk_size: rows of a block of W; None: `BLOCK_EDGE`.

    Returns:
        [N, E] and [U, E], in the dtype of `right` and `left`.
    """
    queries, keys, multiplicity = queries.contiguous(), keys.contiguous(), multiplicity.contiguous()
    row_log, row_factor = _split(rows, row_scale)
    column_log, column_factor = _split(columns, column_scale)
    for_rows = None if right is None else right.new_zeros(len(queries), right.shape[1], dtype=torch.float32)
    for_columns = None if left is None else left.new_zeros(len(keys), left.shape[1], dtype=torch.float32)
    edge = min(chunk_size or BLOCK_EDGE, BLOCK_EDGE)
    for part in _parts(len(queries), edge):
        for across in _parts(len(keys), BLOCK_EDGE):
            band, block = queries[part], keys[across]
            scales = row_log[part], row_factor[part], column_log[across], column_factor[across]
            weights = queries.new_empty(len(band), len(block))
            blocks = _blocks(band, block)
            row_tiles, column_tiles = _tiles(band, block, blocks)
            sizes = len(band), len(block), band.shape[1]
            with on_device(queries):
                weights_kernel[(row_tiles * column_tiles,)](
                    band, block, multiplicity[across], *scales, weights, *sizes, **blocks
                )
            if for_rows is not None:
                add_product(for_rows[part], weights, right[across].contiguous())
            if for_columns is not None:
                add_product(for_columns[across], weights.T, left[part].contiguous())
    return (
        None if for_rows is None else for_rows.to(right.dtype),
        None if for_columns is None else for_columns.to(left.dtype),
    )


def _split(log: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """scale exp(S - log) = factor exp(S - rounded), with a float32 logarithm that has lost nothing: rounded, factor."""
    rounded = log.float()
    factor = scale.double() * (rounded.double() - log.double()).exp()
    return rounded, factor.float().contiguous()


def _combined(maxima_and_sums: Tensor) -> Tensor:
    """log sum_t sums_t exp(maxima_t) over the tiles t of [2, T, n]: [n], float64."""
    maxima, sums = maxima_and_sums.double()
    return torch.logsumexp(maxima + sums.log(), 0)


def _parts(size: int, edge: int) -> list[slice]:
    return [slice(start, start + edge) for start in range(0, size, edge)]


def _tiles(queries: Tensor, keys: Tensor, blocks: dict[str, Any]) -> tuple[int, int]:
    return triton.cdiv(len(queries), blocks["BLOCK_ROWS"]), triton.cdiv(len(keys), blocks["BLOCK_COLUMNS"])


def _blocks(queries: Tensor, keys: Tensor) -> dict[str, Any]:
    """The tile of a launch, and what it multiplies."""
    low = queries.dtype == torch.bfloat16
    return {
        "OPERAND": operand(queries, keys),
        "BLOCK_ROWS": block_for(len(queries)),
        "BLOCK_COLUMNS": block_for(len(keys), BLOCK if low or has_large_tiles(queries) else BLOCK // 2),
        "BLOCK_WIDTH": 64 if low else 32,
        "num_warps": 8,
        "num_stages": 3,
    }
