"""What the steps of a run compute, keep and last, from a rehearsal of its task.

Operations and memory are counted, time is measured on a few blank images and texts and scaled. Letters: `N` images of a
step over all processes, `U` unique texts.
"""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hf_vlr.training.costs import Flops, ModelBytes, contrast_flops, measure_flops, model_bytes, saved_bytes
from hf_vlr.training.options import Recipe
from hf_vlr.training.rehearsal import Forward, Rehearsal
from hf_vlr.training.run_data import RunData

# operations that a timed trial may take, on a CPU and on an accelerator
TRIAL_FLOPS = {"cpu": 1.5e11, "cuda": 1e13}
LARGEST_TRIAL = 64
# what two images may take on a CPU to be tried at all
LONGEST_TRIAL_FLOPS = 2e12
TRIAL_SECONDS = 3.0
NUMBER_BYTES = 4


@dataclass(frozen=True)
class Load:
    """How much a step computes at a time.

    rows: images that a process contrasts or classifies together. micro: images, and texts, that its towers see at a
    time. texts: unique texts among `rows`, at the most. parallel: how often `rows` make up a step's batch, over
    processes and accumulation. processes: how many work side by side.
    """

    rows: int
    micro: int
    texts: int
    parallel: int
    processes: int


@dataclass(frozen=True)
class Cost:
    """Of one image or text: operations, and bytes kept for the backward pass, with `base` bytes for any number."""

    flops: Flops
    bytes_each: float
    base: float

    def bytes_of(self, count: int) -> float:
        """Bytes kept of `count` of them."""
        return self.base + count * self.bytes_each if count else 0.0


@dataclass(frozen=True)
class StepFlops:
    """Operations of one optimiser step over all processes, by what they are for; `once`: those before the first."""

    parts: dict[str, int]
    once: int

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Memory:
    """Bytes of one process on its device.

    activations: kept for the backward pass of what the towers see at a time. inputs: the step's pictures as bytes, and
    as numbers those that the towers see. features: of both towers, with their gradients.
    """

    model: ModelBytes
    teacher: int
    activations: int
    inputs: int
    features: int

    @property
    def total(self) -> int:
        model = self.model.weights + self.model.gradients + self.model.optimizer
        return model + self.teacher + self.activations + self.inputs + self.features


@dataclass(frozen=True)
class Trial:
    """A few images and texts, and how long they took on what device."""

    device: str
    images: int
    texts: int
    seconds: float
    flops: int

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.flops / self.seconds


def load_of(recipe: Recipe, rehearsal: Rehearsal, data: RunData | None, processes: int) -> Load:
    """The sizes of a step's parts; without data every image may have a text of its own."""
    parallel = recipe.train.accumulation * processes
    rows = recipe.train.batch_size // parallel
    texts = rows if rehearsal.speaks else 0
    if data is not None and data.corpus is not None and (data.train.labels >= 0).all():
        texts = min(texts, len(data.corpus))
    return Load(rows, min(recipe.train.micro_batch or rows, rows), texts, parallel, processes)


def probe(forward: Callable[[int], Forward], modules: Iterable[nn.Module]) -> Cost:
    """The cost of one of what `forward(count)` computes: operations in proportion, bytes by a line through 2 and 4."""
    flops = measure_flops(forward(2))
    two, four = (saved_bytes(forward(count), modules) for count in (2, 4))
    return Cost(Flops(flops.forward // 2, flops.backward // 2), (four - two) / 2, max(0.0, 2 * two - four))


def count_step(recipe: Recipe, rehearsal: Rehearsal, load: Load, before: tuple[int, int]) -> tuple[StepFlops, Memory]:
    """Operations of a step, those of (images, texts) `before` the first one, and a process's memory.

    Where the towers see less at a time than the contrast needs, they compute everything forward twice.
    """
    modules = [rehearsal.whole]
    image = probe(rehearsal.images, modules)
    text = probe(rehearsal.texts, modules) if rehearsal.speaks else Cost(Flops(), 0.0, 0.0)
    two_passes = load.micro < load.rows and not rehearsal.task.separable
    forward = 2 if two_passes else 1
    images, texts = load.parallel * load.rows, load.parallel * load.texts
    parts = {
        "images": images * (forward * image.flops.forward + image.flops.backward),
        "texts": texts * (forward * text.flops.forward + text.flops.backward),
        "teacher": rehearsal.taught * (images * image.flops.forward + texts * text.flops.forward),
        "contrast": recipe.train.accumulation * (1 + rehearsal.taught) * _contrast(rehearsal, load).total,
    }
    held = [image.bytes_of(load.micro), text.bytes_of(min(load.micro, load.texts))]
    width, side = rehearsal.encoder.config.projection_dim, rehearsal.sketch.image_size
    pixels = 0 if rehearsal.cached else rehearsal.views * 3 * side * side
    memory = Memory(
        model_bytes(rehearsal.whole),
        model_bytes(rehearsal.encoder).weights if rehearsal.taught else 0,
        round(max(held) if two_passes else sum(held)),
        pixels * (load.rows + NUMBER_BYTES * load.micro),
        2 * NUMBER_BYTES * width * (rehearsal.views * load.rows + load.texts),
    )
    return StepFlops({name: value for name, value in parts.items() if value}, _once(rehearsal, before)), memory


def _contrast(rehearsal: Rehearsal, load: Load) -> Flops:
    """Of one contrast over all processes: between images and texts, or between two views of the images."""
    if not rehearsal.speaks and rehearsal.views == 1:
        return Flops()
    images = rehearsal.views * load.rows * load.processes
    others = load.texts * load.processes if rehearsal.speaks else images
    return contrast_flops(images, others, rehearsal.encoder.config.projection_dim)


def _once(rehearsal: Rehearsal, before: tuple[int, int]) -> int:
    """Operations of towers that encode (images, texts) once."""
    images, texts = before
    total = images * (measure_flops(rehearsal.pictures_only(2)).forward // 2) if images else 0
    return total + (texts * (measure_flops(rehearsal.texts_only(2)).forward // 2) if texts else 0)


def before_the_first_step(recipe: Recipe, data: RunData | None) -> tuple[int, int]:
    """(images, texts) that towers encode before the first step: cached states, sentences and images for anchors."""
    if data is None:
        return 0, 0
    views = max(recipe.data.cache_views, int(recipe.task == "rebalance"))
    images, texts = views * len(data.train), 0
    chooses = recipe.task in ("recognition", "joint") and data.corpus is not None
    if data.corpus is not None and (chooses or recipe.data.cache_views):
        texts = len(data.corpus)
    if chooses and recipe.anchors.selection == "scored":
        source = data.train if recipe.anchors.split == "train" else data.validation
        images += int(np.minimum(source.class_counts(), recipe.anchors.images_per_class).sum())
    return images, texts


def trial_size(flops_each: float, most: int, device: torch.device) -> int:
    """How many images to try: 0 where two would take too long; `flops_each`: of an image with its text."""
    if device.type == "cpu" and 2 * flops_each > LONGEST_TRIAL_FLOPS:
        return 0
    fits = int(TRIAL_FLOPS.get(device.type, TRIAL_FLOPS["cuda"]) // max(1.0, flops_each))
    return min(max(2, fits), most)


def run_trial(images: Forward, texts: Forward | None, count: int, device: torch.device) -> Trial:
    """Time forward passes of `count` images and of as many texts, with their backward passes where there are any."""
    trials = [images] if texts is None else [images, texts]
    seconds = sum(seconds_of(trial, device) for trial in trials)
    flops = sum(measure_flops(trial).total for trial in trials)
    return Trial(device_name(device), count, 0 if texts is None else count, seconds, max(1, flops))


def seconds_of(forward: Forward, device: torch.device) -> float:
    """The median time of a forward and a backward pass, after one to warm up."""
    taken: list[float] = []
    while len(taken) < 2 or (len(taken) < 6 and sum(taken) < TRIAL_SECONDS):
        begun = time.perf_counter()
        value = forward()
        if value.requires_grad:
            value.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begun)
    return float(np.median(taken[1:]))


def device_name(device: torch.device) -> str:
    """A device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"a CPU, {torch.get_num_threads()} of {os.cpu_count()} threads"
