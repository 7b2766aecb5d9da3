"""Experiment trackers that are told what `log.jsonl` is: TensorBoard, trackio, Weights & Biases."""

import importlib.util
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hf_vlr.errors import UserError
from hf_vlr.training.keys import leaves, value_at
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import spell_value

PROJECT = "hf_vlr"
# below the run's folder: TensorBoard's files, and what a resumed run is known by elsewhere
FOLDER, NAME_FILE = "trackers", "name.txt"


def check_trackers(recipe: Recipe) -> None:
    """Raise `UserError` for a tracker whose package is missing; Accelerate would leave it out without a word."""
    for tracker in recipe.train.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise UserError(f'train.trackers={tracker} needs its package: pip install {tracker}, or "hf_vlr[trackers]"')


@contextmanager
def tracking(accelerator: Accelerator, recipe: Recipe, folder: Path, step: int) -> Iterator[None]:
    """A block whose log lines also go to the recipe's trackers, under the name that the run had before `step`.

    Weights & Biases writes below the run's folder and sends nothing unless WANDB_MODE=online says so; what it refuses
    then (no account) is a `UserError`. trackio has a database of its own on this machine (TRACKIO_DIR).
    """
    if not recipe.train.trackers:
        yield
        return
    settings: dict[str, dict[str, Any]] = {}
    if accelerator.is_main_process:
        name = _name(folder)
        mode = os.environ.get("WANDB_MODE", "offline")
        settings = {
            # hides what an interrupted run had written of steps that are taken again
            "tensorboard": {"purge_step": step + 1},
            "trackio": {"name": name, "resume": "allow"},
            "wandb": {
                "name": name,
                "id": name.rpartition("-")[2],
                "resume": "allow",
                "dir": str(folder / FOLDER),
                "mode": mode,
            },
        }
    try:
        accelerator.init_trackers(PROJECT, flat(recipe), settings)
    except _refusals(recipe) as error:
        raise UserError(f"train.trackers=wandb: {error} Without WANDB_MODE nothing is sent.") from error
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers.clear()


def _refusals(recipe: Recipe) -> tuple[type[Exception], ...]:
    """What the trackers raise where they may not start."""
    if "wandb" not in recipe.train.trackers:
        return ()
    from wandb.errors import Error

    return (Error,)


def flat(recipe: Recipe) -> dict[str, Any]:
    """Dotted keys and values of a recipe; numbers and words stay, the rest is spelled as on a command line."""
    values = {key: value_at(recipe, key) for key, _ in leaves(Recipe)}
    plain = (bool, int, float, str)
    return {key: value if isinstance(value, plain) else spell_value(value) for key, value in values.items()}


def _name(folder: Path) -> str:
    """The run's name, the same when it is resumed and never that of another run in a folder of this name."""
    path = folder / FOLDER / NAME_FILE
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{folder.name}-{uuid.uuid4().hex[:8]}\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
