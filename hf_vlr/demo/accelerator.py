"""Where towers run: an accelerator of this machine, or one that a ZeroGPU Space lends for the length of a call."""

from collections.abc import Callable
from typing import Any

import torch

from hf_vlr.evaluation.encoders import best_device

# seconds that one call may hold a lent GPU: a batch of images through a large tower, with room for the transfer
DURATION = 20


def lender() -> Callable[..., Any] | None:
    """`spaces.GPU` where the package `spaces` is installed, else None."""
    try:
        import spaces
    except ImportError:
        return None
    # a folder of this name on the path is no package of that name
    return getattr(spaces, "GPU", None)


def lent(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a GPU while it runs, on a ZeroGPU Space; elsewhere the function itself.

    Arguments and results pass between processes there, so they must not lie on an accelerator.
    """
    decorate = lender()
    return function if decorate is None else decorate(duration=DURATION)(function)


def tower_device() -> torch.device:
    """The device that towers are put on; on a ZeroGPU Space a promise of one."""
    # first: it takes CUDA's place, and must do so before anybody looks
    lender()
    return torch.device("cuda") if torch.cuda.is_available() else best_device()
