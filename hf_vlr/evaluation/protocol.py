"""What a reader must know of an evaluation before comparing its numbers with others."""

from pathlib import Path
from typing import Any

import torch

from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import load_recipe

RECIPE_FILE = "recipe.yaml"


def protocol_of(
    recipe: Recipe, split: str, image_size: int, training: dict[str, Any], cost: str | None = None
) -> dict[str, Any]:
    """The protocol of a model that this package trained; `cost` is that of an ensemble of crops."""
    return {
        "split": split_note(recipe, split),
        "resolution": image_size,
        "test_time_augmentation": cost,
        "pretraining": pretraining(recipe),
        "texts": recipe.data.texts or "the dataset's own" if recipe.model.language else None,
        "seed": recipe.seed,
        "source": recipe.data.source,
        "task": recipe.task,
        "training": training,
        "device": device_note(),
    }


def split_note(recipe: Recipe, split: str) -> str:
    """The split's name, with the fold where it is one."""
    return split if recipe.data.fold is None else f"{split} (fold {recipe.data.fold} of {recipe.data.folds})"


def pretraining(recipe: Recipe) -> str | None:
    """What the towers had seen before this package trained them: both specs, or None where both were fresh.

    A run that started from another one's folder inherits its answer.
    """
    options = recipe.model
    if options.init is not None:
        before = Path(options.init) / RECIPE_FILE
        return pretraining(load_recipe(before)) if before.is_file() else options.init
    specs = [options.vision_weights or options.vision, *([options.text] if options.language else [])]
    return None if all(spec.startswith("scratch:") for spec in specs) else " + ".join(specs)


def device_note() -> str:
    """Where something was computed, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"
