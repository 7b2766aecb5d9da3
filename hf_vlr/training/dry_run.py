"""A dry run: what a recipe would do and cost, without training, downloading weights or writing anything."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_vlr.data.batches import Collator
from hf_vlr.errors import UserError
from hf_vlr.features import StateCache
from hf_vlr.training.context import Context
from hf_vlr.training.estimates import (
    LARGEST_TRIAL,
    Load,
    Memory,
    StepFlops,
    Trial,
    before_the_first_step,
    count_step,
    load_of,
    run_trial,
    trial_size,
)
from hf_vlr.training.feeding import epoch_keys
from hf_vlr.training.optimizer import parameter_groups
from hf_vlr.training.options import Recipe
from hf_vlr.training.rehearsal import Rehearsal, Shape
from hf_vlr.training.run_data import RunData, load_run_data, spoken_texts
from hf_vlr.training.sketch import Sketch, sketch_dual_encoder

# sentences that are tokenised to see how long a batch's texts are
SAMPLED_TEXTS = 256
# of task=rebalance; the others compute a classifier at once
TRAINED_METHODS = ("crt", "lws")


@dataclass(frozen=True)
class Steps:
    """rows: of an epoch. per_epoch, total, warmup: optimiser steps. None: the data decides, and is not at hand."""

    rows: int | None
    per_epoch: int | None
    total: int | None
    warmup: int | None


@dataclass(frozen=True)
class Group:
    """Parameters of one part of the model that share a rate and a decay; rate None: frozen."""

    part: str
    tensors: int
    parameters: int
    rate: float | None
    decay: float


@dataclass
class DryRun:
    """All that is known of a run before it is one; `unknown` says what is not, or had to be assumed.

    shape: None, and all that follows it, where the model cannot be built. trial: of what steps do; towers: of encoding
    alone, where that comes before the first step.
    """

    recipe: Recipe
    processes: int
    data: RunData | None = None
    steps: Steps | None = None
    sketch: Sketch | None = None
    shape: Shape | None = None
    groups: list[Group] = field(default_factory=list)
    load: Load | None = None
    flops: StepFlops | None = None
    memory: Memory | None = None
    trial: Trial | None = None
    towers: Trial | None = None
    unknown: list[str] = field(default_factory=list)

    def step_seconds(self) -> float:
        """Of computing a step: its operations at the trial's rate, processes side by side."""
        return self.flops.total / self.processes / self.trial.rate

    def once_seconds(self) -> float:
        """Of encoding before the first step."""
        return 0.0 if self.towers is None else self.flops.once / self.towers.rate


def dry_run(recipe: Recipe) -> DryRun:
    """Resolve, build, count and time what `run(recipe)` would do; what cannot be found out is said in `unknown`.

    Operations and memory are counted on tensors without memory (torch's fake tensors, as on a CPU). Raises `UserError`
    for a recipe that could not be run on this data or by these processes.
    """
    # not Accelerate's whole state: that would fix the number format of the process
    state = PartialState()
    result = DryRun(recipe, state.num_processes)
    try:
        result.data = load_run_data(recipe)
    except UserError as error:
        result.unknown.append(f"the data: {error}")
    result.steps = plan_steps(recipe, result.data, state)
    try:
        result.sketch = sketch_dual_encoder(recipe, spoken_texts(result.data) if result.data else [])
    except UserError as error:
        result.unknown.append(f"the model: {error}")
        return result
    result.unknown += result.sketch.notes
    result.shape = shape_of(recipe, result.data, result.sketch)
    if result.shape.classes is None and recipe.task in ("recognition", "joint", "rebalance"):
        result.unknown.append("the classes: without them the head is left out of all that follows")
    with FakeTensorMode():
        rehearsal = Rehearsal(recipe, result.sketch, result.shape, number_format(recipe, "cpu"))
        result.groups = list_groups(rehearsal)
        result.load = load_of(recipe, rehearsal, result.data, result.processes)
        before = before_the_first_step(recipe, result.data)
        result.flops, result.memory = count_step(recipe, rehearsal, result.load, before)
    time_a_trial(result, state.device)
    return result


def number_format(recipe: Recipe, device: str) -> Callable[[], torch.autocast]:
    """`train.mixed_precision` on a kind of device, as a context to compute in."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.train.mixed_precision)
    return partial(torch.autocast, device, dtype=kind or torch.bfloat16, enabled=kind is not None)


def plan_steps(recipe: Recipe, data: RunData | None, state: PartialState) -> Steps:
    """How many steps the loop will take; raises `UserError` for a batch that the data or the processes do not allow."""
    rows = per_epoch = None
    total = recipe.train.steps
    if recipe.task == "rebalance" and recipe.rebalance.method not in TRAINED_METHODS:
        return Steps(None, None, 0, 0)
    if data is not None:
        keys = epoch_keys(Context(recipe, Path(recipe.output), state, StateCache(None), resume=False), data.train)
        rows, per_epoch = keys.num_samples, math.ceil(keys.batches_per_epoch / recipe.train.accumulation)
        total = total or recipe.train.epochs * per_epoch
    return Steps(rows, per_epoch, total, None if total is None else round(recipe.optim.warmup_fraction * total))


def shape_of(recipe: Recipe, data: RunData | None, sketch: Sketch) -> Shape:
    """What the data says of the model; its texts are as long as some are, else as `data.max_text_length` allows."""
    length = recipe.data.max_text_length
    if data is None:
        return Shape(None, False, length)
    if data.corpus is not None and len(data.corpus) and sketch.tokenizer is not None:
        chosen = np.linspace(0, len(data.corpus) - 1, min(SAMPLED_TEXTS, len(data.corpus))).astype(int)
        tokenized = Collator(sketch.tokenizer, length).tokenize([data.corpus.texts[row] for row in chosen])
        length = tokenized["input_ids"].shape[1]
    return Shape(data.train.num_classes or None, bool((data.train.labels < 0).any()), length)


def list_groups(rehearsal: Rehearsal) -> list[Group]:
    """Parameters by part, rate and decay, in the model's order; those of an unknown head are left out."""
    settings = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in parameter_groups(rehearsal.task, rehearsal.recipe.optim)
        for parameter in group["params"]
    }
    found: dict[tuple[str, float | None, float], list[int]] = {}
    for name, parameter in rehearsal.whole.named_parameters():
        part = part_of(name.removeprefix("model."))
        if not (part.startswith(("head", "classifier")) and rehearsal.shape.classes is None):
            key = (part, *settings.get(id(parameter), (None, 0.0)))
            found.setdefault(key, []).append(parameter.numel())
    return [Group(part, len(sizes), sum(sizes), rate, decay) for (part, rate, decay), sizes in found.items()]


def part_of(name: str) -> str:
    """The part of a model that a parameter belongs to: a tower, a projection, a branch of the head."""
    words = name.split(".")
    return ".".join(words[: 2 if words[0] in ("vlltr", "head") else 1])


def time_a_trial(result: DryRun, device: torch.device) -> None:
    """Fill in how long a few images and texts take on this machine; say so where that cannot be tried."""
    recipe, each = result.recipe, result.flops.total / result.recipe.train.batch_size
    if recipe.train.mixed_precision == "fp16" and device.type == "cpu":
        result.unknown.append("the time: train.mixed_precision=fp16 needs a GPU, and here is none")
        return
    images, texts = before_the_first_step(recipe, result.data)
    encoded = result.flops.once / max(1, images, texts)
    count, alone = (trial_size(flops, LARGEST_TRIAL, device) for flops in (each, encoded))
    if count == 0 or alone == 0:
        result.unknown.append("the time: two images with their texts are too much to be tried on this CPU")
        return
    with torch.device(device):
        rehearsal = Rehearsal(recipe, result.sketch, result.shape, number_format(recipe, device.type))
        rehearsal.task.to(device)
        texts_of = rehearsal.texts(count) if rehearsal.speaks else None
        result.trial = run_trial(rehearsal.images(count), texts_of, count, device)
        if images:
            texts_of = rehearsal.texts_only(alone) if texts else None
            result.towers = run_trial(rehearsal.pictures_only(alone), texts_of, alone, device)
