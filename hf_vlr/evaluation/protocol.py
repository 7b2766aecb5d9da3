"""What a reader must know of an evaluation before comparing its numbers with others."""

import json
from pathlib import Path
from typing import Any

import torch

from hf_vlr.evaluation.predictions import METRICS_FILE
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import load_recipe

RECIPE_FILE = "recipe.yaml"
NO_SPLIT = "eval.splits=[] leaves nothing to measure; name a split, e.g. eval.splits=test"
# written by interpolation of weights
INTERPOLATION_FILE = "interpolation.json"


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
        # how classes were weighed, which says what prior the model has learnt
        "sampler": recipe.data.sampler,
        "logit_adjustment": recipe.loss.logit_adjustment,
        "reweight": recipe.loss.reweight,
    }


def stated_of(location: str, recipe: Recipe, split: str, image_size: int, cost: str | None = None) -> dict[str, Any]:
    """The protocol of the model at `location`, which may be from elsewhere.

    What a run says of its training, and what interpolation made of it, is read from its folder. Of a model from
    elsewhere, what it had seen goes by its name, and nothing is known of its training.
    """
    stated = protocol_of(recipe, split, image_size, training_of(location), cost)
    if not (Path(location) / RECIPE_FILE).is_file():
        stated |= dict.fromkeys(("texts", "seed", "task", "sampler", "logit_adjustment", "reweight"))
        stated["pretraining"] = location
    mixed = _read_json(Path(location) / INTERPOLATION_FILE)
    if mixed:
        stated["interpolation"] = {name: mixed.get(name) for name in ("zero_shot", "fine_tuned", "weight")}
    return stated


def training_of(location: str) -> dict[str, Any]:
    """What the run in a folder says of its training in its own `metrics.json`; empty where there is none."""
    stated = _read_json(Path(location) / METRICS_FILE).get("protocol")
    training = stated.get("training") if isinstance(stated, dict) else None
    return training if isinstance(training, dict) else {}


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file, empty where there is none: a damaged note does not keep a model from being measured."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"
