"""Matrix products on tensor cores, in pieces that other kernels share.

Precision: float32 operands are split into two TF32 numbers each, and three of the four products are summed in float32
(`tf32x3`). One TF32 product keeps 10 bits, so that a logit of size 100 would be off by some hundredths and its softmax
by some percent; three keep about 21, as good as float32 sums get, at a third of the rate. `ieee` would leave the tensor
cores. bfloat16 operands are multiplied exactly and summed in float32.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

# Programs that fill the multiprocessors of a large GPU: a product of few tiles is split along its sum as well.
# A constant, so that sums are the same on every device.
PROGRAMS = 256

BLOCK = 128
LEAST_BLOCK = 16  # of a tensor core product


@triton.jit
def add_dot(left, right, total):
    """total + left @ right: float32 total, operands both float32 or both bfloat16."""
    return tl.dot(left, right, total, input_precision="tf32x3")


@triton.jit
def row_dots(
    left, right, rows, columns, row_count, column_count, width, OPERAND: tl.constexpr, BLOCK_WIDTH: tl.constexpr
):
    """Inner products [R, C] of some rows of `left` [row_count, width] and of `right` [column_count, width].

    Rows past the end count as zero. Both are contiguous.
    """
    total = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    for start in range(0, width, BLOCK_WIDTH):
        inner = start + tl.arange(0, BLOCK_WIDTH)
        left_mask = (rows < row_count)[:, None] & (inner < width)[None, :]
        right_mask = (columns < column_count)[None, :] & (inner < width)[:, None]
        left_tile = tl.load(left + rows.to(tl.int64)[:, None] * width + inner[None, :], mask=left_mask, other=0.0)
        right_tile = tl.load(right + columns.to(tl.int64)[None, :] * width + inner[:, None], mask=right_mask, other=0.0)
        total = add_dot(left_tile.to(OPERAND), right_tile.to(OPERAND), total)
    return total


@triton.jit
def product_kernel(
    left,
    right,
    out,
    row_count,
    column_count,
    inner_count,
    left_row,
    left_inner,
    right_row,
    inner_part,
    OPERAND: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    """One tile of one part of a product: out[part] (+)= left[:, part] @ right[part]."""
    row_tiles = tl.cdiv(row_count, BLOCK_ROWS)
    column_tiles = tl.cdiv(column_count, BLOCK_COLUMNS)
    program = tl.program_id(0)
    part = program // (row_tiles * column_tiles)
    tile = program % (row_tiles * column_tiles)
    rows = (tile // column_tiles) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = (tile % column_tiles) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    first = part * inner_part
    last = tl.minimum(first + inner_part, inner_count)
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for start in range(first, last, BLOCK_INNER):
        inner = start + tl.arange(0, BLOCK_INNER)
        left_mask = (rows < row_count)[:, None] & (inner < last)[None, :]
        right_mask = (inner < last)[:, None] & (columns < column_count)[None, :]
        left_place = rows.to(tl.int64)[:, None] * left_row + inner.to(tl.int64)[None, :] * left_inner
        right_place = inner.to(tl.int64)[:, None] * right_row + columns[None, :]
        left_tile = tl.load(left + left_place, mask=left_mask, other=0.0).to(OPERAND)
        right_tile = tl.load(right + right_place, mask=right_mask, other=0.0).to(OPERAND)
        total = add_dot(left_tile, right_tile, total)
    mask = (rows < row_count)[:, None] & (columns < column_count)[None, :]
    place = (part.to(tl.int64) * row_count + rows.to(tl.int64)[:, None]) * column_count + columns[None, :]
    if ADD:
        total += tl.load(out + place, mask=mask, other=0.0)
    tl.store(out + place, total, mask=mask)


def add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out [R, C] += left [R, K] @ right [K, C], always in the same order.

    out: contiguous, float32. left: any strides; right: contiguous rows. Each float32 or bfloat16; bfloat16 alone is
    multiplied as such.
    """
    (rows, columns), inner = out.shape, left.shape[1]
    low = left.dtype == right.dtype == torch.bfloat16
    block_rows = block_for(rows)
    block_columns = block_for(columns, BLOCK if low or has_large_tiles(out) else BLOCK // 2)
    block_inner = 64 if low else 32
    tiles = triton.cdiv(rows, block_rows) * triton.cdiv(columns, block_columns)
    parts = min(max(1, PROGRAMS // tiles), triton.cdiv(inner, 8 * block_inner))
    inner_part = triton.cdiv(triton.cdiv(inner, parts), block_inner) * block_inner
    parts = triton.cdiv(inner, inner_part)
    target = out if parts == 1 else out.new_empty(parts, rows, columns)
    with on_device(out):
        product_kernel[(tiles * parts,)](
            left,
            right,
            target,
            rows,
            columns,
            inner,
            left.stride(0),
            left.stride(1),
            right.stride(0),
            inner_part,
            OPERAND=operand(left, right),
            ADD=parts == 1,
            BLOCK_ROWS=block_rows,
            BLOCK_COLUMNS=block_columns,
            BLOCK_INNER=block_inner,
            num_warps=8,
            num_stages=3,
        )
    if parts > 1:
        out += target.sum(0)


def operand(*tensors: Tensor) -> tl.dtype:
    """The dtype that tensors are multiplied in; Triton's interpreter knows no products of bfloat16."""
    low = all(tensor.dtype == torch.bfloat16 for tensor in tensors)
    return tl.bfloat16 if low and not triton.knobs.runtime.interpret else tl.float32


def block_for(size: int, most: int = BLOCK) -> int:
    """The tile edge for that many rows or columns, a power of two."""
    return max(LEAST_BLOCK, min(most, triton.next_power_of_2(size)))


def has_large_tiles(tensor: Tensor) -> bool:
    """Whether the device keeps tiles of 128 x 128 in three TF32 parts without spilling registers: Hopper and its kind,
    whose tensor cores read shared memory. Older ones, and small Blackwells, read registers."""
    return not tensor.is_cuda or torch.cuda.get_device_capability(tensor.device)[0] in (9, 10)


def on_device(tensor: Tensor) -> AbstractContextManager:
    """A block in which Triton starts kernels on the tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
