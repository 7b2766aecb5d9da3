"""The rows of a comparison as they are read: a row is one run, or several seeds of one."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_vlr.comparison.words import Named
from hf_vlr.errors import UserError
from hf_vlr.evaluation.document import MIXED_NAME
from hf_vlr.evaluation.main_predictor import preferred
from hf_vlr.evaluation.outcome import Outcome, measure
from hf_vlr.evaluation.predictions import METRICS_FILE, Predictions, read_predictions

# what a training run leaves beside its predictions
RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True)
class Run:
    """One predictor of one run: what it did with each image (`outcome`), and its test set (`predictions`, no scores).

    mixed: whether the run's own `metrics.json` also holds VL-LTR's mixed convention. recipe: the settings of the
    `recipe.yaml` beside it, by dotted key, None where there is none.
    """

    location: str
    predictor: str
    predictions: Predictions
    outcome: Outcome
    mixed: bool = False
    recipe: Mapping[str, Any] | None = None

    @property
    def protocol(self) -> Mapping[str, Any]:
        return self.predictions.protocol


@dataclass(frozen=True)
class Row:
    """A name and its runs, at least one."""

    name: str
    runs: tuple[Run, ...]

    @property
    def places(self) -> tuple[str, ...]:
        return tuple(run.location for run in self.runs)


def read_row(named: Named) -> Row:
    """The runs of a row, their scores reduced to a few numbers per image, one run in memory at a time.

    Raises `UserError` for a folder without predictions, for a predictor that is not there, where none was chosen
    among several, and for scores that cannot be read, naming the run.
    """
    return Row(named.name, tuple(_run(place, named.predictor) for place in named.places))


def _run(place: str, wanted: str | None) -> Run:
    predictions = read_predictions(place)
    predictor = chosen_predictor(predictions, place, wanted)
    try:
        outcome = measure(predictions.scores[predictor], predictions.labels, predictions.num_classes)
    except UserError as error:
        raise UserError(f"{place}, predictor {predictor!r}: {error}") from error
    return Run(place, predictor, predictions.with_scores({}), outcome, _holds_mixed(place), _recipe(place))


def chosen_predictor(predictions: Predictions, place: str, wanted: str | None) -> str:
    """The predictor asked for, else the main one as `hf_vlr.evaluation.main_predictor` knows it, else the only one.

    Raises `UserError` where that names none.
    """
    known = list(predictions.scores)
    listed = ", ".join(known) or "none"
    if wanted == MIXED_NAME:
        raise UserError(f"{MIXED_NAME} takes its numbers from two predictors: compare one of {listed}")
    if wanted is not None:
        if wanted not in known:
            raise UserError(f"{place} has no predictor {wanted!r}; it has {listed}")
        return wanted
    main = preferred(known, predictions.protocol)
    if main is not None:
        return main
    if len(known) != 1:
        raise UserError(f"{place} has several predictors ({listed}): choose one, as in {place}:{[*known, 'NAME'][0]}")
    return known[0]


def _beside(place: str, name: str) -> Path:
    return Path(place) / name if Path(place).is_dir() else Path(place).with_name(name)


def _holds_mixed(place: str) -> bool:
    path = _beside(place, METRICS_FILE)
    if not path.is_file():
        return False
    predictors = json.loads(path.read_text(encoding="utf-8")).get("predictors", {})
    return any(entry.get("mixed") for entry in predictors.values())


def _recipe(place: str) -> dict[str, Any] | None:
    path = _beside(place, RECIPE_FILE)
    if not path.is_file():
        return None
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no recipe: {str(error).splitlines()[0]}") from error
    return dict(_flat(read)) if isinstance(read, dict) else None


def _flat(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a tree by dotted key."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
