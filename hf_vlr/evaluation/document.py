"""The files an evaluation leaves behind: `metrics.json` and `per_class.csv`.

Every number of a predictor's entry comes from that one predictor.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy.typing as npt

from hf_vlr import __version__
from hf_vlr.data.shots import ShotRule, shot_rule
from hf_vlr.errors import UserError
from hf_vlr.evaluation.metrics import evaluate_predictions, write_per_class_csv, write_text
from hf_vlr.evaluation.predictions import METRICS_FILE

SCHEMA = 1
PER_CLASS_FILE = "per_class.csv"
# Without these a number cannot be compared with another one.
PROTOCOL_FIELDS = ("split", "resolution", "test_time_augmentation", "pretraining", "texts", "seed")


def metrics_document(
    predictors: Mapping[str, npt.ArrayLike],
    labels: npt.ArrayLike,
    train_counts: npt.ArrayLike,
    class_names: Sequence[str],
    rule: str | ShotRule,
    protocol: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of `metrics.json`.

    `predictors` maps a name ("fused", "visual", "language") to scores [N, C] or predictions [N] of the same
    images; `labels` [N], `train_counts` and `class_names` [C]. `protocol` states `PROTOCOL_FIELDS` (None
    where one does not apply) and whatever else the run wants to say; `rule` and `versions` are added. The
    result holds `schema`, `protocol` and `predictors`: for each name the numbers of `evaluate_predictions`
    and `worst_class_name`. Raises `UserError` if a protocol field is missing, without a predictor, for a
    wrong number of names, and as `evaluate_predictions` does, naming the predictor.
    """
    missing = [field for field in PROTOCOL_FIELDS if field not in protocol]
    if missing:
        raise UserError(f"the protocol does not state {', '.join(missing)}: add it, None where it does not apply")
    if not predictors:
        raise UserError("there is no predictor to evaluate: give scores of at least one")
    if len(class_names) != len(train_counts):
        raise UserError(f"{len(class_names)} class names for {len(train_counts)} classes: give one for each class")
    entries = {}
    for name, scores in predictors.items():
        try:
            numbers = evaluate_predictions(scores, labels, train_counts, rule)
        except UserError as error:
            raise UserError(f"predictor '{name}': {error}") from error
        entries[name] = numbers | {"worst_class_name": class_names[numbers["worst_class_label"]]}
    stated = {"versions": _versions()} | dict(protocol) | {"rule": asdict(shot_rule(rule))}
    return {"schema": SCHEMA, "protocol": stated, "predictors": entries}


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


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "numpy")
    return {"hf_vlr": __version__, "python": platform.python_version()} | {name: version(name) for name in packages}
