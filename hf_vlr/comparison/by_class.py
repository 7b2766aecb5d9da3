"""What a row gains over the baseline class by class: along the tail, and one accuracy over the other."""

import numpy as np

from hf_vlr.comparison.comparison import Comparison
from hf_vlr.comparison.summary import short
from hf_vlr.data.shots import SHOT_NAMES
from hf_vlr.evaluation.outcome import Floats
from hf_vlr.report import svg
from hf_vlr.report.figures.tail import running_mean
from hf_vlr.report.markup import NOTHING, Html, figure, legend, signed

# more bars than this would run into each other
MOST_BARS = 1000
# classes on one point of the scatter from which on its dots are scaled down, and the groups set apart, by how much
CROWDED, SIDEWAYS = 20, 0.03
SET_APART = ", and those of one point are set side by side by group"


def tail_figure(found: Comparison, name: str, key: str) -> Html:
    """The difference in accuracy of each class, by falling number of training images; lines: means by group."""
    images = found.images
    order = np.argsort(-images.train_counts, kind="stable")
    change = (found.class_accuracy[name] - found.class_accuracy[found.against])[order]
    tested = np.flatnonzero(~np.isnan(change))
    window = 1 if tested.size <= MOST_BARS else round(tested.size / MOST_BARS)
    heights = running_mean(change[tested], window)[::window]
    ranks = tested[::window]
    drawn, axes = svg.plot()
    entries = {}
    for group in SHOT_NAMES:
        members = images.groups[group][order]
        own = members[ranks]
        width = min(6.0, 200 / ranks.size)
        axes.vlines(ranks[own] + 1, 0, heights[own], colors=svg.colour(group), linewidth=width)
        mean = found.differences[name][group].estimate
        if mean is not None:
            ends = np.flatnonzero(members)[[0, -1]] + (0.5, 1.5)
            axes.hlines(mean, *ends, color=svg.colour("ink"), linewidth=1.6)
        entries[f"{group}: {NOTHING if mean is None else f'{signed(mean)} points'}"] = (svg.css(group), "dot")
    axes.axhline(0, color=svg.colour("muted"), linewidth=0.8)
    most = max(0.05, float(np.abs(heights).max()))
    axes.set(xlim=(0.5, change.size + 0.5), ylim=(-1.1 * most, 1.1 * most))
    axes.set(xlabel="class, by falling number of training images", ylabel="difference in points")
    svg.whole_numbers(axes.xaxis)
    svg.percentages(axes.yaxis, gains=True)
    label = f"Difference of {name} from {found.against} by class along the tail; mean by group: {'; '.join(entries)}"
    each = "class by class" if window == 1 else f"in means over {window} neighbouring classes"
    caption = f"{name} minus {found.against}, {each}. Lines across: differences of the groups."
    return figure(svg.svg(drawn, key, label), caption, legend(entries))


def scatter_figure(found: Comparison, name: str, key: str) -> Html:
    """The accuracy of each class by the row over that by the baseline; larger dots hold more classes."""
    ours, theirs = found.class_accuracy[name], found.class_accuracy[found.against]
    drawn, axes = svg.plot()
    axes.plot([0, 1], [0, 1], color=svg.colour("muted"), linewidth=0.8, linestyle=(0, (4, 3)))
    tested = {group: mask & (found.images.per_class > 0) for group, mask in found.images.groups.items()}
    points = {group: _places(theirs[tested[group]], ours[tested[group]]) for group in SHOT_NAMES}
    largest = max((classes.max() for _, classes in points.values() if classes.size), default=1)
    apart = SIDEWAYS if largest > CROWDED else 0.0
    for side, (group, (places, classes)) in zip((-apart, 0.0, apart), points.items()):
        sizes = (22 if ours.size <= 200 else 9) * np.sqrt(classes * min(1.0, CROWDED / largest))
        style = {"color": svg.colour(group), "alpha": 0.65, "linewidths": 0, "clip_on": False}
        axes.scatter(places[:, 0] + side, places[:, 1], s=sizes, **style)
    axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), aspect="equal")
    axes.set(xlabel=f"accuracy of {short(found.against)}", ylabel=f"accuracy of {short(name)}")
    svg.percentages(axes.xaxis)
    svg.percentages(axes.yaxis)
    wins = {group: found.wins(name)[group] for group in SHOT_NAMES}
    entries = {
        f"{group}: {won:,} above, {lost:,} below": (svg.css(group), "dot") for group, (won, _, lost) in wins.items()
    }
    label = (
        f"Accuracy of each class by {name} over that by {found.against}; classes above and below: {'; '.join(entries)}"
    )
    caption = (
        f"Each class's accuracy by both. Above the diagonal {name} is better, below {found.against}; in the legend, "
        f"how many classes lie above and below. Larger dots hold more classes{SET_APART if apart else ''}."
    )
    return figure(svg.svg(drawn, key, label), caption, legend(entries))


def _places(first: Floats, second: Floats) -> tuple[Floats, np.ndarray]:
    """Distinct points [P, 2] and how many classes lie on each [P]."""
    pairs = np.round(np.stack([first, second], axis=1), 3)
    return np.unique(pairs, axis=0, return_counts=True)
