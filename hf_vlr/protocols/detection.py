"""Detection: the vision tower as the backbone of Mask R-CNN, on generated scenes (UniCL's appendix: on COCO)."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.transforms import v2

from hf_vlr.cli.output import say, say_table
from hf_vlr.data.transforms import Scaling
from hf_vlr.detection.finetuning import compare_towers
from hf_vlr.detection.scenes import CATEGORIES
from hf_vlr.detection.settings import DetectionSettings
from hf_vlr.errors import UserError
from hf_vlr.evaluation.encoders import Encoder
from hf_vlr.protocols.result import result_document, write_result
from hf_vlr.randomness import seed_for
from hf_vlr.training.options import Recipe

TITLES = {"box_ap": "box AP", "box_ap50": "box AP50", "mask_ap": "mask AP", "mask_ap50": "mask AP50"}


def run(encoder: Encoder, recipe: Recipe, settings: DetectionSettings, out: Path | None) -> dict[str, Any]:
    """Average precision of a detector around the trained tower and, with `settings.fresh`, around a fresh one.

    Both get the same scenes, steps, rates and seed; of the recipe nothing is read. Raises `UserError` as `stage_maps`
    and `average_precision` do.
    """
    tower, (mean, std) = vision_tower_of(encoder), normalisation_of(encoder)
    towers = {"trained tower": partial(_trained, tower)}
    if settings.fresh:
        towers["fresh tower"] = partial(_fresh, tower, settings.seed)
    numbers = compare_towers(towers, mean, std, settings)["rows"]
    budget = f"{settings.steps} steps of {settings.batch_size}"
    say(f"{settings.test_scenes} scenes, {len(CATEGORIES) - 1} categories; {budget}")
    rows = [(name, *(f"{100 * found[key]:.1f}" for key in TITLES)) for name, found in numbers.items()]
    say_table([("", *TITLES.values()), *rows])
    stated = {"model": encoder.location, "source": "generated scenes", "split": "test", "tower": type(tower).__name__}
    document = result_document("detection", settings, stated, numbers)
    write_result(out, document)
    return document


def vision_tower_of(encoder: Encoder) -> nn.Module:
    """The tower inside a dual encoder, or the vision model itself."""
    model = getattr(encoder, "inner", encoder.model)
    return getattr(model, "vision_model", model)


def normalisation_of(encoder: Encoder) -> tuple[list[float], list[float]]:
    """(mean, std) by which the encoder's images are normalised; `UserError` where its transform does not say."""
    for step in getattr(encoder.transform, "transforms", []):
        if isinstance(step, Scaling | v2.Normalize):
            return list(step.mean), list(step.std)
    raise UserError(f"model {encoder.location} does not state how its images are normalised")


def _trained(tower: nn.Module) -> nn.Module:
    copy = type(tower)(tower.config)
    copy.load_state_dict(tower.state_dict())
    return copy


def _fresh(tower: nn.Module, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(seed, 0, 0, "detector/fresh"))
        return type(tower)(tower.config)
