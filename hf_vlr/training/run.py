"""One run: a recipe becomes a folder that holds a model, what it was made from and what it is worth."""

import os
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import ProjectConfiguration, set_seed

from hf_vlr.data.workers import worker_errors
from hf_vlr.disk import NO_ROOM, WRITING, error_number, refused
from hf_vlr.errors import UserError
from hf_vlr.features import StateCache
from hf_vlr.hub.connection import check_destination
from hf_vlr.hub.push import push_run
from hf_vlr.training.checkpoints import CHECKPOINTS, way_on
from hf_vlr.training.context import Context
from hf_vlr.training.contrast import fit_contrast
from hf_vlr.training.joint import fit_joint
from hf_vlr.training.options import Recipe
from hf_vlr.training.rebalance import fit_rebalance
from hf_vlr.training.recipe import load_recipe
from hf_vlr.training.recognition import fit_recognition
from hf_vlr.training.run_data import load_run_data
from hf_vlr.training.run_folder import check_folder, discard_beginning
from hf_vlr.training.trackers import FOLDER, check_trackers

FITS = {"recognition": fit_recognition, "joint": fit_joint, "rebalance": fit_rebalance}


def train_recipe(
    recipe: str | Path, overrides: list[str] | None = None, out: str | None = None, resume: bool = False
) -> Path:
    """Train what a recipe describes and return the folder it was written to.

    The folder holds the model (`config.json`, `model.safetensors`, the processor, the code that loads it without this
    package), `recipe.yaml`, `texts.jsonl`, `log.jsonl`, `metrics.json`, `per_class.csv`, `predictions.npz` and
    `checkpoints/`. The model is written last: where it is, the run was complete. Raises `UserError` for whatever the
    user can mend, before anything is written where that is possible.
    """
    words = list(overrides or []) + ([f"output={out}"] if out else [])
    return run(load_recipe(recipe, words), resume)


def run(recipe: Recipe, resume: bool = False) -> Path:
    """`train_recipe` for a recipe that is already loaded."""
    folder = Path(recipe.output)
    check_folder(folder, resume)
    check_trackers(recipe)
    _check_launch(recipe)
    accelerator = Accelerator(
        # processes that were launched together would else be strangers where there is no accelerator
        cpu=not torch.accelerator.is_available(),
        mixed_precision=recipe.train.mixed_precision,
        log_with=recipe.train.trackers or None,
        project_config=ProjectConfiguration(str(folder), str(folder / FOLDER)),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    _check_precision(recipe, accelerator)
    destination = recipe.train.push_to_hub if accelerator.is_main_process else None
    if destination:
        # before hours are spent: the name, and whether the Hub knows the token
        check_destination(destination)
    set_seed(recipe.seed)
    data = load_run_data(recipe)
    context = Context(recipe, folder, accelerator, StateCache(recipe.data.cache_dir), resume)
    try:
        with worker_errors():
            FITS.get(recipe.task, fit_contrast)(context, data)
    except UserError:
        discard_beginning(context)
        raise
    except WRITING as error:
        number = error_number(error)
        if number not in NO_ROOM:
            raise
        told = refused(getattr(error, "filename", None) or folder, number, way_on(folder / CHECKPOINTS))
        discard_beginning(context)
        raise told from error
    if destination:
        print(push_run(folder, destination, private=recipe.train.hub_private))
    accelerator.wait_for_everyone()
    return folder


def leave() -> None:
    """Take leave of the other processes, once this one trains nothing more: else it may be taken for lost."""
    PartialState().destroy_process_group()


def _check_launch(recipe: Recipe) -> None:
    """Raise `UserError` where the launcher was told what the recipe decides: Accelerate would take one of the two."""
    own = recipe.train.mixed_precision
    for name, key, value in (
        ("ACCELERATE_MIXED_PRECISION", "train.mixed_precision", own),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "train.accumulation", "1"),
        ("ACCELERATE_DYNAMO_BACKEND", "model.compile", "no"),
    ):
        asked = os.environ.get(name, "no").lower()
        if asked not in ("no", "1", value):
            raise UserError(
                f"the launcher asks for {name}={asked}, which {key} of the recipe decides: set that key, and leave "
                "this out of the launch command and of accelerate's configuration"
            )


def _check_precision(recipe: Recipe, accelerator: Accelerator) -> None:
    precision, image_size = recipe.train.mixed_precision, recipe.data.image_size or 224
    if precision == "fp16" and accelerator.scaler is None:
        # Accelerate would train in float32 without a word
        raise UserError("train.mixed_precision=fp16 needs a GPU; use bf16 or no")
    if precision == "bf16" and accelerator.device.type == "cpu" and image_size <= 16:
        # a strided bfloat16 convolution of a 1x1 map leaves weight gradients uninitialised (torch 2.11 to 2.15)
        raise UserError("train.mixed_precision=bf16 on a CPU needs data.image_size above 16; use no, or larger images")
