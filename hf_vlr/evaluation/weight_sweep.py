"""Two models mixed in their weights, the share chosen on the validation images of a dataset (WiSE-FT)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_vlr.disk import writing
from hf_vlr.errors import UserError
from hf_vlr.evaluate import predict, recipe_of
from hf_vlr.evaluation.adjustment_bench import Array
from hf_vlr.evaluation.main_predictor import main_predictor
from hf_vlr.evaluation.subjects import open_subject
from hf_vlr.evaluation.text_file import write_text
from hf_vlr.posthoc.tuning import Tuned
from hf_vlr.posthoc.weight_interpolation import GRID, interpolate, sweep
from hf_vlr.training.run_data import labelled, load_split

TOLD_FILE = "interpolation.json"


@dataclass(frozen=True)
class Interpolation:
    """A model between two others: its share of the fine-tuned one, and how that was chosen, None where it was given."""

    folder: Path
    weight: float
    tuned: Tuned | None


def write_interpolation(
    zero_shot: str,
    fine_tuned: str,
    output: str,
    *,
    weights: Sequence[float] = (),
    overrides: Sequence[str] = (),
    criterion: str = "balanced-nll",
    predictor: str | None = None,
) -> Interpolation:
    """Write (1 − a) θ_zero-shot + a θ_fine-tuned to `output`, with `interpolation.json` that says what it is.

    One of `weights` is a itself; of several (`weight_interpolation.GRID` where none are given) the best is chosen on
    the validation images, as `hf-vlr eval` would score them with the fine-tuned run's recipe and `overrides`, by
    `predictor` (by default the main one). Nothing is kept of what the towers compute on the way. Raises `UserError`
    for folders that do not fit each other, and as `hf_vlr.evaluate.predict` does.
    """
    if Path(output).exists():
        raise UserError(f"{output} exists already: name a new folder")
    tuned, weight = None, weights[0] if len(weights) == 1 else None
    if weight is None:
        tuned = _choose(zero_shot, fine_tuned, weights or GRID, overrides, criterion, predictor)
        weight = tuned.value
    told = {"zero_shot": zero_shot, "fine_tuned": fine_tuned, "weight": weight, "tuned": tuned and tuned.as_dict()}
    with writing(Path(output), "mend that and begin again"):
        folder = interpolate(zero_shot, fine_tuned, weight, output)
        write_text(folder / TOLD_FILE, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    return Interpolation(folder, weight, tuned)


def _choose(
    zero_shot: str,
    fine_tuned: str,
    grid: Sequence[float],
    overrides: Sequence[str],
    criterion: str,
    predictor: str | None,
) -> Tuned:
    # states of weights that are thrown away would only fill the disk
    recipe = recipe_of(fine_tuned, [*overrides, "data.cache_dir=off"])
    source = labelled(load_split(recipe, "validation"))

    def score(folder: Path) -> Array:
        predictions = predict(open_subject(str(folder), recipe), recipe, source)
        name = predictor or main_predictor(predictions)
        if name not in predictions.scores:
            raise UserError(f"the models have no predictor {name}, only {', '.join(predictions.scores)}")
        return predictions.scores[name]

    named = f"{source.split} of {source.name}"
    return sweep(zero_shot, fine_tuned, score, source.labels, split=named, grid=grid, criterion=criterion)
