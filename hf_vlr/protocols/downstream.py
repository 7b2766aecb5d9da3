"""Many datasets in one table: zero-shot and linear probe of each, and their mean.

The form of UniCL's and ELEVATER's tables. A dataset that cannot be run is named with the reason and is no number, and a
mean says over how many datasets it is. What is done is kept in the folder: a second start goes on from there.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_vlr.cli.output import say, say_table
from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.evaluation.encoders import Encoder
from hf_vlr.evaluation.text_file import write_text
from hf_vlr.features import digest_of
from hf_vlr.protocols.inputs import Inputs, Part
from hf_vlr.protocols.linear_probe import check, fit_chosen
from hf_vlr.protocols.listing import Entry, read_listing
from hf_vlr.protocols.options import DownstreamOptions, LinearProbeOptions
from hf_vlr.protocols.probe import ProbeData, class_mean_accuracy
from hf_vlr.protocols.result import result_document, write_result
from hf_vlr.protocols.zero_shot import zero_shot_scores
from hf_vlr.training.options import Recipe

KEPT = "datasets"
NOT_RUN = "not run"
SEVERAL_CLASSES = "11-point-map: its images have several classes each, and a source has one per image"


def run(encoder: Encoder, recipe: Recipe, settings: DownstreamOptions, out: Path | None) -> dict[str, Any]:
    """Measure every dataset of the list `recipe.data.source`; returns and writes the table.

    Raises `UserError` for a list that cannot be read, and for a kept dataset that was measured with other settings.
    """
    entries = read_listing(recipe.data.source, settings.root)
    results = {}
    weights = digest_of(encoder.model)
    for entry in entries:
        results[entry.name] = found = measured(encoder, weights, recipe, entry, settings, out)
        say(f"{entry.name}: {_spoken(found)}")
    means = {column: mean_of(results, column) for column in settings.protocols}
    say()
    say_table(table(results, means))
    for line in reasons(results):
        say(line)
    numbers = {"datasets": results, "mean": means}
    stated = {"model": encoder.location, "list": recipe.data.source, "split": recipe.eval.splits[0]}
    stated |= {"resolution": encoder.image_size, "seed": recipe.seed}
    result = result_document("downstream", settings, stated, numbers)
    write_result(out, result)
    return result


def measured(
    encoder: Encoder, weights: str, recipe: Recipe, entry: Entry, settings: DownstreamOptions, out: Path | None
) -> dict[str, Any]:
    """One dataset's row: from the folder where it is kept there, else measured, and kept where nothing is missing.

    weights: a digest of the model's; a row of others is not taken for its own.
    """
    how = {"entry": asdict(entry), "settings": asdict(settings), "weights": weights}
    how = json.loads(json.dumps(how | {"splits": recipe.eval.splits, "seed": recipe.seed}))
    path = out / KEPT / f"{entry.name}.json" if out else None
    if path and path.is_file():
        return _kept_row(path, how, settings)
    row = _measure(encoder, recipe, entry, settings)
    if path and NOT_RUN not in row:
        write_text(path, json.dumps({"how": how, "row": row}, indent=2) + "\n")
    return row


def _kept_row(path: Path, how: dict[str, Any], settings: DownstreamOptions) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        found, row = kept["how"], dict(kept["row"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}); remove it, and it is measured again") from error
    if found != how:
        raise UserError(f"{path} was measured with other weights or settings; remove it, or choose another --out")
    if not {"metric", "classes"} <= set(row) or not all(isinstance(row.get(key), float) for key in settings.protocols):
        raise UserError(f"{path} is damaged (no number); remove it, and it is measured again")
    return row


def _measure(encoder: Encoder, recipe: Recipe, entry: Entry, settings: DownstreamOptions) -> dict[str, Any]:
    row: dict[str, Any] = {"metric": entry.metric, "classes": entry.classes}
    if entry.metric == "11-point-map":
        return row | {NOT_RUN: dict.fromkeys(settings.protocols, SEVERAL_CLASSES)}
    if entry.source is None:
        return row | {NOT_RUN: dict.fromkeys(settings.protocols, "no source is named")}
    data = replace(
        recipe.data, source=entry.source, options=entry.options, texts=entry.texts or settings.texts, folds=None,
        fold=None, mix=[],
    )  # fmt: skip
    inputs = Inputs(encoder, replace(recipe, data=data))
    missing: dict[str, str] = {}
    try:
        source = inputs.source(inputs.split)
        _check_classes(entry, source)
        part = inputs.encoded(source)
    except UserError as error:
        return row | {NOT_RUN: dict.fromkeys(settings.protocols, str(error))}
    row |= {"classes": part.source.num_classes, "images": len(part.labels)}
    for column in settings.protocols:
        try:
            scores = COLUMNS[column](inputs, part, entry, settings)
            row[column] = metric_value(scores, part.labels, entry.metric)
        except UserError as error:
            missing[column] = str(error)
    return row | ({NOT_RUN: missing} if missing else {})


def metric_value(scores: np.ndarray, labels: np.ndarray, metric: str) -> float:
    """A metric of scores `[N, C]`: "accuracy", "mean-per-class", or "roc-auc" of the second of two classes."""
    if metric == "accuracy":
        return float((scores.argmax(axis=1) == labels).mean())
    if metric == "mean-per-class":
        return class_mean_accuracy(scores.argmax(axis=1), labels)
    from sklearn.metrics import roc_auc_score

    if scores.shape[1] != 2 or len(np.unique(labels)) != 2:
        raise UserError(f"roc-auc needs images of two classes, here are {len(np.unique(labels))}")
    return float(roc_auc_score(labels, scores[:, 1] - scores[:, 0]))


def mean_of(results: dict[str, dict[str, Any]], column: str) -> dict[str, Any]:
    """The mean of a column over the datasets that were run, None over none, and how many of how many these are."""
    values = [row[column] for row in results.values() if column in row]
    return {"value": float(np.mean(values)) if values else None, "run": len(values), "of": len(results)}


def table(results: dict[str, dict[str, Any]], means: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """The rows that are printed: percentages, "not run" for what was not."""
    rows = [("dataset", "classes", "metric", *means)]
    for name, row in results.items():
        cells = [f"{100 * row[column]:.1f}" if column in row else NOT_RUN for column in means]
        rows.append((name, str(row["classes"] or "-"), row["metric"], *cells))
    cells = [
        "-" if mean["value"] is None else f"{100 * mean['value']:.1f} (of {mean['run']} of {mean['of']})"
        for mean in means.values()
    ]
    return [*rows, ("mean", "", "", *cells)]


def reasons(results: dict[str, dict[str, Any]]) -> list[str]:
    """Below the table, one line for each reason: what was not run for it, whole datasets or one of their columns."""
    lacking: dict[str, dict[str, None]] = {}
    for name, row in results.items():
        missing = row.get(NOT_RUN, {})
        whole = len(set(missing.values())) == 1 and not any(column in row for column in COLUMNS)
        for column, why in missing.items():
            lacking.setdefault(why, {})[name if whole else f"{column} of {name}"] = None
    return [f"{NOT_RUN}: {', '.join(names)} ({why})" for why, names in lacking.items()]


def _zero_shot(inputs: Inputs, part: Part, entry: Entry, settings: DownstreamOptions) -> np.ndarray:
    vectors = inputs.class_vectors(inputs.corpus())
    return zero_shot_scores(inputs.encoder, part.features, vectors)


def _linear_probe(inputs: Inputs, part: Part, entry: Entry, settings: DownstreamOptions) -> np.ndarray:
    by = "balanced" if entry.metric == "mean-per-class" else "accuracy"
    options = LinearProbeOptions(features=settings.features, max_iter=settings.max_iter, choose_by=by)
    check(inputs, options)
    train, validation = (
        ProbeData(found.features.numpy(), found.labels) for found in map(inputs.part, ("train", "validation"))
    )
    fitted = fit_chosen(train, validation, part.source.num_classes, options)
    return fitted.probe.log_probabilities(part.features.numpy())


COLUMNS: dict[str, Callable[[Inputs, Part, Entry, DownstreamOptions], np.ndarray]] = {
    "zero-shot": _zero_shot,
    "linear-probe": _linear_probe,
}


def _check_classes(entry: Entry, source: ImageSource) -> None:
    if entry.classes is not None and source.num_classes != entry.classes:
        raise UserError(f"{entry.source} has {source.num_classes} classes, not the {entry.classes} of {entry.name}")


def _spoken(row: dict[str, Any]) -> str:
    done = [f"{column} {100 * row[column]:.1f}" for column in COLUMNS if column in row]
    reasons = dict.fromkeys(row.get(NOT_RUN, {}).values())
    return ", ".join([*done, *(f"{NOT_RUN} ({why})" for why in reasons)])
