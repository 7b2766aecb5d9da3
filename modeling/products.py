# SPDX-License-Identifier: MIT
"""Products of matrices, each in the way that is fastest where its numbers lie.

The BLAS of torch's x86 packages uses the widest instructions on the processors of its maker alone. oneDNN, which
computes convolutions, uses them on all: there a large product in float32 is a 1 x 1 convolution, which is faster.
"""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

# Fewer vectors than this are read through in the time that the rows take to arrive: other layouts suit them.
FEW_VECTORS = 8

# Below this many multiplications the arrangement of a convolution costs more than it saves.
LARGE_PRODUCT = 1 << 23


def inner_products(rows: Tensor, vectors: Tensor) -> Tensor:
    """Inner products r . v: [R, D], [V, D] -> [R, V] in their one dtype."""
    if _convolves(rows, vectors):
        return F.conv2d(_pixels(rows), vectors[:, :, None, None]).permute(0, 2, 3, 1).reshape(len(rows), len(vectors))
    if rows.dtype == torch.bfloat16 and len(vectors) < FEW_VECTORS:
        return F.linear(vectors, rows).T
    return rows @ vectors.T


def add_weighed_rows(sums: Tensor, weights: Tensor, rows: Tensor) -> None:
    """sums [V, D] += weights [R, V]^T rows [R, D]."""
    if _convolves(rows, sums):
        size = [*sums.shape, 1, 1]
        sums.add_(torch.nn.grad.conv2d_weight(_pixels(rows), size, _pixels(weights)).reshape(sums.shape))
    else:
        torch.addmm(sums, weights.T, rows, out=sums)  # torch's counter of operations does not know addmm_


def _convolves(rows: Tensor, vectors: Tensor) -> bool:
    """Whether a 1 x 1 convolution computes the product of rows and vectors."""
    if torch.compiler.is_compiling():
        return False  # its graphs have products of their own
    if rows.device.type != "cpu" or rows.dtype != torch.float32 or vectors.dtype != torch.float32:
        return False
    large = len(vectors) >= FEW_VECTORS and rows.numel() * len(vectors) >= LARGE_PRODUCT
    # torch hands such convolutions to oneDNN where there is more than one thread
    return large and torch.get_num_threads() > 1 and torch.backends.mkldnn.enabled and _convolving_pays()


@lru_cache(maxsize=1)
def _convolving_pays() -> bool:
    """Whether this is an x86 processor that torch's BLAS was not made for, and torch has oneDNN."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    listed = Path("/proc/cpuinfo")
    described = listed.read_text(errors="replace") if listed.is_file() else platform.processor()
    return "GenuineIntel" not in described


def _pixels(rows: Tensor) -> Tensor:
    """Rows [R, K] as an image [1, K, R, 1] of R pixels with K channels, the same numbers in the same places."""
    return rows[None, :, None].permute(0, 3, 1, 2)
