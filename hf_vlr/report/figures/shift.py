"""Accuracy if the test classes were as frequent as other priors have them."""

from collections.abc import Mapping
from typing import Any

from hf_vlr.report import svg
from hf_vlr.report.markup import Html, figure, legend


def shift_figure(predictors: Mapping[str, Mapping[str, Any]]) -> Html:
    """A line for each predictor over the priors, from the training set's own direction to its reverse.

    `predictors`: entries of the metrics document by name.
    """
    drawn, axes = svg.plot()
    entries = {}
    priors = list(next(iter(predictors.values()))["shifted_priors"])
    for number, (name, entry) in enumerate(predictors.items()):
        role, mark = svg.series(number)
        values = [entry["shifted_priors"][prior] for prior in priors]
        shown = [(place, value) for place, value in enumerate(values) if value is not None]
        if shown:
            style = {"color": svg.colour(role), "linestyle": svg.DASHES[mark]}
            axes.plot(*zip(*shown), **style, linewidth=1.8, marker="o", markersize=3.5, markeredgewidth=0)
        entries[name] = (svg.css(role), mark)
    axes.set_xticks(range(len(priors)), [_ratio(prior) for prior in priors])
    axes.set(xlabel="imbalance: as in training … none (1) … reversed", ylabel="accuracy")
    svg.percentages(axes.yaxis)
    label = f"Accuracy of {', '.join(predictors)} under test priors from {priors[0]} to {priors[-1]}"
    caption = (
        "Accuracy if the test classes were long-tailed as in training (left), equally frequent (middle), or so "
        "the other way round (right). Numbers say how many times the most frequent class exceeds the rarest."
    )
    return figure(svg.svg(drawn, "shift", label), caption, legend(entries))


def _ratio(prior: str) -> str:
    """How many times the most frequent class exceeds the rarest."""
    return "1" if prior == "uniform" else prior.rpartition("-")[2]
