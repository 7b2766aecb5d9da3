"""Fully sharded data parallelism (FSDP2): every process keeps its share of weights, gradients and moments.

The blocks that a tower names (`_no_split_modules`) are gathered one at a time, the rest of a task at once. Checkpoints
know nothing of it: one process or many, sharded or not, write and read the same file.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer
from transformers import PreTrainedModel

from hf_vlr.training.tasks import Task

# what a step calls of a task beside its forward
HALVES = ("encode", "observe", "objective")


def wants_sharding() -> bool:
    """Whether Accelerate's configuration says `distributed_type: FSDP` and there are processes to share among."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return asked and dist.is_initialized() and dist.get_world_size() > 1


def shard(task: Task, model: PreTrainedModel, device: torch.device) -> None:
    """Shard a task, and the model in it, in place over all processes; the optimiser is to be made afterwards.

    Parameters become `DTensor`s under their old names. Scalars, which cannot be cut, stay whole on every process, and
    `average_scalars` exchanges their gradients. Buffers (BatchNorm's statistics, anchors) stay whole too. Not by
    Accelerate's own `prepare`, which refuses scalars, buffers and a tower without all blocks of its architecture.

    Every call of a tower is then an exchange: all processes must make equally many.
    """
    task.to(device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    blocks = model._no_split_modules or ()
    # from the inside out: a block within a block has its parameters first
    for module in reversed(list(task.modules())):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    scalars = {parameter for parameter in task.parameters() if parameter.ndim == 0}
    fully_shard(task, mesh=mesh, ignored_params=scalars)
    for name in HALVES:
        register_fsdp_forward_method(task, name)


def average_scalars(parameters: Iterable[nn.Parameter]) -> None:
    """The mean over processes of the gradients that FSDP does not exchange; once per step, after its last backward."""
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad.div_(dist.get_world_size())


def whole_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The 2-norm [] of sharded and whole tensors together, float32, the same on every process."""
    sharded, whole = torch.zeros(()), torch.zeros(())
    for tensor in tensors:
        if isinstance(tensor, DTensor):
            local = tensor.detach().to_local()
            sharded = sharded.to(local.device) + local.float().square().sum()
        else:
            whole = whole.to(tensor.device) + tensor.detach().float().square().sum()
    dist.all_reduce(sharded)
    return (sharded + whole.to(sharded.device)).sqrt()


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """torch's `clip_grad_norm_` for sharded and whole gradients; returns the norm before."""
    held = [parameter for parameter in parameters if parameter.grad is not None]
    norm = whole_norm(parameter.grad for parameter in held)
    for sharded in (True, False):
        clip_grads_with_norm_([one for one in held if isinstance(one.grad, DTensor) == sharded], max_norm, norm)
    return norm


def gathered(value: Any, keep: bool = True) -> Any:
    """A copy of `value` with each sharded tensor in it whole, on the CPU; all processes must ask together.

    `keep`: whether this process wants them (None instead); at no time does another hold more than one of them.
    """
    if isinstance(value, DTensor):
        whole = value.detach().full_tensor()
        return whole.cpu() if keep else None
    if isinstance(value, Tensor):
        return value.detach().clone().cpu() if keep else None
    if isinstance(value, Mapping):
        return {key: gathered(one, keep) for key, one in value.items()}
    return [gathered(one, keep) for one in value] if isinstance(value, list) else value


def scattered(whole: Tensor, like: Tensor) -> Tensor:
    """This process's share of a tensor that every process holds whole; `whole` itself where `like` is not sharded."""
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    # None: every process has the tensor, so nobody sends it
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def load_whole(task: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors into a task, sharded or not; raises what that raises."""
    targets = task.state_dict()
    task.load_state_dict({name: scattered(value, targets.get(name)) for name, value in state.items()})


def load_whole_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """`load_state_dict` of whole moments into an optimiser over sharded parameters or others."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        index: {name: scattered(value, parameters[index]) for name, value in entry.items()}
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": moments})


def unsharded(task: nn.Module, model: PreTrainedModel) -> PreTrainedModel:
    """The model of a task as one process alone can use it: itself, or a whole copy of a sharded one.

    All processes must ask together, and each has the copy.
    """
    if not isinstance(task, FSDPModule):
        return model
    state = gathered(model.state_dict())
    whole = type(model)(model.config)
    whole.load_state_dict(state)
    return whole.to(model.device)
