"""The folder of a run: opened once training begins, completed by its evaluation and its model."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_vlr.data.source import ImageSource
from hf_vlr.disk import writing
from hf_vlr.errors import UserError
from hf_vlr.evaluation.document import metrics_document, write_metrics
from hf_vlr.evaluation.metrics import per_class_table, write_text
from hf_vlr.evaluation.predictions import METRICS_FILE, PREDICTIONS_FILE
from hf_vlr.evaluation.predictors import Scores
from hf_vlr.evaluation.table import render_table
from hf_vlr.modeling.modeling_unicl import UniCLPreTrainedModel
from hf_vlr.training.checkpoints import CHECKPOINTS, START_AGAIN, last_checkpoint, way_on
from hf_vlr.training.context import Context
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import load_recipe, recipe_to_yaml
from hf_vlr.training.run_data import RunData

RECIPE_FILE = "recipe.yaml"
TEXTS_FILE = "texts.jsonl"
# keys that may differ between a run and its continuation: they change nothing that is computed
FREE_KEYS = (
    "output",
    "data.workers",
    "data.cache_dir",
    "train.keep",
    "train.log_every",
    "train.save_every",
    "train.validate_every",
    "train.trackers",
)


def check_folder(folder: Path, resume: bool) -> None:
    """Raise `UserError` where a run would mix with another one."""
    if folder.is_file():
        raise UserError(f"output={folder} is a file; name a folder")
    # a process that was killed at the very beginning may have left a file without its name yet
    occupied = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    if occupied and not (folder / RECIPE_FILE).is_file():
        raise UserError(f"output={folder} holds other files; name a new folder with out=")
    if occupied and not resume:
        raise UserError(f"output={folder} already holds a run; go on with --resume, or name another folder with out=")


def open_folder(context: Context) -> None:
    """Make the run's folder and write its recipe, once everything before training has gone well.

    Raises `UserError` when a resumed run's recipe differs from the one the folder was begun with.
    """
    path = context.folder / RECIPE_FILE
    if context.resume and path.is_file():
        changed = first_difference(load_recipe(path), context.recipe)
        if changed:
            raise UserError(f"cannot resume {context.folder} with another {changed}; start anew with out=")
    context.accelerator.wait_for_everyone()  # nobody reads the recipe any more
    if context.accelerator.is_main_process:
        context.folder.mkdir(parents=True, exist_ok=True)
        write_text(path, recipe_to_yaml(context.recipe))
    context.accelerator.wait_for_everyone()


def discard_beginning(context: Context) -> None:
    """Remove the folder of a fresh run that failed before its first checkpoint: it holds nothing to go on from."""
    fresh = not context.resume and last_checkpoint(context.folder / CHECKPOINTS) is None
    if fresh and context.accelerator.is_main_process:
        shutil.rmtree(context.folder, ignore_errors=True)


def first_difference(before: Any, after: Any, prefix: str = "") -> str | None:
    """The dotted key of the first value in which two recipes differ, `FREE_KEYS` aside."""
    for name, old in vars(before).items():
        new, key = getattr(after, name), prefix + name
        if hasattr(old, "__dataclass_fields__"):
            found = first_difference(old, new, f"{key}.")
            if found:
                return found
        elif old != new and key not in FREE_KEYS:
            return key
    return None


@dataclass(frozen=True)
class Measurement:
    """What was measured: each predictor's log-probabilities [N, C] of a source, and what a reader must know.

    train_counts: images per class [C] in training. image_size: pixels. training: what `Trainer.fit` returned.
    """

    source: ImageSource
    scores: Scores
    train_counts: np.ndarray
    image_size: int
    training: dict[str, Any]


def write_evaluation(
    context: Context,
    data: RunData,
    scores: Callable[[ImageSource], Scores],
    image_size: int,
    training: dict[str, Any],
) -> None:
    """Measure the recipe's splits: the first one named is the run's own `metrics.json`, others get a folder each.

    `scores` gives each predictor's log-probabilities [N, C] of a source.
    """
    counts = data.train.class_counts()
    for number, source in enumerate(data.measured):
        folder = context.folder if number == 0 else context.folder / source.split
        known = counts[: source.num_classes]
        measured = Measurement(source, scores(source), known, image_size, training)
        write_measurement(context.recipe, measured, folder, way_on(context.folder / CHECKPOINTS))


def write_measurement(
    recipe: Recipe, measured: Measurement, folder: Path | None, then: str = START_AGAIN
) -> dict[str, Any]:
    """Print the table and return the metrics document; with a folder also write it, with per-class and raw scores.

    Raises `UserError` that says `then` where the disk is full; `metrics.json` is last and whole, or missing.
    """
    source, counts, rule = measured.source, measured.train_counts, recipe.eval.rule
    document = metrics_document(
        measured.scores,
        source.labels,
        counts,
        source.class_names,
        rule,
        protocol(recipe, source.split, measured.image_size, measured.training),
    )
    if folder is not None:
        tables = {
            name: per_class_table(values, source.labels, counts, source.class_names, rule)
            for name, values in measured.scores.items()
        }
        with writing(folder / PREDICTIONS_FILE, then):
            folder.mkdir(parents=True, exist_ok=True)
            _write_scores(folder / PREDICTIONS_FILE, labels=source.labels, train_counts=counts, **measured.scores)
        with writing(folder / METRICS_FILE, then):
            write_metrics(folder, document, tables)
    print(f"{source.split}: {len(source)} images")
    print(render_table(document["predictors"]))
    return document


def _write_scores(path: Path, **arrays: np.ndarray) -> None:
    partial = path.with_name(f".{path.name}")
    try:
        np.savez_compressed(partial, **arrays)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def protocol(recipe: Recipe, split: str, image_size: int, training: dict[str, Any]) -> dict[str, Any]:
    """What a reader must know before comparing the numbers with others."""
    return {
        "split": split if recipe.data.fold is None else f"{split} (fold {recipe.data.fold} of {recipe.data.folds})",
        "resolution": image_size,
        "test_time_augmentation": None,
        "pretraining": pretraining(recipe),
        "texts": recipe.data.texts or "the dataset's own" if recipe.model.language else None,
        "seed": recipe.seed,
        "source": recipe.data.source,
        "task": recipe.task,
        "training": training,
        "device": device_note(),
    }


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


def save_model(model: UniCLPreTrainedModel, processor: Any, folder: Path) -> None:
    """Write the model and its processor into the run's folder: first beside it, then moved, `config.json` last."""
    partial = folder / ".model.partial"
    try:
        with writing(folder / "model.safetensors", way_on(folder / CHECKPOINTS)):
            shutil.rmtree(partial, ignore_errors=True)
            processor.save_pretrained(partial)
            model.save_pretrained(partial)
            for file in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
                os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def device_note() -> str:
    """Where a run was computed, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"
