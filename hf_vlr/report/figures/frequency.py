"""The tail: training images per class, by rank, coloured by shot group."""

import numpy as np

from hf_vlr.data.shots import SHOT_NAMES
from hf_vlr.report import svg
from hf_vlr.report.markup import Html, counted, figure, legend, paragraph
from hf_vlr.report.view import View


def frequency_figure(view: View) -> Html:
    """The training images of each class in falling order, on a logarithmic axis; a sentence where there are none."""
    counts = view.predictions.train_counts[view.order]
    if counts.max() == 0:
        return paragraph("No class has training images: the model was not trained on these classes.", "note")
    drawn, axes = svg.plot()
    entries = {}
    for name in SHOT_NAMES:
        ranks = np.flatnonzero(view.groups[name][view.order])
        if ranks.size:
            # one outline instead of a bar for each class; without gaps, since each group is a run of ranks
            edges = np.arange(ranks[0], ranks[-1] + 2) + 0.5
            axes.stairs(counts[ranks], edges, baseline=0.5, fill=True, color=svg.colour(name), linewidth=0)
        entries[_group_label(view, name, ranks.size, int(counts[ranks].sum()))] = (svg.css(name), "dot")
    axes.set_yscale("log")
    axes.set_ylim(0.5, 1.6 * counts.max())
    axes.set_xlim(0.5, len(counts) + 0.5)
    axes.set(xlabel="class, by falling number of training images", ylabel="training images")
    svg.whole_numbers(axes.yaxis, ticks=False)
    svg.whole_numbers(axes.xaxis)
    label = (
        f"Training images of {len(counts)} classes, from {counts[0]:,} to {counts[-1]:,}, on a logarithmic axis: "
        + "; ".join(entries)
    )
    most, least = int(counts[0]), int(counts[counts > 0][-1])
    ratio = f"the largest has {most / least:,.0f} times the images of the smallest"
    caption = f"Training images per class, logarithmic: from {most:,} to {int(counts[-1]):,}; {ratio}"
    caption += "." if counts[-1] else " that has any."
    return figure(svg.svg(drawn, "frequency", label), caption, legend(entries))


def _group_label(view: View, name: str, classes: int, images: int) -> str:
    limits = {
        "many": f"more than {view.rule.many_above}",
        "medium": f"{view.rule.few_below} to {view.rule.many_above}",
        "few": f"fewer than {view.rule.few_below}",
    }
    return f"{name} ({limits[name]}): {counted(classes, 'class', 'classes')}, {counted(images, 'image', 'images')}"
