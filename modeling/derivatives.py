# SPDX-License-Identifier: MIT
"""Backward passes by hand: a first derivative, and an error where a second one is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The backward pass of an autograd function whose gradient has no gradient of its own.

    With ``create_graph=True`` it raises RuntimeError. torch's ``once_differentiable`` does so only where the incoming
    gradient depends on something, which that of a loss does not: the terms of second order would be left out silently.
    """

    @wraps(backward)
    def checked(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "this gradient is computed by hand and has none of its own (create_graph=True): "
                "take the function's *_reference, which is differentiated by torch"
            )
        with torch.no_grad():
            return backward(ctx, *gradients)

    return checked
