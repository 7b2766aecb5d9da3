"""What an evaluation leaves behind: `metrics.json`, `per_class.csv` and a table to read.

Every number of a table's row comes from one predictor.
"""

import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy.typing as npt
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_vlr import __version__
from hf_vlr.data.shots import ShotRule, shot_rule
from hf_vlr.errors import UserError
from hf_vlr.evaluation.metrics import evaluate_predictions, write_per_class_csv, write_text

SCHEMA = 1
METRICS_FILE = "metrics.json"
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


def render_table(rows: Mapping[str, Mapping[str, Any] | None]) -> str:
    """A plain-text table: one row for each name, percentages with one decimal, "-" where there is no number.

    A row is a result of `evaluate_predictions`, or None for what was not run. The header gives the number
    of classes of each shot group. Raises `UserError` if the rows were measured on different groups.
    """
    header, *body = _cells(rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, title in enumerate(header):
        table.add_column(title, justify="right" if column else "left", no_wrap=True)
    for cells in body:
        table.add_row(*map(Text, cells))
    width = sum(max(map(cell_len, column)) + 3 for column in zip(header, *body)) + 3
    text = io.StringIO()
    Console(file=text, width=width, color_system=None, force_terminal=False).print(table)
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines() if line.strip())


def markdown_table(rows: Mapping[str, Mapping[str, Any] | None]) -> str:
    """The table of `render_table` in Markdown."""
    header, *body = _cells(rows)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    lines = [header, rule, *([cell.replace("|", "\\|") for cell in cells] for cells in body)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cells(rows: Mapping[str, Mapping[str, Any] | None]) -> list[list[str]]:
    """Header and rows as strings."""
    sizes = _group_sizes(rows)
    titles = [name if size is None else f"{name} ({size})" for name, size in sizes.items()]
    table = [["", "all", "balanced", *titles]]
    for name, metrics in rows.items():
        if metrics is None:
            table.append([name] + ["-"] * (2 + len(sizes)))
            continue
        values = [metrics["accuracy"], metrics["balanced_accuracy"]]
        values += [metrics["groups"][group]["accuracy"] for group in sizes]
        table.append([name, *map(_percent, values)])
    return table


def _group_sizes(rows: Mapping[str, Mapping[str, Any] | None]) -> dict[str, int | None]:
    """Classes of each group, which all rows have to agree on; None for each if nothing was run."""
    sizes: dict[str, int | None] = {}
    first = ""
    for name, metrics in rows.items():
        if metrics is None:
            continue
        own = {group: values["classes"] for group, values in metrics["groups"].items()}
        if sizes and own != sizes:
            raise UserError(f"'{first}' and '{name}' were measured on different shot groups: show them apart")
        if not sizes:
            sizes, first = own, name
    return sizes or dict.fromkeys(("many", "medium", "few"))


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "numpy")
    return {"hf_vlr": __version__, "python": platform.python_version()} | {name: version(name) for name in packages}
