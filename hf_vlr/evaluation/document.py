"""The files an evaluation leaves behind: `metrics.json` and `per_class.csv`.

Schema 2 of `metrics.json`; every number is a fraction unless it says otherwise, None (JSON's null) where there is
nothing to measure:

    schema      2
    protocol    what a reader must know before comparing: PROTOCOL_FIELDS, `rule`, `versions`, and what the run adds
    predictors  one entry for each predictor, by name:
        num_images, num_classes, classes_without_test_images
        accuracy, top5, balanced_accuracy, macro_f1, harmonic_mean, geometric_mean
        worst_class, worst_class_label, worst_class_name, worst_tenth
        nll (nats), brier (0 to 2), ece, mce
        groups              many, medium, few and the rule's own: accuracy, classes, images, nll, brier, ece, share,
                            predicted_share
        group_confusion     groups: [many, medium, few]; counts: images by true (rows) and predicted group
        tail_to_head        share of the few-shot errors that were taken for many-shot classes
        shifted_priors      forward-50 … forward-2, uniform, backward-2 … backward-50
        reliability         all and each group: confidence, accuracy and images of 15 bins; None without scores
        intervals           confidence, resamples, accuracy, balanced_accuracy, groups: [low, high] each;
                            absent without resamples
        mixed, note         only in the entry that takes accuracy and groups from two predictors

Every number of an entry comes from one predictor, except in an entry with `mixed`. The definitions stand in
`hf_vlr.evaluation.metrics.evaluate_predictions`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_vlr.data.shots import ShotRule, shot_rule
from hf_vlr.errors import UserError
from hf_vlr.evaluation.metrics import evaluate_outcome, write_per_class_csv, write_text
from hf_vlr.evaluation.mixed import mixed_convention
from hf_vlr.evaluation.outcome import Outcome, measure
from hf_vlr.evaluation.predictions import METRICS_FILE, Predictions
from hf_vlr.evaluation.versions import versions

SCHEMA = 2
PACKAGES = ("torch", "transformers", "numpy")
PER_CLASS_FILE = "per_class.csv"
# Without these a number cannot be compared with another one.
PROTOCOL_FIELDS = ("split", "resolution", "test_time_augmentation", "pretraining", "texts", "seed")
MIXED_NAME = "VL-LTR's mixed convention"
# whose numbers the mixed convention takes
BRANCHES = ("fused", "visual", "language")


def metrics_document(
    predictions: Predictions, rule: str | ShotRule = "oltr", resamples: int = 0, mixed_convention: bool = False
) -> dict[str, Any]:
    """The content of `metrics.json` for every predictor, each read and reduced once.

    `predictions.protocol` states `PROTOCOL_FIELDS` (None where one does not apply) and whatever else the run wants to
    say; `rule` and `versions` are added. `resamples` > 0 adds bootstrap intervals. With `mixed_convention` the
    predictors "fused", "visual" and "language" also give an entry `MIXED_NAME`, labelled as such. Raises `UserError`
    if a protocol field is missing, without a predictor, for a wrong number of names, for a mixed convention without
    its three predictors, and as `evaluate_predictions` does, naming the predictor.
    """
    _check(predictions, mixed_convention)
    entries, outcomes = {}, {}
    for name in predictions.scores:
        try:
            outcomes[name] = measure(predictions.scores[name], predictions.labels, predictions.num_classes)
            entries[name] = evaluate_outcome(outcomes[name], predictions.train_counts, rule, resamples)
        except UserError as error:
            raise UserError(f"predictor '{name}': {error}") from error
        worst = entries[name]["worst_class_label"]
        entries[name]["worst_class_name"] = predictions.class_names[worst]
    if mixed_convention:
        entries[MIXED_NAME] = _mixed(predictions, outcomes["fused"], rule, resamples)
    stated = {"versions": versions(PACKAGES)} | dict(predictions.protocol) | {"rule": asdict(shot_rule(rule))}
    return {"schema": SCHEMA, "protocol": stated, "predictors": entries}


def _check(predictions: Predictions, mixed: bool) -> None:
    names, scored = predictions.class_names, list(predictions.scores)
    missing = [field for field in PROTOCOL_FIELDS if field not in predictions.protocol]
    if missing:
        raise UserError(f"the protocol does not state {', '.join(missing)}: add it, None where it does not apply")
    if not scored:
        raise UserError("there is no predictor to evaluate: give scores of at least one")
    if len(names) != predictions.num_classes:
        raise UserError(f"{len(names)} class names for {predictions.num_classes} classes: give one for each class")
    absent = [name for name in BRANCHES if name not in scored]
    if mixed and absent:
        raise UserError(f"the mixed convention needs the predictors {', '.join(BRANCHES)}; {', '.join(absent)} missing")


def _mixed(predictions: Predictions, fused: Outcome, rule: str | ShotRule, resamples: int) -> dict[str, Any]:
    visual, language = predictions.scores["visual"], predictions.scores["language"]
    entry = mixed_convention(fused, visual, language, predictions.labels, predictions.train_counts, rule, resamples)
    return entry | {"worst_class_name": None}


def write_metrics(
    folder: str | os.PathLike[str],
    document: Mapping[str, Any],
    per_class: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Path:
    """Write `per_class.csv`, then `metrics.json`, and return the path of the latter.

    `per_class` maps a predictor's name to its rows from `per_class_table`; the name becomes the first
    column. Each file appears whole or not at all, and `metrics.json` is last: where it is, the
    evaluation was complete. Raises `UserError` if the document holds a value that JSON has no word for.
    """
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UserError(f"{METRICS_FILE} cannot be written, use plain finite values: {error}") from error
    rows = [{"predictor": name, **row} for name, table in per_class.items() for row in table]
    if rows:
        write_per_class_csv(Path(folder) / PER_CLASS_FILE, rows)
    path = Path(folder) / METRICS_FILE
    write_text(path, text)
    return path
