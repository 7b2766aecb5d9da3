"""What the processes of a run tell each other: integers, rows with gradients, sums.

Every collective takes a float, integer or boolean tensor on the device of the process group's backend (gloo or nccl),
and is the identity in a single process. Ranks may hold different numbers of rows, and none at all.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import accumulate

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import FunctionCtx, once_differentiable

# By number, so that ranks can tell each other what they hold.
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def is_distributed() -> bool:
    """Whether more than one process takes part in this run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank_and_world() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) in a single process."""
    return (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)


def gather_integers(values: Sequence[int], device: torch.device) -> list[list[int]]:
    """The integers of every rank, equally many of each, in rank order: [R][k]. One collective of 8 k bytes a rank."""
    if not is_distributed():
        return [list(values)]
    gathered = torch.empty(dist.get_world_size() * len(values), dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(gathered, torch.tensor(values, dtype=torch.int64, device=device))
    return gathered.view(-1, len(values)).tolist()


def gather_rows(local: Tensor, sizes: Sequence[int] | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Rows [n_r, ...] of every rank r stacked in rank order [N, ...]; differentiable for floating-point rows.

    The backward pass sums, in float32 or wider, what all ranks ask of a row (a reduce-scatter). If every rank computes
    the loss of the whole batch from such rows, the mean over ranks that data parallelism takes of the gradients is
    exactly the gradient of one process on the whole batch.

    Args:
        local: [n_r, ...], n_r >= 0; further sizes and dtype equal on all ranks.
        sizes: n_r of every rank where they are known; None spends one more collective on them.
        dtype: of the result, by default that of the rows. Rows travel in their own dtype and gradients in this one.
    """
    if not is_distributed():
        return local if dtype is None else local.to(dtype)
    if sizes is None:
        sizes = [size for (size,) in gather_integers([len(local)], local.device)]
    if sum(sizes) == 0:
        return local if dtype is None else local.to(dtype)
    return _GatherRows.apply(local, list(sizes), dtype or local.dtype)


class _GatherRows(torch.autograd.Function):
    """[n_r, ...] of each rank r to [N, ...]; collectives of equal sizes, so all are padded to the longest."""

    @staticmethod
    def forward(ctx: FunctionCtx, local: Tensor, sizes: list[int], dtype: torch.dtype) -> Tensor:
        ctx.sizes, ctx.dtype = sizes, local.dtype
        longest, shape = max(sizes), local.shape[1:]
        if len(local) < longest:
            local = torch.cat([local, local.new_zeros(longest - len(local), *shape)])
        gathered = local.new_empty(len(sizes) * longest, *shape)
        dist.all_gather_into_tensor(gathered, local.contiguous())
        if min(sizes) < longest:
            gathered = torch.cat([rows[:size] for rows, size in zip(gathered.split(longest), sizes, strict=True)])
        return gathered.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        sizes, longest, shape = ctx.sizes, max(ctx.sizes), gradient.shape[1:]
        asked = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        if min(sizes) < longest:
            padded = asked.new_zeros(len(sizes), longest, *shape)
            for rows, part in zip(padded, asked.split(sizes), strict=True):
                rows[: len(part)] = part
            asked = padded.flatten(0, 1)
        own = asked.new_empty(longest, *shape)
        dist.reduce_scatter_tensor(own, asked.contiguous())
        return own[: sizes[dist.get_rank()]].to(ctx.dtype), None, None


def sum_over_ranks(local: Tensor) -> Tensor:
    """The sum of what every rank holds, of one shape; no gradient."""
    total = local.detach().clone()
    if is_distributed():
        dist.all_reduce(total)
    return total


def log_add_exp_over_ranks(local: Tensor) -> Tensor:
    """log sum_r exp(x_r) by element, of one shape on every rank; no gradient. A rank's -inf adds nothing to others'."""
    if not is_distributed():
        return local.detach()
    largest = local.detach().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return sum_over_ranks((local.detach() - largest).exp_()).log_().add_(largest)


def mean_gradient(value: Tensor, partial: Tensor) -> Tensor:
    """`value`, a number that all ranks share, with the gradient of R `partial`.

    If the partials of the R ranks add up to a function whose value this is, the mean over ranks that data parallelism
    takes of the parameters' gradients is the gradient of that function.
    """
    _, world = rank_and_world()
    return value + world * (partial - partial.detach())


def share_of_rows(local: Tensor) -> float | Tensor:
    """R n_r / N for the n_r rows [n_r, ...] of this rank among N on R ranks, 0 without rows; 1.0 in a single process.

    Times a rank's mean over its rows, it makes the mean over ranks the mean over all N rows. (The mean of no rows is
    nan: a rank without any multiplies by the sum, which is 0.)
    """
    if not is_distributed():
        return 1.0
    total = sum_over_ranks(torch.tensor(float(len(local)), device=local.device))
    return dist.get_world_size() * len(local) / total.clamp(min=1)


class GlobalBatch:
    """How the pairs and texts of a batch lie over the ranks; all ranks make one together, at one collective.

    Args:
        images: [n_r, D] features of this rank's pairs, n_r >= 0.
        texts: [U_r, D] features of its texts, U_r >= 0.
        check: raises ValueError where this rank's part fits no batch. An error on one rank is then one on all, so that
            none waits for it for ever.

    Raises:
        ValueError: what `check` raises, or that another rank did; or no rank holds a pair.
    """

    def __init__(self, images: Tensor, texts: Tensor, check: Callable[[], None]) -> None:
        fault, told = None, [0, 0, 0, 0, 1]
        try:
            check()
            told = [len(images), len(texts), DTYPES.index(images.dtype), DTYPES.index(texts.dtype), 0]
        except ValueError as error:
            fault = error
        everyone = gather_integers(told, images.device)
        if fault is not None:
            raise fault
        self.pairs, self.texts, *dtypes, faults = (list(column) for column in zip(*everyone, strict=True))
        if any(faults):
            raise ValueError(f"process {faults.index(1)} refuses its part of the batch")
        if not sum(self.pairs):
            raise ValueError("no process holds a pair")
        # a rank without rows may hold them in another dtype
        held, self.travelling = (reduce(torch.promote_types, (DTYPES[code] for code in codes)) for codes in dtypes)
        self.dtype = reduce(torch.promote_types, (held, self.travelling, torch.float32))
        self.rank, self.device = rank_and_world()[0], images.device
        self.first_pair, self.first_text = ([0, *accumulate(held)][self.rank] for held in (self.pairs, self.texts))

    def own_pairs(self) -> Tensor:
        """Places of this rank's pairs among all [n_r]."""
        return torch.arange(self.first_pair, self.first_pair + self.pairs[self.rank], device=self.device)

    def global_index(self, text_index: Tensor | None) -> Tensor:
        """Numbers among all texts of the texts [n_r] of this rank's pairs; None: a text a pair."""
        if text_index is None:
            text_index = torch.arange(self.texts[self.rank], device=self.device)
        return text_index + self.first_text

    def gather_integers(self, *columns: Tensor) -> list[Tensor]:
        """[n_r] each of this rank's pairs to [N] each of all pairs, int64, in one collective."""
        rows = torch.stack([column.long() for column in columns], 1)
        return list(gather_rows(rows, self.pairs).T.contiguous())

    def gather_texts(self, features: Tensor) -> Tensor:
        """[U_r, D] to [U, D], float32 or wider; differentiable."""
        return gather_rows(features.to(self.travelling), self.texts, self.dtype)
