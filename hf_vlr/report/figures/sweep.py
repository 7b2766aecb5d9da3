"""Accuracies over a setting that nothing was chosen by."""

from hf_vlr.data.shots import SHOT_NAMES
from hf_vlr.report import svg
from hf_vlr.report.markup import Html, figure, legend
from hf_vlr.report.sweeps import Sweep

# said below every sweep: it looks like a choice, and is none
NOT_CHOSEN = "Shown on the reported split; nothing was chosen on it."
GROUPS = {"all": ("ink", "line"), **{name: (name, "line") for name in SHOT_NAMES}}


def fusion_figure(sweep: Sweep, chosen: float | None) -> Html:
    """Accuracy by group over the fusion weight, the run's own weight (where it is known) as an upright line."""
    drawn, axes = svg.plot()
    entries = {}
    for name, (role, mark) in GROUPS.items():
        values = sweep.accuracy[name]
        if values[0] is not None:
            width = 2.2 if name == "all" else 1.6
            axes.plot(sweep.values, values, color=svg.colour(role), linewidth=width, linestyle=svg.DASHES[mark])
            entries[name] = (svg.css(role), mark)
    if chosen is not None:
        axes.axvline(chosen, color=svg.colour("muted"), linewidth=1, linestyle=(0, (2, 2)))
        entries[f"α = {chosen:g}, the run's own"] = (svg.css("muted"), "dotted")
    axes.set(xlim=(0, 1), xlabel="fusion weight α: language alone at 0, visual alone at 1", ylabel="accuracy")
    svg.percentages(axes.yaxis)
    label = "Accuracy over the fusion weight α from language alone to visual alone, by group"
    return figure(svg.svg(drawn, "fusion", label), f"Weighing the two branches. {NOT_CHOSEN}", legend(entries))


def adjustment_figure(sweep: Sweep, predictor: str) -> Html:
    """The way of (accuracy on all images, accuracy of few) as τ of logit adjustment rises; τ = 0, 1, 2 are marked."""
    drawn, axes = svg.plot()
    overall, few = sweep.accuracy["all"], sweep.accuracy["few"]
    axes.plot(overall, few, color=svg.colour("few"), linewidth=1.2, marker="o", markersize=3, markeredgewidth=0)
    for value, x, y in zip(sweep.values, overall, few):
        if abs(value - round(value)) < 1e-9:
            axes.plot([x], [y], "o", color=svg.colour("ink"), markersize=6, markeredgewidth=0)
            axes.annotate(
                f"τ = {value:.0f}",
                (x, y),
                xytext=(6, 6),
                textcoords="offset points",
                color=svg.colour("ink"),
                fontsize=svg.FONT_SIZE,
            )
    axes.margins(0.14)
    axes.grid(axis="x", color=svg.colour("line"), linewidth=0.6)
    axes.set(xlabel="accuracy, all images", ylabel="accuracy, few-shot classes")
    svg.percentages(axes.xaxis)
    svg.percentages(axes.yaxis)
    label = f"Accuracy of few-shot classes against accuracy on all images as logit adjustment of {predictor} rises"
    caption = f"What few-shot accuracy costs: logit adjustment of {predictor} with τ from 0 to 2. {NOT_CHOSEN}"
    return figure(svg.svg(drawn, "adjustment", label), caption)
