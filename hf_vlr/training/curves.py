"""Curves of training and validation over steps, of one run or several: where validation rises, a run over-fits."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_vlr.errors import UserError

LOG_FILE = "log.jsonl"
VALIDATION = "validation_"

Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Curve:
    """One quantity of a run over its optimiser steps, as logged in training and on validation data."""

    name: str
    training: Points
    validation: Points

    def best(self) -> tuple[int, float] | None:
        """The step of the lowest validation value, and that value; None without validation."""
        return min(self.validation, key=lambda point: point[1], default=None)


def read_curve(folder: str | Path, key: str = "loss") -> Curve:
    """A run's curve of `key`; numbers that were not finite are left out.

    Raises `UserError` for a folder without a log, a damaged line and a key that no line has.
    """
    path = Path(folder) / LOG_FILE
    if not path.is_file():
        raise UserError(f"{folder} holds no {LOG_FILE}; name the folder of a run")
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            raise UserError(f"{path}, line {number} is no log line; remove it") from error
    training, validation = _points(lines, key), _points(lines, VALIDATION + key)
    if not training and not validation:
        known = sorted({name.removeprefix(VALIDATION) for line in lines for name in line} - {"step", "epoch"})
        raise UserError(f"{path} has no {key}; there are {', '.join(known)}")
    return Curve(Path(folder).as_posix(), training, validation)


def _points(lines: list[dict[str, float | None]], key: str) -> Points:
    found = ((line["step"], line.get(key)) for line in lines)
    return [(step, value) for step, value in found if value is not None and math.isfinite(value)]


def plot_curves(curves: Sequence[Curve], out: str | Path, key: str = "loss") -> Path:
    """Write a PNG of the curves, training thin and validation thick with its lowest point marked; returns its path.

    Raises `UserError` where the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, curve in enumerate(curves):
        colour, both = f"C{number}", bool(curve.training and curve.validation)
        if curve.training:
            label = f"{curve.name}, training" if both else curve.name
            axes.plot(*zip(*curve.training), color=colour, linewidth=1, alpha=0.6 if both else 1, label=label)
        best = curve.best()
        if best is not None:
            axes.plot(*zip(*curve.validation), color=colour, linewidth=2, label=f"{curve.name}, validation")
            axes.plot(*best, "o", color=colour)
            axes.annotate(f"{best[1]:.3g}", best, xytext=(0, -11), textcoords="offset points", ha="center", fontsize=8)
    axes.margins(y=0.12)
    axes.set(xlabel="optimiser step", ylabel=key)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    try:
        figure.savefig(out, format="png")
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror})") from error
    return Path(out)
