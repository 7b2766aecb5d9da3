"""Differences from the baseline with their intervals, one below the other."""

from hf_vlr.comparison.comparison import Comparison
from hf_vlr.comparison.summary import short
from hf_vlr.data.shots import SHOT_NAMES
from hf_vlr.evaluation.verdict import NOTHING_SHOWN
from hf_vlr.report import svg
from hf_vlr.report.markup import Html, figure

# inches for each line, and for the axis below
_LINE, _AXIS = 0.36, 0.75
# letters that fit below the plot
ONE_LINE = 45


def forest_figure(found: Comparison, name: str, key: str) -> Html:
    """The tested accuracies of one row minus the baseline's, in points; all rows on one scale."""
    shown = [one for one in found.measures if one.percent and found.differences[name][one.key].interval is not None]
    drawn, axes = svg.plot((svg.SIZE[0], _AXIS + _LINE * len(shown)))
    axes.axvline(0, color=svg.colour("muted"), linewidth=0.9)
    for place, one in enumerate(shown):
        own = found.differences[name][one.key]
        colour = svg.colour(one.key if one.key in SHOT_NAMES else "ink")
        found_one = own.verdict != NOTHING_SHOWN
        estimate, low, high = own.estimate, *own.interval
        for start, end in _without_marker(low, high, estimate, _reach(found), hollow=not found_one):
            axes.hlines(place, start, end, color=colour, linewidth=2.6 if found_one else 1.3)
        marker = {"marker": "D", "markersize": 7} if found_one else {"marker": "o", "markersize": 7}
        face = colour if found_one else "none"
        axes.plot(estimate, place, **marker, markerfacecolor=face, markeredgecolor=colour, markeredgewidth=1.4)
    axes.set(xlim=(-_reach(found), _reach(found)), ylim=(len(shown) - 0.4, -0.6))
    axes.set_yticks(range(len(shown)), [one.title for one in shown])
    label = f"{short(name)} minus {short(found.against)}, percentage points"
    axes.set_xlabel(label if len(label) <= ONE_LINE else label.replace(" minus ", " minus\n"))
    axes.grid(False, axis="y")
    axes.grid(axis="x", color=svg.colour("line"), linewidth=0.6)
    axes.spines["left"].set_visible(False)
    svg.percentages(axes.xaxis, gains=True)
    label = f"Differences of {name} from {found.against} with 95 % intervals, as in the table"
    caption = (
        "Differences with 95 % intervals over the images. Filled diamonds and thick lines: a difference is shown; open "
        "circles: none is."
    )
    return figure(svg.svg(drawn, key, label), caption)


def _reach(found: Comparison) -> float:
    """How far the axis goes to either side, for all rows alike."""
    ends = [
        abs(end)
        for own in found.differences.values()
        for one in found.measures
        if one.percent
        for end in own[one.key].interval or ()
    ]
    return 1.08 * max([0.005, *ends])


def _without_marker(
    low: float, high: float, estimate: float, reach: float, *, hollow: bool
) -> list[tuple[float, float]]:
    """The interval's line, with a gap where an open circle stands."""
    if not hollow:
        return [(low, high)]
    radius = 0.035 * reach
    parts = [(low, estimate - radius), (estimate + radius, high)]
    return [(start, end) for start, end in parts if end > start]
