"""`hf-vlr eval`: a model measured on a dataset, by shot groups."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.evaluation.caching import evaluation_cache
from hf_vlr.evaluation.crops import crop_views, ensemble
from hf_vlr.evaluation.explanation import make_examples
from hf_vlr.evaluation.image_rows import image_rows
from hf_vlr.evaluation.predictions import Predictions, read_predictions
from hf_vlr.evaluation.protocol import NO_SPLIT, RECIPE_FILE, stated_of
from hf_vlr.evaluation.record import record
from hf_vlr.evaluation.subject import Subject
from hf_vlr.evaluation.subjects import open_subject
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import load_recipe, override_recipe
from hf_vlr.training.run_data import labelled, load_split

# where evaluations of models from elsewhere go
RUNS = "runs"


def evaluate_checkpoint(
    model_dir: str,
    overrides: Sequence[str] = (),
    out: str | None = None,
    *,
    reference: str | None = None,
    same_order: bool = False,
) -> list[dict[str, Any]]:
    """Measure a model on the splits of `eval.splits`; returns one metrics document per split.

    A recogniser of this package is measured by its branches and their fusion; a dual encoder (ours, CLIP, SigLIP and
    their like) by zero-shot classification against the mean of each class's texts (`data.texts`, else the
    `texts.jsonl` beside the model, else the dataset's own); any `AutoModelForImageClassification` by its logits.
    Outputs are found by the names of their classes (`match_classes`), or taken in order with `same_order`. The settings
    of the run that made the folder hold unless `overrides` say otherwise.

    Documents go to `eval/SPLIT` in `out`, by default in the model's folder, for a Hub id in `runs/NAME`. `reference`:
    the folder of an evaluation on the same split, whose gain the report shows. What towers compute is kept on disk
    (`evaluation_cache`). Raises `UserError` for a model that cannot be read and for classes that it does not know.
    """
    recipe = recipe_of(model_dir, overrides)
    if not recipe.eval.splits:
        raise UserError(NO_SPLIT)
    before = read_predictions(reference) if reference else None
    if before is not None and len(recipe.eval.splits) > 1:
        raise UserError(f"a reference is of one split; choose one of {', '.join(recipe.eval.splits)} with --split")
    sources = [labelled(load_split(recipe, split)) for split in recipe.eval.splits]
    subject = open_subject(model_dir, recipe, same_order)
    target = Path(out or (model_dir if Path(model_dir).is_dir() else Path(RUNS) / model_dir.rpartition("/")[2]))
    documents = []
    for source in sources:
        predictions = predict(subject, recipe, source)
        examples = make_examples(predictions, source, recipe.eval.rule, subject.sentences) if recipe.eval.report else ()
        documents.append(record(predictions, target / "eval" / source.split, recipe.eval, examples, before))
    return documents


def recipe_of(model_dir: str, overrides: Sequence[str]) -> Recipe:
    """The recipe the folder was made by, with `overrides`; a bare one for a model from elsewhere.

    Settings of the trained source (`data.options`) do not hold for a source of another kind that `overrides` name.
    """
    path = Path(model_dir) / RECIPE_FILE
    if not path.is_file():
        return override_recipe(Recipe(task="recognition"), overrides)
    recipe, trained = load_recipe(path, overrides), load_recipe(path)
    kinds = {str(one.data.source).partition(":")[0] for one in (recipe, trained)}
    return recipe if len(kinds) == 1 else load_recipe(path, ["data.options={}", *overrides])


def predict(subject: Subject, recipe: Recipe, source: ImageSource) -> Predictions:
    """What a subject says of a source, with all that a reader must know."""

    @cache
    def train() -> ImageSource | None:
        return None if source.split == "unseen" else load_split(recipe, "train")

    subject.prepare(source, train)
    views = crop_views(subject.transform, recipe.eval.crops)
    scores = ensemble(views.transforms, lambda transform: subject.scores(source, transform))
    counts = subject.train_counts()
    if counts is None:
        counts = np.zeros(source.num_classes, dtype=np.int64) if train() is None else train().class_counts()
    stated = stated_of(subject.location, recipe, source.split, subject.image_size, views.cost) | subject.protocol()
    rows = image_rows(source, evaluation_cache(recipe.data).folder)
    return Predictions(scores, source.labels, counts, tuple(source.class_names), stated, rows)
