"""Line 13: how costs grow with the size of a batch, of the head's parts, and with the number of processes.

A cost that is proportional to a number's power p lies on a line of slope p where both axes are logarithmic. Each slope
is fitted to three sizes, each twice the one before, and stands beside that of the formula for floating-point operations
at the same sizes, which is no whole number where a formula has several terms. A slope below the formula's says that
fixed costs have their share; one above it, that something grows faster than it should.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from hf_vlr.bench.contest import Study
from hf_vlr.bench.setting import Setting
from hf_vlr.bench.workers import end_with_parent
from hf_vlr.modeling.contrastive import image_text_label_loss
from hf_vlr.modeling.recognition import anchor_gram, anchor_rstd, language_guided_logits
from hf_vlr.sharded_contrast import sharded_image_text_label_loss
from hf_vlr.timing import Turns, in_turns

STEPS = (1, 2, 4)
# what noise may add to a slope: 10 % in the time of the largest size, over a factor of four, is 0.07
TOLERANCE = 0.1
# counted operations have no noise, but those of constant size have a share
COUNTED_TOLERANCE = 0.01
SCALE = 14.3

Call = Callable[[], object]


@dataclass(frozen=True)
class Growth:
    """A piece of work by one number: `work` makes a call of it, `flop` is its formula."""

    what: str
    letter: str
    values: Sequence[int]
    work: Callable[[int], Call]
    flop: Callable[[int], float]


def slope(values: Sequence[float], costs: Sequence[float]) -> float:
    """The power of `values` that `costs` are proportional to: least squares of their logarithms."""
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def contrast_flop(pairs: int, texts: int, width: int) -> float:
    """Every similarity once forward and once backward, and a product with it for either gradient."""
    return 8.0 * pairs * texts * width


def head_flop(images: int, classes: int, anchors: int, width: int) -> float:
    """Anchors by queries and images [C M, 2 B] and their Gram matrices by attentions, forward and again backward; the
    former's gradient; Wq and Wk, forward and backward."""
    products, grams = 4.0 * images * classes * anchors * width, 2.0 * images * classes * anchors**2
    return 3 * products + 2 * grams + 12.0 * images * width**2


def contrast_step(device: torch.device, pairs: int, texts: int, width: int) -> Call:
    """The contrast of pairs with so many distinct texts, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(rows, width, generator=generator).to(device).requires_grad_() for rows in (pairs, texts)]
    scale = torch.tensor(SCALE, device=device, requires_grad=True)
    labels = torch.full((pairs,), -1, device=device)
    index = None if pairs == texts else torch.arange(pairs, device=device) % texts

    def call() -> object:
        return torch.autograd.grad(image_text_label_loss(*leaves, labels, scale, text_index=index), [*leaves, scale])

    return call


def head_step(device: torch.device, images: int, classes: int, anchors: int, width: int) -> Call:
    """The recognition head forward and backward; what depends on the anchors alone is at hand."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    frozen = normal(classes, anchors, width)
    mask = torch.ones(classes, anchors, dtype=torch.bool, device=device)
    constants = {"gram": anchor_gram(frozen), "rstd": anchor_rstd(frozen)}
    shapes = ((width, width), (width, width), (width,), (width,), (width,), (width,), ())
    leaves = [normal(images, width), *(normal(*shape) / width**0.5 for shape in shapes)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    weights = normal(images, classes)

    def call() -> object:
        logits = language_guided_logits(leaves[0], frozen, mask, *leaves[1:], **constants)
        return torch.autograd.grad(logits, leaves, weights)

    return call


def growths(setting: Setting) -> list[Growth]:
    """What grows, each from its size in the setting to four times that."""
    width, texts, device = setting["width"], setting["texts"], setting.device
    head = {name: setting[name] for name in ("images", "classes", "anchors", "width")}

    def times(name: str) -> list[int]:
        return [step * setting[name] for step in STEPS]

    def head_by(name: str, letter: str) -> Growth:
        return Growth(
            "recognition head",
            letter,
            times(name),
            lambda value: head_step(device, **{**head, name: value}),
            lambda value: head_flop(**{**head, name: value}),
        )

    return [
        Growth(
            "contrast of distinct texts",
            "N",
            times("pairs"),
            lambda pairs: contrast_step(device, pairs, pairs, width),
            lambda pairs: contrast_flop(pairs, pairs, width),
        ),
        Growth(
            f"contrast of {texts} class prompts",
            "N",
            times("prompted_pairs"),
            lambda pairs: contrast_step(device, pairs, texts, width),
            lambda pairs: contrast_flop(pairs, texts, width),
        ),
        head_by("classes", "C"),
        head_by("anchors", "M"),
        head_by("images", "B"),
    ]


def measured(growth: Growth, runs: int) -> dict[str, Any]:
    """Best seconds at every value, their slope and the formula's."""
    found = in_turns({str(value): growth.work(value) for value in growth.values}, Turns(runs=runs))
    seconds = [found[str(value)].best for value in growth.values]
    return {
        "values": list(growth.values),
        "seconds": seconds,
        "slope": slope(growth.values, seconds),
        "formula": slope(growth.values, [growth.flop(value) for value in growth.values]),
    }


def shares(size: Mapping[str, int]) -> dict[int, dict[str, float]]:
    """By the number of processes R that share a contrast of N pairs: the most that one of them has to do.

    In counted floating-point operations, and in seconds of a core, to which processes that take turns on it do not add.
    """
    worlds = [world for world in STEPS if world <= size["ranks"]]
    pool = ProcessPoolExecutor(size["ranks"], mp_context=get_context("spawn"), initializer=end_with_parent)
    with tempfile.TemporaryDirectory() as folder, pool as processes:
        try:
            found = list(processes.map(partial(share, folder, dict(size), worlds), range(size["ranks"])))
        except BaseException:
            # processes wait for each other: those that have begun would wait for those that never will
            for child in active_children():
                child.kill()
            raise
    names = ("flop", "seconds")
    return {world: {name: max(one[world][name] for one in found[:world]) for name in names} for world in worlds}


def share(folder: str, size: Mapping[str, int], worlds: Sequence[int], rank: int) -> dict[int, dict[str, float]]:
    """What one process does, by the number of processes; it is at rest where it is not among them."""
    torch.set_num_threads(1)
    found = {}
    for world in worlds:
        if rank < world:
            store = (Path(folder) / f"store{world}").as_uri()
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
            found[world] = _cost(rank, size["shared_pairs"] // world, size["width"], size["runs"])
            dist.destroy_process_group()
    return found


def _cost(rank: int, pairs: int, width: int, runs: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(rank)
    leaves = [torch.randn(pairs, width, generator=generator).requires_grad_() for _ in range(2)]
    labels, scale = torch.full((pairs,), -1), torch.tensor(SCALE, requires_grad=True)

    def step() -> object:
        return torch.autograd.grad(sharded_image_text_label_loss(*leaves, labels, scale), [*leaves, scale])

    with FlopCounterMode(display=False) as counter:
        step()
    seconds = []
    for _ in range(runs):
        dist.barrier()
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    return {"flop": float(counter.get_total_flops()), "seconds": min(seconds)}


def _measure(setting: Setting) -> dict[str, Any]:
    lines, numbers, goals = [], {}, []
    for growth in growths(setting):
        found, name = measured(growth, setting["runs"]), f"{growth.what} by {growth.letter}"
        lines.append(
            f"{name} = {_listed(found['values'])}: {_listed(found['seconds'])} s, "
            f"slope {found['slope']:.2f}, formula {found['formula']:.2f}"
        )
        numbers[name] = found
        goals.append(_goal(name, found["slope"], found["formula"], TOLERANCE))
    found, name = _shared(setting), "sharded contrast by R"
    lines.append(
        f"{name} = {_listed(found['values'])} processes, N = {setting['shared_pairs']} of all: a process does "
        f"{_listed(found['gflop'])} GFLOP, slope {found['slope']:.2f}, formula -1.00, "
        f"in {_listed(found['seconds'])} s of a core, slope {found['seconds_slope']:.2f}"
    )
    goals.append(_goal(name, found["slope"], -1.0, COUNTED_TOLERANCE))
    # at small sizes fixed costs hide what grows
    return {"lines": lines, "numbers": {**numbers, name: found}, "goals": goals if setting.scale == "full" else []}


def _shared(setting: Setting) -> dict[str, Any]:
    found = shares(setting.size)
    worlds, costs = list(found), list(found.values())
    gflop, seconds = [one["flop"] / 1e9 for one in costs], [one["seconds"] for one in costs]
    slopes = {"slope": slope(worlds, gflop), "seconds_slope": slope(worlds, seconds)}
    return {"values": worlds, "gflop": gflop, "seconds": seconds, **slopes}


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(str(one) if isinstance(one, int) else f"{one:.3g}" for one in numbers)


def _goal(name: str, found: float, formula: float, tolerance: float) -> dict[str, Any]:
    return {"text": f"{name}: slope ≤ {formula:.2f} + {tolerance:g}", "met": found <= formula + tolerance}


FULL = {
    "pairs": 2048,
    "prompted_pairs": 16384,
    "texts": 1000,
    "shared_pairs": 4096,
    "images": 32,
    "classes": 500,
    "anchors": 64,
    "width": 512,
    "ranks": 4,
    "runs": 5,
}
GROWTH = Study(
    name="growth",
    row=13,
    title="slopes of cost on logarithmic axes, D = {width}",
    sizes={
        "full": FULL,
        "gpu": {**FULL, "pairs": 8192, "prompted_pairs": 65536, "images": 128, "classes": 1000},
        "quick": {
            "pairs": 64,
            "prompted_pairs": 64,
            "texts": 16,
            "shared_pairs": 64,
            "images": 4,
            "classes": 6,
            "anchors": 4,
            "width": 16,
            "ranks": 2,
            "runs": 1,
        },
    },
    measure=_measure,
    note=f"a slope meets its goal up to {TOLERANCE} above the formula's; processes talk by gloo and compute on "
    "processors, whatever the device; all of them know all texts, which is why their seconds fall more slowly than "
    "their operations, whose slope is judged",
)
