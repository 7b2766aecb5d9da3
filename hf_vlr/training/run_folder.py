"""The folder of a run: opened once training begins, completed by its evaluation and its model."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_vlr.data.source import ImageSource
from hf_vlr.disk import writing
from hf_vlr.errors import UserError
from hf_vlr.evaluation.explanation import Explain, make_examples
from hf_vlr.evaluation.image_rows import image_rows
from hf_vlr.evaluation.predictions import Predictions
from hf_vlr.evaluation.predictors import Scores
from hf_vlr.evaluation.protocol import RECIPE_FILE, protocol_of
from hf_vlr.evaluation.record import record
from hf_vlr.evaluation.text_file import write_text
from hf_vlr.features import StateCache
from hf_vlr.modeling.modeling_unicl import UniCLPreTrainedModel
from hf_vlr.training.checkpoints import CHECKPOINTS, last_checkpoint, way_on
from hf_vlr.training.context import Context
from hf_vlr.training.options import EvalOptions
from hf_vlr.training.recipe import load_recipe, recipe_to_yaml
from hf_vlr.training.run_data import RunData

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
    "train.push_to_hub",
    "train.hub_private",
    "eval.report",
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


def write_evaluation(
    context: Context,
    data: RunData,
    scores: Callable[[ImageSource], Scores],
    image_size: int,
    training: dict[str, Any],
    sentences: Explain | None = None,
) -> None:
    """Measure the recipe's splits: the first one named is the run's own `metrics.json`, others get a folder each.

    `scores` gives each predictor's log-probabilities [N, C] of a source, `sentences` what spoke for a class on each of
    its images, for the report.
    """
    recipe, counts = context.recipe, data.train.class_counts()
    for number, source in enumerate(data.measured):
        folder = context.folder if number == 0 else context.folder / source.split
        predictions = Predictions(
            scores(source),
            source.labels,
            counts[: source.num_classes],
            tuple(source.class_names),
            protocol_of(recipe, source.split, image_size, training),
            image_rows(source, StateCache(recipe.data.cache_dir).folder),
        )
        write_measurement(recipe.eval, predictions, source, folder, sentences, way_on(context.folder / CHECKPOINTS))
    crops = recipe.eval.crops
    if crops != "none":
        print(f"measured on one view of each image; for the ensemble: hf-vlr eval {context.folder} eval.crops={crops}")


def write_measurement(
    options: EvalOptions,
    predictions: Predictions,
    source: ImageSource,
    folder: Path,
    sentences: Explain | None,
    then: str,
) -> dict[str, Any]:
    """Record predictions of a source, with examples where a report is written; an error of the disk says `then`."""
    examples = make_examples(predictions, source, options.rule, sentences) if options.report else ()
    return record(predictions, folder, options, examples, then=then)


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
