"""Class by class along the tail: accuracies of predictors, and what one gains over another."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from hf_vlr.data.shots import SHOT_NAMES
from hf_vlr.report import svg
from hf_vlr.report.markup import NOTHING, Html, figure, legend, signed
from hf_vlr.report.view import Floats, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# points of a line that no screen shows more of
MAX_POINTS = 400
# how far dots are moved at most, as a whole, and the ratio whose multiples fill that evenly
SPREAD, GOLDEN = 0.04, 0.6180339887


def tail_figure(view: View) -> Html:
    """The accuracy of each class by falling training images, dots for the main predictor, a running mean for each."""
    drawn, axes = svg.plot()
    _cloud(axes, view, view.class_accuracy(view.correct(view.main)))
    window, pixels, entries = mean_window(view), view.predictions.num_classes > svg.MAX_SHAPES, {}
    for number, predictor in enumerate(view.predicted):
        role, mark = svg.series(number)
        accuracy = view.class_accuracy(view.correct(predictor))
        axes.plot(*_running(view, accuracy), color=svg.colour(role), linestyle=svg.DASHES[mark], linewidth=1.8)
        entries[predictor] = (svg.css(role), mark)
    axes.set_ylim(-0.06, 1.03)
    _finish(axes, view, "accuracy of the class")
    label = f"Accuracy of each class along the tail, with running means of {', '.join(view.predicted)}"
    caption = (
        f"Lines: accuracies of classes as running means over {window} neighbours. Dots: each class as {view.main} has "
        f"it, coloured by group{', moved a little where they coincide' if pixels else ''}."
    )
    return figure(svg.svg(drawn, "tail", label), caption, legend(entries))


def gain_figure(view: View, gain: Floats, means: Mapping[str, float | None], caption: str) -> Html:
    """The gain of each class [C] (NaN where it has no images) along the tail, and `means` by group as lines.

    Where the classes are too many to show, running means of them.
    """
    drawn, axes = svg.plot()
    each = gain.size <= svg.MAX_SHAPES
    ranks, heights = _tested(view, gain) if each else _running(view, gain)
    colours = [svg.colour(view.shots[label]) for label in view.order[ranks.astype(np.int64) - 1]]
    axes.vlines(ranks, 0, heights, colors=colours, linewidth=min(6.0, (200 if each else 330) / ranks.size))
    entries = {}
    for name in SHOT_NAMES:
        members = np.flatnonzero(view.groups[name][view.order])
        mean = means[name]
        if mean is not None:
            axes.hlines(mean, members[0] + 0.5, members[-1] + 1.5, color=svg.colour("ink"), linewidth=1.6)
        entries[f"{name}: {NOTHING if mean is None else f'{signed(mean)} points'}"] = (svg.css(name), "dot")
    axes.axhline(0, color=svg.colour("muted"), linewidth=0.8)
    most = max(0.05, float(np.abs(heights).max()))
    axes.set_ylim(-1.1 * most, 1.1 * most)
    _finish(axes, view, "gain in points", strip=False)
    svg.percentages(axes.yaxis, gains=True)
    label = f"Gain of each class along the tail; mean by group: {'; '.join(entries)}"
    over = "" if each else f" Bars: running means over {mean_window(view)} classes."
    return figure(svg.svg(drawn, "gain", label), f"{caption}{over}", legend(entries))


def mean_window(view: View) -> int:
    """How many neighbouring classes a running mean covers: a tenth of those with test images, at least 3."""
    return max(3, round(int((view.images > 0).sum()) / 10))


def running_mean(values: Floats, window: int) -> Floats:
    """The mean of each value and its neighbours, `window` in all, fewer at both ends; [n] to [n]."""
    half = window // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.minimum(np.arange(values.size) + window - half, values.size)
    starts = np.maximum(np.arange(values.size) - half, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _tested(view: View, values: Floats) -> tuple[Floats, Floats]:
    """Ranks, from 1 on, and values of the classes that have test images."""
    sorted_values = values[view.order]
    tested = np.flatnonzero(~np.isnan(sorted_values))
    return tested + 1.0, sorted_values[tested]


def _running(view: View, values: Floats) -> tuple[Floats, Floats]:
    """Ranks and running means of the classes that have test images, thinned to what a screen shows."""
    ranks, tested = _tested(view, values)
    shown = np.unique(np.linspace(0, ranks.size - 1, min(ranks.size, MAX_POINTS)).round().astype(np.int64))
    return ranks[shown], running_mean(tested, mean_window(view))[shown]


def _cloud(axes: "Axes", view: View, values: Floats) -> None:
    """A dot for each class; where they are many as pixels, moved up or down a little to keep equal ones apart."""
    pixels = values.size > svg.MAX_SHAPES
    moved = SPREAD * (np.arange(values.size) * GOLDEN % 1 - 0.5) if pixels else np.zeros(values.size)
    values = values[view.order] + moved
    for name in SHOT_NAMES:
        members = view.groups[name][view.order]
        ranks = np.flatnonzero(members) + 1
        axes.plot(
            ranks,
            values[members],
            linestyle="none",
            marker="o",
            markersize=1.5 if pixels else 4 if values.size <= 200 else 2.5,
            markeredgewidth=0,
            alpha=0.35 if pixels else 0.6,
            color=svg.pixel_colour(name) if pixels else svg.colour(name),
            rasterized=pixels,
        )


def _finish(axes: "Axes", view: View, ylabel: str, strip: bool = True) -> None:
    classes = view.predictions.num_classes
    axes.set_xlim(0.5, classes + 0.5)
    axes.set(xlabel="class, by falling number of training images", ylabel=ylabel)
    svg.whole_numbers(axes.xaxis)
    svg.percentages(axes.yaxis)
    if strip:
        for name in SHOT_NAMES:
            ranks = np.flatnonzero(view.groups[name][view.order])
            if ranks.size:
                axes.axvspan(ranks[0] + 0.5, ranks[-1] + 1.5, 0, 0.025, color=svg.colour(name), linewidth=0)
