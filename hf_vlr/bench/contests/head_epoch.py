"""Line 12: the recognition stage on cached features, against a frozen tower that runs again in every epoch.

Ours is the training step as a run takes it: a batch of the tower's states from memory, the task forward and backward,
the gradient's norm, AdamW. An epoch is as many steps as the images need. The peer is the tower alone, on fewer images
in a call, so ratios are per image and a lower bound: what decodes the images and the head come on top.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from hf_vlr.bench.contest import Answers, Contest, Contestant
from hf_vlr.bench.goals import Goal
from hf_vlr.bench.setting import Setting
from hf_vlr.data.batches import EpochBatches
from hf_vlr.data.source import ImageSource
from hf_vlr.modeling import VLLTRConfig, VLLTRForImageClassification
from hf_vlr.modeling.towers import encode_image
from hf_vlr.timing import Turns
from hf_vlr.training.loaders import Batch, StateBatches
from hf_vlr.training.optimizer import build_optimizer
from hf_vlr.training.options import LossOptions, ModelOptions, OptimOptions
from hf_vlr.training.recognition_task import RecognitionTask
from hf_vlr.training.step import Step, at_once

OURS, TOWER = "hf_vlr on cached features", "the tower in every epoch"
PATCH, HEAD_WIDTH = 16, 64
FROZEN = ["vision_model", "visual_projection", "logit_scale"]
VIT_B = {"layers": 12, "hidden": 768, "pixels": 224}
IMAGENET_LT = {"images": 115_846, "classes": 1000, "anchors": 64, "width": 512, **VIT_B}


def _model(setting: Setting) -> VLLTRForImageClassification:
    """A recogniser with random weights and anchors around a vision transformer."""
    hidden, classes, anchors, width = (setting[name] for name in ("hidden", "classes", "anchors", "width"))
    tower = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_attention_heads": hidden // HEAD_WIDTH}
    tower |= {"num_hidden_layers": setting["layers"], "image_size": setting["pixels"], "patch_size": PATCH}
    config = VLLTRConfig(
        vision_config={"model_type": "clip_vision_model", **tower},
        has_text_model=False,
        projection_dim=width,
        num_labels=classes,
        num_anchors=anchors,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        model = VLLTRForImageClassification(config)
    features = torch.randn(classes, anchors, width, generator=setting.generator())
    mask = torch.ones(classes, anchors, dtype=torch.bool)
    model.set_anchors(features, mask, [[""] * anchors] * classes)
    return model.to(setting.device)


def _states(setting: Setting, seen: Tensor) -> StateBatches:
    """Batches of random states, whose first rows are those `seen` by the tower; classes of equal size."""
    count = setting["images"]
    views = torch.randn(1, count, setting["hidden"], generator=setting.generator())
    views[0, : len(seen)] = seen
    names = [str(label) for label in range(setting["classes"])]
    source = ImageSource("bench", "train", range(count), np.arange(count) % len(names), [None] * count, names)
    keys = EpochBatches(source.labels, setting["batch"], "sqrt", setting.seed)
    return StateBatches(source, views, keys, setting.seed)


def _endless(batches: StateBatches, device: torch.device) -> Iterator[Batch]:
    """Epoch after epoch, on the device."""
    epoch = 0
    while True:
        for batch in batches.epoch(epoch):
            yield {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        epoch += 1


def _training_step(task: RecognitionTask, batches: StateBatches, device: torch.device) -> Callable[[], None]:
    """One step of a run on its next batch; the learning rate is 0, so that it has no lasting effect."""
    options = OptimOptions()
    optimizer = build_optimizer(task, options)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    step = Step(batches.scale, torch.Tensor.backward, nullcontext, lambda piece: None)
    source = _endless(batches, device)

    def call() -> None:
        at_once(step, task, next(source), 1.0)
        clip_grad_norm_(trained, options.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        task.after_step()

    return call


def _enter(setting: Setting) -> Sequence[Contestant]:
    model, device = _model(setting), setting.device
    shape = setting["pictures"], 3, setting["pixels"], setting["pixels"]
    pictures = torch.randn(shape, generator=setting.generator()).to(device)
    tower = model.vlltr.vision_model.eval()

    @torch.no_grad()
    def seen() -> Tensor:
        return encode_image(tower, pictures, model.config.vision_pooling)

    batches = _states(setting, seen().cpu())
    counts = torch.full((setting["classes"],), setting["images"] // setting["classes"])
    task = RecognitionTask(model, ModelOptions(freeze=FROZEN), LossOptions(), counts).to(device).train()
    step = _training_step(task, batches, device)

    # a step of training and a pass of the tower have nothing in common to compare
    def ours() -> Answers:
        step()
        return {}

    def theirs() -> Answers:
        seen()
        return {}

    steps = math.ceil(setting["images"] / setting["batch"]) * setting["epochs"]
    calls = math.ceil(setting["images"] / len(pictures)) * setting["epochs"]
    return [
        Contestant(OURS, ours, ours=True, calls_of_whole=steps, items=setting["batch"]),
        Contestant(TOWER, theirs, calls_of_whole=calls, items=len(pictures)),
    ]


EPOCH = Contest(
    name="head-epoch",
    row=12,
    title="recognition stage on cached features, {images} images, C = {classes}, M = {anchors}, D = {width}, "
    "batches of {batch}, {epochs} epoch(s)",
    item="image",
    sizes={
        "full": {**IMAGENET_LT, "batch": 128, "epochs": 1, "pictures": 8},
        "gpu": {**IMAGENET_LT, "batch": 1024, "epochs": 50, "pictures": 256},
        "quick": {
            **{"images": 2000, "classes": 50, "anchors": 8, "width": 64, "layers": 2, "hidden": 128, "pixels": 64},
            **{"batch": 64, "epochs": 1, "pictures": 8},
        },
    },
    enter=_enter,
    goals={"cpu": (Goal("seconds", 240),), "cuda": (Goal("seconds", 60),)},
    floors={TOWER: 2.0},
    turns=Turns(runs=7),
    note="the epoch's seconds are the median step times the number of steps; one pass of the tower over the pictures "
    "comes before the first epoch",
)
