"""Worlds of 1, 2 and 4 processes that talk by gloo, and the batches that they share (for test_sharded_contrast).

As a program it starts them all, checks the collectives in them and writes what each computes to a folder.
"""

import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from hf_vlr.distributed import gather_rows, log_add_exp_over_ranks, share_of_rows, sum_over_ranks
from hf_vlr.losses.sigmoid import unified_sigmoid_loss
from hf_vlr.losses.supervised import supervised_contrastive_loss
from hf_vlr.modeling.contrastive import DIRECTIONS, distillation_loss, image_text_label_loss
from hf_vlr.sharded_contrast import (
    sharded_distillation_loss,
    sharded_distilled_contrast,
    sharded_image_text_label_loss,
    sharded_supervised_contrastive_loss,
    sharded_unified_sigmoid_loss,
)

WORLDS = (1, 2, 4)
PAIRS, TEXTS, WIDTH = 16, 5, 6
MEASURED, MEASURED_WIDTH = {"contrast": 2048, "gather_both": 2048}, 256
SPLITS = {
    "even": {1: [16], 2: [8, 8], 4: [4, 4, 4, 4]},
    "uneven": {1: [16], 2: [6, 10], 4: [2, 8, 4, 2]},
    "empty": {1: [16], 2: [0, 16], 4: [6, 0, 10, 0]},
    "last_empty": {1: [16], 2: [16, 0], 4: [2, 0, 14, 0]},
}
LOSSES: dict[str, tuple[Callable, ...]] = {
    "contrast": (image_text_label_loss, sharded_image_text_label_loss),
    "distillation": (distillation_loss, sharded_distillation_loss),
    "both": (),
    "sigmoid": (unified_sigmoid_loss, sharded_unified_sigmoid_loss),
    "supcon": (supervised_contrastive_loss, sharded_supervised_contrastive_loss),
}
LABELS = {
    "mixed": [0, 0, 1, -1, 70000, -1, 1, 0, 3, 3, -1, 70000, -1, 2, 0, 1],
    "pairs": [-1] * 16,
    "classes": [0, 0, 1, 2, 3, 2, 1, 0, 3, 3, 0, 2, 4, 2, 0, 1],
    "one_class": [7] * 16,
    "pairs_on_one_rank": [-1] * 6 + [0, 1, 0, 1, 2, 2, 2, 0, 5, 1],
}


@dataclass(frozen=True)
class Case:
    """One batch and one loss of it, by any number of processes."""

    loss: str = "contrast"
    dtype: torch.dtype = torch.float32
    split: str = "uneven"
    labels: str = "mixed"
    direction: str = "both"
    smoothing: float = 0.0
    tau: float = 14.3
    vectors: str = "random"
    chunk_size: int | None = None
    autocast: bool = False

    @property
    def name(self) -> str:
        return "-".join(str(value).removeprefix("torch.") for value in vars(self).values())


def cases() -> list[Case]:
    """Directions and smoothings, losses, splits and labels; then what is special."""
    found = [Case(direction=one, smoothing=eps) for one in DIRECTIONS for eps in (0.0, 0.1)]
    found += [Case(loss, split=split, smoothing=0.2) for loss in LOSSES for split in ("uneven", "empty")]
    exact = [Case(loss, split=split, chunk_size=3) for loss in LOSSES for split in SPLITS]
    exact += [Case(loss, labels=labels, split="empty") for loss in ("both", "sigmoid", "supcon") for labels in LABELS]
    found += [replace(case, dtype=torch.float64) for case in found + exact]
    extreme = [Case(loss, tau=100.0, vectors="opposite") for loss in LOSSES]
    extreme += [Case(tau=100.0, vectors="far", split=split) for split in ("even", "last_empty")]
    found += [replace(case, dtype=dtype) for case in extreme for dtype in (torch.float32, torch.float64)]
    found += [Case(tau=100.0, vectors="minus_one", split=split) for split in ("uneven", "empty")]
    found += [Case(loss, vectors="rounded", autocast=True, split="empty") for loss in LOSSES]
    return list(dict.fromkeys(found))


CASES = cases()


class Towers(nn.Module):
    """Linear towers (the identity unless vectors are random) and the scalars of a loss."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.image, self.text = (nn.Linear(WIDTH, WIDTH, bias=False, dtype=case.dtype) for _ in range(2))
        self.log_scale = nn.Parameter(torch.tensor(case.tau, dtype=case.dtype).log())
        self.bias = nn.Parameter(torch.tensor(-3.0, dtype=case.dtype))
        self.autocast = case.autocast
        generator = torch.Generator().manual_seed(3)
        for linear in (self.image, self.text):
            nn.init.eye_(linear.weight)
            if case.vectors == "random":
                linear.weight.data += torch.randn(WIDTH, WIDTH, generator=generator)

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, ...]:
        images, texts = self.image(images), self.text(texts)
        # a process without rows may hold them in another dtype
        if self.autocast and len(images):
            images = images.bfloat16()
        if self.autocast and len(texts):
            texts = texts.bfloat16()
        # every parameter takes part, whatever the loss: processes wait for each other's gradients
        unused = 0.0 * (self.bias + self.log_scale + texts.sum() + images.sum())
        return images, texts, self.log_scale.exp(), self.bias, unused


def global_batch(case: Case) -> dict[str, Tensor]:
    """Images [N, D], texts [U, D], a teacher's of width 4, labels [N] and text numbers [N]."""
    generator = torch.Generator().manual_seed(11)
    images, texts = (torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64) for rows in (PAIRS, TEXTS))
    teacher = [torch.randn(rows, 4, generator=generator, dtype=torch.float64) for rows in (PAIRS, TEXTS)]
    index = torch.randint(0, TEXTS, (PAIRS,), generator=generator)
    if case.vectors in ("opposite", "far"):
        texts = texts[:1] + 0.2 * texts
        sign = torch.full((PAIRS, 1), -1.0, dtype=torch.float64)
        if case.vectors == "far":
            sign[PAIRS // 2 :] = 1.0
        images = sign * texts[:1] + 0.2 * images
    if case.vectors == "minus_one":
        texts = texts[:1].expand(TEXTS, WIDTH)
        images = -texts[:1].expand(PAIRS, WIDTH)
    if case.vectors == "rounded":
        images, texts = images.bfloat16(), texts.bfloat16()
    named = {"images": images, "texts": texts, "teacher_images": teacher[0], "teacher_texts": teacher[1]}
    batch = {name: tensor.to(case.dtype) for name, tensor in named.items()}
    return batch | {"labels": torch.tensor(LABELS[case.labels]), "index": index}


def part_of(batch: dict[str, Tensor], sizes: list[int], rank: int) -> tuple[dict[str, Tensor], Tensor]:
    """What one process holds: its rows, the texts that they use, and which texts of all those are."""
    rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    used, index = batch["index"][rows].unique(return_inverse=True)
    own = {name: batch[name][rows] for name in ("images", "teacher_images", "labels")}
    return own | {"texts": batch["texts"][used], "teacher_texts": batch["teacher_texts"][used], "index": index}, used


def loss_of(case: Case, batch: dict[str, Tensor], towers: nn.Module, sharded: bool) -> Tensor:
    images, texts, scale, bias, unused = towers(batch["images"], batch["texts"])
    labels, index, chunk = batch["labels"], batch["index"], {"chunk_size": case.chunk_size}
    teacher = (batch["teacher_images"], batch["teacher_texts"], scale.detach() * 0.5)
    options = {"direction": case.direction, "label_smoothing": case.smoothing, "text_index": index} | chunk
    if case.loss == "both":
        if sharded:
            pair = sharded_distilled_contrast(images, texts, labels, scale, *teacher, **options)
        else:
            first = image_text_label_loss(images, texts, labels, scale, **options)
            pair = first, distillation_loss(images, texts, scale, *teacher, text_index=index, **chunk)
        return 0.3 * pair[0] + 0.7 * pair[1] + unused
    function = LOSSES[case.loss][sharded]
    if case.loss == "contrast":
        value = function(images, texts, labels, scale, **options)
    elif case.loss == "distillation":
        value = function(images, texts, scale, *teacher, text_index=index, **chunk)
    elif case.loss == "sigmoid":
        value = function(images, texts, labels, scale, bias, text_index=index, **chunk)
    else:
        # the two views of an image are neighbours
        value = function(images, labels, scale, views=torch.arange(len(labels)) // 2, **chunk)
    assert value.dtype == case.dtype and value.shape == ()
    return value + unused


def results_of(case: Case, batch: dict[str, Tensor], towers: nn.Module, sharded: bool) -> dict[str, Tensor]:
    """The loss and its gradient by images, texts and parameters."""
    leaves = {name: batch[name].clone().requires_grad_() for name in ("images", "texts")}
    with torch.autocast("cpu", enabled=case.autocast, dtype=torch.bfloat16):
        loss = loss_of(case, batch | leaves, (lambda *x: plain(towers, *x)) if case.autocast else towers, sharded)
    loss.backward()
    found = {name: leaf.grad for name, leaf in leaves.items()} | {"loss": loss.detach()}
    module = getattr(towers, "module", towers)
    return found | {f"parameter.{name}": parameter.grad.clone() for name, parameter in module.named_parameters()}


def plain(towers: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The towers without autocast: their roundings are not what is compared."""
    with torch.autocast("cpu", enabled=False):
        return towers(*inputs)


def run_cases(rank: int, world: int) -> dict[str, Tensor]:
    found = {}
    towers = {dtype: DistributedDataParallel(Towers(Case(dtype=dtype))) for dtype in (torch.float32, torch.float64)}
    for case in CASES:
        batch, used = part_of(global_batch(case), SPLITS[case.split][world], rank)
        shared = towers[case.dtype]
        shared.zero_grad()
        shared.module.load_state_dict(Towers(case).state_dict())
        shared.module.autocast = case.autocast
        results = results_of(case, batch, shared, True)
        # by the convention the gradient of what one process holds is R times that of the loss
        results = {k: v if k.startswith(("parameter", "loss")) else v / world for k, v in results.items()}
        results["texts"] = torch.zeros(TEXTS, WIDTH, dtype=case.dtype).index_add_(0, used, results["texts"])
        found |= {f"{case.name}/{key}": value.contiguous() for key, value in results.items()}
    return found


def check_collectives(rank: int, world: int) -> None:
    """Rows of any number, integers and floats, there and back; sums; shares."""
    sizes = SPLITS["empty"][world]
    rows = torch.randn(PAIRS, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(rank * 0))
    start = sum(sizes[:rank])
    local = rows[start : start + sizes[rank]].clone().requires_grad_()
    gathered = gather_rows(local)
    assert torch.equal(gathered, rows)
    (gathered.square() * (rank + 1)).sum().backward()
    torch.testing.assert_close(local.grad, 2 * local.detach() * sum(range(1, world + 1)))
    assert torch.equal(gather_rows(torch.arange(PAIRS)[start : start + sizes[rank]], sizes), torch.arange(PAIRS))
    half = gather_rows(local.detach().bfloat16().requires_grad_(), sizes, torch.float32)
    assert half.dtype == torch.float32 and torch.equal(half, rows.bfloat16().float())
    nothing = gather_rows(torch.zeros(0, 3, requires_grad=True))
    assert nothing.shape == (0, 3)
    share = torch.as_tensor(share_of_rows(local))
    assert share.item() == pytest.approx(world * sizes[rank] / PAIRS)
    mean = sum_over_ranks(share * local.sum(0) / max(len(local), 1)) / world
    torch.testing.assert_close(mean, rows.mean(0))
    assert share_of_rows(local[:0]) == (1.0 if world == 1 else 0.0)
    parts = torch.tensor([float(rank), -torch.inf if rank else -200.0, 300.0 * rank])
    everyone = torch.stack([torch.tensor([float(r), -torch.inf if r else -200.0, 300.0 * r]) for r in range(world)])
    torch.testing.assert_close(log_add_exp_over_ranks(parts), everyone.logsumexp(0))


def check_errors(rank: int, world: int) -> None:
    """A part that fits no batch, on one process, stops all."""
    case = Case(split="even")
    batch, _ = part_of(global_batch(case), SPLITS["even"][world], rank)
    wrong = batch | {"labels": torch.full_like(batch["labels"], -2 if rank == world - 1 else 0)}
    with pytest.raises(ValueError, match="labels must be -1" if rank == world - 1 else f"process {world - 1} refuses"):
        loss_of(case, wrong, Towers(case), True)
    if world > 1:
        none, _ = part_of(global_batch(case), [0] * world, rank)
        with pytest.raises(ValueError, match="no process holds a pair"):
            loss_of(case, none, Towers(case), True)


@contextmanager
def counted() -> Iterator[Counter]:
    """How many collectives run within, and the bytes that each brings in."""
    tally, real = Counter(), {}

    def counting(name: str) -> Callable:
        def call(*arguments: Tensor, **options: object) -> object:
            tally[name] += 1
            # the whole of what is gathered, summed or scattered
            largest = max(tensor.nbytes for tensor in arguments if isinstance(tensor, Tensor))
            tally["bytes"] += largest
            return real[name](*arguments, **options)

        return call

    for name in ("all_gather_into_tensor", "all_reduce", "reduce_scatter_tensor", "all_gather"):
        real[name] = getattr(dist, name)
        setattr(dist, name, counting(name))
    try:
        yield tally
    finally:
        for name, function in real.items():
            setattr(dist, name, function)


def gather_both(batch: dict[str, Tensor], towers: nn.Module) -> Tensor:
    """The whole loss on every process, from both towers' features of all."""
    images, texts, scale, _, _ = towers(batch["images"], batch["texts"])
    before = sum(int(count) for count in gather_rows(torch.tensor([len(texts)]))[: dist.get_rank()])
    index, labels = gather_rows(batch["index"] + before), gather_rows(batch["labels"])
    return image_text_label_loss(gather_rows(images), gather_rows(texts), labels, scale, text_index=index)


def measured_batch(loss: str, rank: int, world: int) -> tuple[dict[str, Tensor], Callable]:
    """A batch to measure a loss on, large where time is taken, and towers that are nothing but leaves."""
    pairs, width = MEASURED.get(loss, 256) // world, MEASURED_WIDTH
    generator = torch.Generator().manual_seed(rank)
    images, texts, *teacher = (torch.randn(pairs, width, generator=generator) for _ in range(4))
    batch = {"images": images, "texts": texts, "teacher_images": teacher[0], "teacher_texts": teacher[1]}
    batch |= {"labels": torch.randint(0, 300, (pairs,), generator=generator), "index": torch.arange(pairs)}

    def towers(images: Tensor, texts: Tensor) -> tuple[Tensor, ...]:
        scale = torch.tensor(14.0, requires_grad=True)
        return images.clone().requires_grad_(), texts.clone().requires_grad_(), scale, scale.detach(), torch.zeros(())

    return batch, towers


def measure(rank: int, world: int) -> dict[str, Tensor]:
    """Collectives and bytes of a step forward and backward, its operations and the seconds it takes at best."""
    found = {}
    for loss in (*LOSSES, "gather_both"):
        batch, towers = measured_batch(loss, rank, world)
        step = partial(loss_of, Case(loss), batch, towers, True)
        if loss == "gather_both":
            step = partial(gather_both, batch, towers)
        with counted() as forward:
            value = step()
        with counted() as backward:
            value.backward()
        counts = [sum(n for name, n in tally.items() if name != "bytes") for tally in (forward, backward)]
        with FlopCounterMode(display=False) as counter:
            step().backward()
        seconds = []
        for _ in range(3):
            dist.barrier()
            start = time.perf_counter()
            step().backward()
            dist.barrier()
            seconds.append(time.perf_counter() - start)
        numbers = [*counts, forward["bytes"], backward["bytes"], counter.get_total_flops(), min(seconds)]
        found[f"measured/{loss}"] = torch.tensor(numbers, dtype=torch.float64)
    return found


def process(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / f'store{world}'}"
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=limit)
    check_collectives(rank, world)
    check_errors(rank, world)
    found = run_cases(rank, world)
    if world == 2:
        found |= measure(rank, world)
    save_file(found, folder / f"{world}-{rank}.safetensors")
    dist.destroy_process_group()


def start_worlds(folder: Path) -> None:
    """All processes of all worlds, forked from one that has loaded torch but run nothing yet."""
    context = multiprocessing.get_context("fork")
    # what a process would load on first use
    torch.testing.assert_close(torch.ones(1), torch.ones(1))
    import_module("torch._dynamo")
    for world in WORLDS:
        started = [context.Process(target=process, args=(rank, world, folder)) for rank in range(world)]
        for one in started:
            one.start()
        while any(one.is_alive() for one in started) and not any(one.exitcode for one in started):
            time.sleep(0.02)
        if any(one.exitcode for one in started):
            for one in started:
                one.terminate()
            sys.exit(f"a process of {world} failed")


if __name__ == "__main__":
    start_worlds(Path(sys.argv[1]))
