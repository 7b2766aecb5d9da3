"""The plane as a picture and as a table: images as small marks, class texts as named stars."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_vlr.data.frequency_plot import COLOURS
from hf_vlr.disk import whole_file, writing
from hf_vlr.evaluation.text_file import write_text
from hf_vlr.protocols.contact_sheet import AGAIN

# a shape for each shot group, so that a picture of classes shows groups too
MARKS = {"many": "o", "medium": "s", "few": "^"}
# beyond this many names a picture is unreadable
MOST_NAMED = 20


@dataclass(frozen=True)
class Scatter:
    """P points `[P, 2]` with their class; the last T of them are class texts, the others images.

    labels: int64 `[P]`. names: of all classes. shots: the shot group of each class. colour: "class" or "shot".
    """

    points: np.ndarray
    labels: np.ndarray
    texts: int
    names: Sequence[str]
    shots: Sequence[str]
    colour: str

    @property
    def is_text(self) -> np.ndarray:
        """Which points are class texts, bool `[P]`."""
        return np.arange(len(self.labels)) >= len(self.labels) - self.texts


def write_coordinates(path: Path, scatter: Scatter) -> Path:
    """Write `kind, label, class_name, shot, x, y`, a line for each point; returns the path."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kind", "label", "class_name", "shot", "x", "y"])
    for label, is_text, (x, y) in zip(scatter.labels.tolist(), scatter.is_text.tolist(), scatter.points.tolist()):
        kind = "text" if is_text else "image"
        writer.writerow([kind, label, scatter.names[label], scatter.shots[label], f"{x:.5g}", f"{y:.5g}"])
    with writing(path, AGAIN):
        write_text(path, text.getvalue())
    return path


def write_scatter(path: Path, scatter: Scatter, title: str) -> Path:
    """Write the PNG; returns its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # room for the names at the sides
    axes.margins(x=0.12)
    classes = np.unique(scatter.labels)
    _draw_images(axes, scatter, classes)
    _draw_texts(axes, scatter, classes)
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_color("#bbbbbb")
    if scatter.colour == "shot" or len(classes) <= MOST_NAMED:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    with whole_file(path, AGAIN) as partial:
        figure.savefig(partial, format="png")
    return path


def class_colours(scatter: Scatter, classes: np.ndarray) -> dict[int, str]:
    """A colour for each class: its own, or that of its shot group."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if scatter.colour == "shot":
        return {label: COLOURS[scatter.shots[label]] for label in classes.tolist()}
    if len(classes) <= 10:
        wheel = [colormaps["tab10"](place) for place in range(10)]
    elif len(classes) <= MOST_NAMED:
        wheel = [colormaps["tab20"](place) for place in (*range(0, 20, 2), *range(1, 20, 2))]
    else:
        wheel = [colormaps["turbo"](place) for place in np.linspace(0.03, 0.97, len(classes))]
    return {label: to_hex(wheel[place]) for place, label in enumerate(classes.tolist())}


def _draw_images(axes: object, scatter: Scatter, classes: np.ndarray) -> None:
    colours, named = class_colours(scatter, classes), set()
    for label in sorted(classes.tolist(), key=lambda label: (list(MARKS).index(scatter.shots[label]), label)):
        shot = scatter.shots[label]
        mine = scatter.points[(scatter.labels == label) & ~scatter.is_text]
        words = shot if scatter.colour == "shot" else f"{scatter.names[label]} ({shot})"
        # the group's name once
        shown = words if words not in named else "_nolegend_"
        named.add(words)
        axes.scatter(
            mine[:, 0],
            mine[:, 1],
            s=16,
            marker=MARKS[shot],
            color=colours[label],
            alpha=0.75,
            linewidths=0,
            label=shown,
        )


def _draw_texts(axes: object, scatter: Scatter, classes: np.ndarray) -> None:
    if not scatter.texts:
        return
    colours = class_colours(scatter, classes)
    places, labels = scatter.points[scatter.is_text], scatter.labels[scatter.is_text].tolist()
    few = len(labels) <= MOST_NAMED
    look = {"marker": "*", "s": 150 if few else 60, "edgecolors": "black", "linewidths": 0.8 if few else 0.5}
    axes.scatter(places[:, 0], places[:, 1], c=[colours[label] for label in labels], zorder=3, **look)
    # in the legend without a colour, which would be that of one class
    axes.scatter([], [], c="white", label="class text", **look)
    if few:
        _name_texts(axes, [(place, scatter.names[label]) for place, label in zip(places, labels)])


def _name_texts(axes: object, named: list[tuple[np.ndarray, str]]) -> None:
    """Names beside their stars, each where it covers no other name: above, below, right or left."""
    from matplotlib.patheffects import withStroke

    canvas, taken = axes.figure.canvas, []
    canvas.draw()
    for place, name in sorted(named, key=lambda entry: -entry[0][1]):
        written = axes.annotate(
            name, place, xytext=(0, 0), textcoords="offset points", fontsize=7, zorder=4, ha="center",
            path_effects=[withStroke(linewidth=2, foreground="white", alpha=0.8)],
        )  # fmt: skip
        for offset, across, along in (((0, 8), "center", "bottom"), ((0, -8), "center", "top"),
                                      ((9, 0), "left", "center"), ((-9, 0), "right", "center")):  # fmt: skip
            written.xyann = offset
            written.set(ha=across, va=along)
            box = written.get_window_extent(canvas.get_renderer())
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
