"""How the processes of a run share a task: each with all of its weights, or each with a part of them."""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import get_total_norm

from hf_vlr.errors import UserError
from hf_vlr.training.optimizer import build_optimizer
from hf_vlr.training.options import Recipe
from hf_vlr.training.sharding import (
    average_scalars,
    clip_gradients,
    gathered,
    load_whole,
    load_whole_optimizer,
    shard,
    unsharded,
    wants_sharding,
    whole_norm,
)
from hf_vlr.training.step import average_gradients
from hf_vlr.training.tasks import Task


class Whole:
    """Every process has all weights; gradients are averaged in each step's last backward pass, by Accelerate.

    wrapped: the task as the loop calls it. optimizer: over its trained parameters.
    """

    def __init__(self, task: Task, recipe: Recipe, accelerator: Accelerator) -> None:
        self.task, self.accelerator = task, accelerator
        self.bare_optimizer = build_optimizer(task, recipe.optim)
        self.wrapped, self.optimizer = accelerator.prepare(task, self.bare_optimizer)

    def backward_of(self, stepping: bool) -> AbstractContextManager:
        """A block with the forward and backward pass of a batch; gradients are exchanged where a step ends with it."""
        return nullcontext() if stepping else self.accelerator.no_sync(self.wrapped)

    def after_pieces(self) -> None:
        """Exchange the gradients of backward passes that did not go through `wrapped`."""
        average_gradients(self.task.parameters())

    def after_backward(self) -> None:
        """What is left to exchange before the optimiser steps."""

    def clip(self, largest: float) -> Tensor:
        """Scale the gradient to a norm of at most `largest` and return the norm it had."""
        return self.accelerator.clip_grad_norm_(self.task.parameters(), largest)

    def norm(self, tensors: Iterable[Tensor]) -> Tensor:
        """The 2-norm of tensors of the parameters' shapes."""
        return get_total_norm(list(tensors)).detach()

    def state(self) -> dict[str, Any]:
        """Weights and moments as a checkpoint keeps them; all processes ask together, the main one gets them."""
        return {"task": self.task.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Put a checkpoint's weights and moments in place."""
        self.task.load_state_dict(state["task"])
        self.optimizer.load_state_dict(state["optimizer"])

    def finish(self) -> None:
        """Leave `task.model` as a process alone can use it."""


class Sharded(Whole):
    """Every process keeps its share of weights, gradients and moments (FSDP2), and gathers a block when it is needed.

    Raises `UserError` for what needs processes to call a tower at their own pace.
    """

    def __init__(self, task: Task, recipe: Recipe, accelerator: Accelerator) -> None:
        self.task, self.accelerator = task, accelerator
        refuse_unshardable(recipe)
        shard(task, task.model, accelerator.device)
        self.bare_optimizer = build_optimizer(task, recipe.optim)
        self.wrapped, self.optimizer = task, accelerator.prepare_optimizer(self.bare_optimizer)

    def backward_of(self, stepping: bool) -> AbstractContextManager:
        self.task.set_requires_gradient_sync(stepping)
        return nullcontext()

    def after_pieces(self) -> None:
        raise UserError("train.micro_batch does not go with sharded weights")

    def after_backward(self) -> None:
        average_scalars(self.task.parameters())

    def clip(self, largest: float) -> Tensor:
        return clip_gradients(self.task.parameters(), largest or math.inf)

    def norm(self, tensors: Iterable[Tensor]) -> Tensor:
        return whole_norm(tensors)

    def state(self) -> dict[str, Any]:
        keep = self.accelerator.is_main_process
        return {
            "task": gathered(self.task.state_dict(), keep=keep),
            "optimizer": gathered(self.optimizer.state_dict(), keep=keep),
        }

    def load(self, state: dict[str, Any]) -> None:
        load_whole(self.task, state["task"])
        load_whole_optimizer(self.optimizer, state["optimizer"])

    def finish(self) -> None:
        self.task.model = unsharded(self.task, self.task.model)


def refuse_unshardable(recipe: Recipe) -> None:
    """Raise `UserError` where sharded processes would wait for each other for ever, or were never tried."""
    if recipe.train.micro_batch:
        raise UserError("train.micro_batch does not go with sharded weights (FSDP): use model.gradient_checkpointing")
    if recipe.train.mixed_precision == "fp16":
        raise UserError("train.mixed_precision=fp16 does not go with sharded weights (FSDP): use bf16")
    if recipe.task in ("joint", "rebalance"):
        raise UserError(f"task={recipe.task} does not go with sharded weights (FSDP): launch it with multi-gpu")


def share(task: Task, recipe: Recipe, accelerator: Accelerator) -> Whole:
    """`Sharded` where the launcher's configuration says FSDP and there are processes to share among, else `Whole`."""
    return (Sharded if wants_sharding() else Whole)(task, recipe, accelerator)
