"""Forward and backward of one batch: at once, in pieces, or in two passes over pieces.

The two passes (GradCache, Gao et al., RepL4NLP 2021) make a contrast over N pairs with the memory of a micro-batch:
the towers encode every piece without keeping activations, the loss over all features gives each feature its gradient,
and the towers encode every piece again, now with activations, to carry that gradient on. Pieces are seeded, so dropout
repeats, and the second pass computes what the first did to the bit.

Letters: `N` images, `U` unique texts, `D` width.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from hf_vlr.distributed import is_distributed
from hf_vlr.training.loaders import Batch
from hf_vlr.training.pieces import Piece, cut, rows_of_batch
from hf_vlr.training.tasks import Features, Task


@dataclass(frozen=True)
class Step:
    """What forward and backward of a batch need beside the task.

    scale: from bytes to what the towers take. backward: of a loss. autocast: the context of the forward pass.
    reseed: seeds piece k of the batch.
    """

    scale: Callable[[Batch], Batch]
    backward: Callable[[Tensor], None]
    autocast: Callable[[], AbstractContextManager]
    reseed: Callable[[int], None]


def at_once(step: Step, forward: Callable[[Batch], dict[str, Tensor]], batch: Batch, share: float) -> dict[str, Tensor]:
    """The task's parts for the whole batch, whose loss counts `share`; gradients are added to the parameters'."""
    step.reseed(0)
    with step.autocast():
        parts = forward(step.scale(batch))
    step.backward(share * parts["loss"])
    return parts


def in_pieces(step: Step, task: Task, batch: Batch, share: float, size: int) -> dict[str, Tensor]:
    """`at_once` for a task whose loss is a sum over images, in pieces of `size` images."""
    total: dict[str, Tensor] = {}
    for number, piece in enumerate(rows_of_batch(batch, size)):
        step.reseed(number)
        with step.autocast():
            parts = task(step.scale(piece))
        step.backward(share * parts["loss"])
        for key, value in parts.items():
            total[key] = total.get(key, 0.0) + value.detach()
    return total


def in_two_passes(step: Step, task: Task, batch: Batch, share: float, size: int) -> dict[str, Tensor]:
    """`at_once` for any task, with the activations of `size` images or texts at a time.

    Equal to `at_once` but for rounding where the towers have no dropout and no BatchNorm in training mode. The latter
    sees the statistics of a piece, as with any micro-batch, and counts them once.
    """
    pieces = list(cut(batch, size))
    with torch.no_grad(), statistics_kept(task):
        features = join([(piece, _encode(step, task, piece, number)) for number, piece in enumerate(pieces)])
    seen = join([(piece, _observe(step, task, piece)) for piece in pieces])
    leaves = {name: value.requires_grad_() for name, value in features.items()}
    with step.autocast():
        parts = task.objective(leaves, seen, batch)
    step.backward(share * parts["loss"])
    for number, piece in enumerate(pieces):
        again = _encode(step, task, piece, number)
        gradients = [leaves[name].grad[piece.rows.to(value.device)] for name, value in again.items()]
        torch.autograd.backward(list(again.values()), gradients)
    return parts


def _encode(step: Step, task: Task, piece: Piece, number: int) -> Features:
    step.reseed(number)
    with step.autocast():
        return task.encode(step.scale(piece.batch))


def _observe(step: Step, task: Task, piece: Piece) -> Features:
    with step.autocast():
        return task.observe(step.scale(piece.batch))


def join(parts: list[tuple[Piece, Features]]) -> Features:
    """The features of all pieces under their names, in the batch's order."""
    names = dict.fromkeys(name for _, features in parts for name in features)
    joined = {}
    for name in names:
        rows = torch.cat([piece.rows for piece, features in parts if name in features])
        values = torch.cat([features[name] for _, features in parts if name in features])
        joined[name] = values[rows.argsort().to(values.device)]
    return joined


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """A block in which BatchNorm layers in training mode leave their running statistics as they are."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    before = [(layer, layer.momentum, layer.num_batches_tracked) for layer in layers if layer.training]
    for layer, _, _ in before:
        layer.momentum, layer.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for layer, momentum, tracked in before:
            layer.momentum, layer.num_batches_tracked = momentum, tracked


def average_gradients(parameters: Iterator[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, as DistributedDataParallel does; one exchange a dtype."""
    if not is_distributed():
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for dtype in dict.fromkeys(parameter.dtype for parameter in trained):
        same = [parameter for parameter in trained if parameter.dtype == dtype]
        for parameter in same:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.flatten() for parameter in same])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        parts = flat.split([parameter.numel() for parameter in same])
        for parameter, part in zip(same, parts, strict=True):
            parameter.grad.copy_(part.view_as(parameter))
