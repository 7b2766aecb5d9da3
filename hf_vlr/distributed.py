"""Features of all processes, with gradients, so that every rank sees the global batch."""

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import FunctionCtx, once_differentiable


def is_distributed() -> bool:
    """Whether more than one process takes part in this run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_rows(local: Tensor) -> Tensor:
    """Rows [n_r, ...] of every rank r stacked in rank order [N, ...]; differentiable for floating-point rows.

    The ranks may hold different numbers of rows (n_r >= 1). Every rank computes the loss of the whole batch; the mean
    over ranks that data parallelism takes of the gradients is then exactly the gradient of one process on the whole
    batch, because the backward pass of the gather sums what all ranks ask of a row.
    """
    if not is_distributed():
        return local
    world = dist.get_world_size()
    sizes = [torch.zeros(1, dtype=torch.int64, device=local.device) for _ in range(world)]
    dist.all_gather(sizes, torch.tensor([len(local)], device=local.device))
    longest = max(int(size) for size in sizes)
    padded = torch.cat([local, local.new_zeros(longest - len(local), *local.shape[1:])])
    gathered = _Gather.apply(padded)
    return torch.cat([rows[: int(size)] for rows, size in zip(gathered, sizes, strict=True)])


class _Gather(torch.autograd.Function):
    """Equally many rows [n, ...] of each rank to [R, n, ...]; backward sums what all ranks ask of this rank's."""

    @staticmethod
    def forward(ctx: FunctionCtx, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.stack(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]


def share_of_rows(local: Tensor) -> float | Tensor:
    """R n_r / N for the n_r rows [n_r, ...] of this rank among N on R ranks; 1.0 in a single process.

    Times a rank's mean over its rows, it makes the mean over ranks the mean over all N rows.
    """
    if not is_distributed():
        return 1.0
    total = torch.tensor(float(len(local)), device=local.device)
    dist.all_reduce(total)
    return dist.get_world_size() * len(local) / total
