"""Linear probe: how well a linear classifier reads the classes from features that stay as they are.

Full or few-shot. The strength of L2 is chosen on validation images, never on the reported split.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_vlr.cli.output import say, say_table
from hf_vlr.evaluation.encoders import Encoder
from hf_vlr.evaluation.record import record
from hf_vlr.protocols.inputs import Inputs, Part
from hf_vlr.protocols.options import LinearProbeOptions
from hf_vlr.protocols.probe import CHOSEN_BY, Probe, ProbeData, chosen_score, draw_shots, fit_probe
from hf_vlr.protocols.regularisation import FIRST_STEP, GRID, refined_search
from hf_vlr.protocols.result import result_document, summary, write_result
from hf_vlr.protocols.zero_shot import zero_shot_scores
from hf_vlr.training.options import Recipe


@dataclass(frozen=True)
class Fitted:
    """A probe with what was chosen for it; `validation` is the score of each C that was tried."""

    probe: Probe
    C: float
    validation: dict[float, float]
    images: int

    def stated(self) -> dict[str, Any]:
        """The choice in plain values."""
        tried = {f"{C:.4g}": score for C, score in self.validation.items()}
        return {"C": self.C, "validation": tried, "images": self.images, "converged": self.probe.converged}


def fit_chosen(
    train: ProbeData, validation: ProbeData | None, num_classes: int, settings: LinearProbeOptions
) -> Fitted:
    """A probe with `settings.C`, or with the C of `GRID` that is best on the validation images.

    `settings.refit` says whether the probe that is returned is fitted on the validation images too. Of equally good
    values the smallest C, the strongest regularisation, is taken.
    """
    how = {"features": settings.features, "class_weight": settings.class_weight, "max_iter": settings.max_iter}
    probes: dict[int, Probe] = {}

    def score(place: int) -> float:
        probes[place] = fit_probe(train, num_classes, GRID[place], **how)
        found = probes[place].log_probabilities(validation.features).argmax(axis=1)
        return chosen_score(found, validation.labels, settings.choose_by)

    if settings.C is None:
        best, tried = refined_search(score, len(GRID), FIRST_STEP)
        C, scores = GRID[best], {GRID[place]: value for place, value in tried.items()}
    else:
        C, scores = settings.C, {}
    if settings.refit == "train+validation":
        train = train.joined(validation)
    elif settings.C is None:
        return Fitted(probes[best], C, scores, len(train.labels))
    return Fitted(fit_probe(train, num_classes, C, **how), C, scores, len(train.labels))


def run(encoder: Encoder, recipe: Recipe, settings: LinearProbeOptions, out: Path | None) -> dict[str, Any]:
    """Fit, choose and measure; one predictor for each number of shots and seed.

    With n shots a class has n training images at most, and n validation images at most for the choice; the reported
    probe is fitted on the former alone. Raises `UserError` for unseen classes, and where the reported split is one that
    is fitted or chosen on.
    """
    inputs = Inputs(encoder, recipe)
    check(inputs, settings)
    train = inputs.part("train")
    validation = inputs.part("validation") if uses_validation(settings) else None
    part = inputs.part(inputs.split)
    scores, fits = {}, {}
    for name, shots, seed in trials(settings):
        fitted = _fit(train, validation, settings, shots, seed)
        scores[name], fits[name] = fitted.probe.log_probabilities(part.features.numpy()), fitted.stated()
    texts = None
    if settings.zero_shot and encoder.has_texts:
        texts = inputs.texts()
        scores["zero-shot"] = zero_shot_scores(encoder, part.features, inputs.class_vectors(inputs.corpus()))
    predictions = inputs.predictions(part, scores, texts, task="linear probe", probe=asdict(settings))
    document = record(predictions, out, recipe.eval)
    _say_choice(fits, settings, train, validation)
    numbers: dict[str, Any] = {"predictors": summary(document), "fits": fits}
    if settings.shots:
        numbers["shots"] = over_seeds(numbers["predictors"], settings)
        say_table(shot_rows(numbers["shots"], len(settings.seeds)))
    result = result_document("linear-probe", settings, predictions.protocol, numbers)
    write_result(out, result)
    return result


def check(inputs: Inputs, settings: LinearProbeOptions) -> None:
    """Raise `UserError` where the reported split is one that the probe is fitted or chosen on."""
    inputs.require_trained("a linear probe")
    inputs.require_apart("train", "the probe is fitted")
    if uses_validation(settings):
        inputs.require_apart("validation", "C is chosen or the probe is fitted")


def uses_validation(settings: LinearProbeOptions) -> bool:
    """Whether validation images are chosen on or fitted on."""
    return settings.C is None or settings.refit == "train+validation"


def trials(settings: LinearProbeOptions) -> list[tuple[str, int, int]]:
    """(name, shots, seed) of every probe; all images have no draw and so no seeds."""
    found = []
    for shots in settings.shots or [0]:
        if shots == 0:
            found.append(("linear probe", 0, 0))
        else:
            found += [(f"{shots}-shot, seed {seed}", shots, seed) for seed in settings.seeds]
    return found


def _fit(train: Part, validation: Part | None, settings: LinearProbeOptions, shots: int, seed: int) -> Fitted:
    fitting = ProbeData(train.features.numpy(), train.labels)
    choosing = None if validation is None else ProbeData(validation.features.numpy(), validation.labels)
    if shots:
        fitting = fitting.take(draw_shots(train.labels, shots, seed, "train"))
        choosing = None if choosing is None else choosing.take(draw_shots(validation.labels, shots, seed, "validation"))
        settings = replace(settings, refit="train")
    return fit_chosen(fitting, choosing, train.source.num_classes, settings)


def over_seeds(predictors: dict[str, Any], settings: LinearProbeOptions) -> dict[str, dict[str, list[float]]]:
    """By number of shots: accuracy and mean class accuracy of each seed."""
    rows: dict[str, dict[str, list[float]]] = {}
    for name, shots, _ in trials(settings):
        row = rows.setdefault(f"{shots}-shot" if shots else "all images", {"accuracy": [], "balanced_accuracy": []})
        for key, values in row.items():
            values.append(predictors[name][key])
    return rows


def shot_rows(rows: dict[str, dict[str, list[float]]], seeds: int) -> list[tuple[str, ...]]:
    """The table over seeds: mean ± sample deviation in percent."""
    table = [(f"mean ± deviation of {seeds} draws", "all", "balanced")]
    for name, values in rows.items():
        table.append((name, *(_spread(values[key]) for key in ("accuracy", "balanced_accuracy"))))
    return table


def _spread(values: list[float]) -> str:
    mean = f"{100 * np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * np.std(values, ddof=1):.1f}"


def _say_choice(
    fits: dict[str, dict[str, Any]], settings: LinearProbeOptions, train: Part, validation: Part | None
) -> None:
    what = CHOSEN_BY[settings.choose_by]
    for name, fit in fits.items():
        how = "given" if settings.C is not None else f"best {what} on {len(validation.labels)} validation images"
        if settings.C is None and fit["C"] in (GRID[0], GRID[-1]):
            how += ", the end of the grid"
        note = "" if fit["converged"] else f"; L-BFGS had not converged after {settings.max_iter} steps"
        say(f"{name}: C={fit['C']:.3g} ({how}), {settings.features} features, fitted on {fit['images']} images{note}")
