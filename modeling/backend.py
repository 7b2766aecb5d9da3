# SPDX-License-Identifier: MIT
"""Which arithmetic a tensor meets: plain torch, or the Triton kernels of `hf_vlr.kernels` where they are asked for.

Both compute the same functions. The plain one needs nothing but torch and is the definition of what is right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

BACKENDS = ("auto", "torch", "triton")

# What the kernels read; all else is computed by torch.
KERNEL_DTYPES = (torch.float32, torch.bfloat16)

# Ampere: the first NVIDIA architecture whose tensor cores take TF32 and bfloat16.
LEAST_CAPABILITY = (8, 0)

# The kernels have been checked in Triton's interpreter and compiled, and never run on a GPU: they are asked for.
_BACKEND: ContextVar[str] = ContextVar("hf_vlr_backend", default="torch")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """A block whose forward passes take one backend; their backward passes keep it wherever they run.

    Args:
        name: ``torch``, plain torch, as without this block; ``auto``, the kernels where they can run; ``triton``, the
            kernels or a RuntimeError.
            The last also takes tensors on the CPU in Triton's interpreter (``TRITON_INTERPRET=1`` in the environment
            before Triton is imported), which is slow and meant for tests.

    Other threads are not concerned. Raises ValueError for another name.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}")
    token = _BACKEND.set(name)
    try:
        yield
    finally:
        _BACKEND.reset(token)


def kernels_for(tensor: Tensor) -> ModuleType | None:
    """`hf_vlr.kernels` where it can and may compute on this tensor, else None: compute with torch.

    Call it in the forward pass and keep the answer for the backward pass, which may run in another thread. In a graph
    that torch.compile traces the answer is None: it makes kernels of its own from the plain code.

    Raises RuntimeError, saying why, where `use_backend("triton")` asks for kernels that cannot run.
    """
    if torch.compiler.is_compiling():
        return None
    backend = _BACKEND.get()
    if backend == "torch" or (backend == "auto" and tensor.device.type != "cuda"):
        return None
    obstacle = _obstacle(tensor)
    if obstacle is None:
        return _kernels()
    if backend == "triton":
        raise RuntimeError(f"the Triton kernels were asked for, but {obstacle}")
    return None


def _obstacle(tensor: Tensor) -> str | None:
    """Why the kernels cannot compute on a tensor; None if they can."""
    if tensor.dtype not in KERNEL_DTYPES:
        return f"they compute in float32 or bfloat16, not in {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.device.type == "cuda":
        if torch.version.cuda is None:
            return "they are written for NVIDIA's tensor cores"
        capability = torch.cuda.get_device_capability(tensor.device)
        if capability < LEAST_CAPABILITY:
            return "they need compute capability {}.{}, this device has {}.{}".format(*LEAST_CAPABILITY, *capability)
    elif tensor.device.type != "cpu" or os.environ.get("TRITON_INTERPRET") != "1":
        return f"this tensor is on {tensor.device.type}, not on cuda"
    return None if _kernels() else "hf_vlr.kernels or Triton is not installed"


@lru_cache(maxsize=1)
def _kernels() -> ModuleType | None:
    try:
        import hf_vlr.kernels
    except ImportError:
        return None
    return hf_vlr.kernels
