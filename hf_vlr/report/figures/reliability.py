"""Confidence against accuracy, by shot group."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_vlr.data.shots import SHOT_NAMES
from hf_vlr.report import svg
from hf_vlr.report.markup import Html, figure, legend, share


def reliability_figure(predictor: str, entry: Mapping[str, Any], key: str) -> Html:
    """Accuracy over confidence in bins of equal width, a line for each group, dots as large as their share of images.

    `entry` is the predictor's entry of the metrics document.
    """
    drawn, axes = svg.plot()
    axes.plot([0, 1], [0, 1], color=svg.colour("muted"), linewidth=0.8, linestyle=(0, (4, 3)))
    entries = {}
    for name in SHOT_NAMES:
        bins, error = entry["reliability"][name], entry["groups"][name]["ece"]
        images = np.asarray(bins["images"])
        filled = images > 0
        if filled.any():
            confidence = np.asarray(bins["confidence"], dtype=np.float64)[filled]
            accuracy = np.asarray(bins["accuracy"], dtype=np.float64)[filled]
            axes.plot(confidence, accuracy, color=svg.colour(name), linewidth=0.8, alpha=0.4)
            sizes = 12 + 200 * images[filled] / images.sum()
            axes.scatter(confidence, accuracy, s=sizes, color=svg.colour(name), alpha=0.75, linewidths=0)
        entries[f"{name}: {share(error)}"] = (svg.css(name), "dot")
    axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), xlabel="confidence", ylabel="accuracy")
    svg.percentages(axes.xaxis)
    svg.percentages(axes.yaxis)
    label = f"Reliability of {predictor}; expected calibration error by group: {'; '.join(entries)}"
    caption = f"{predictor}: expected calibration error {share(entry['ece'])}; in the legend by group."
    return figure(svg.svg(drawn, key, label), caption, legend(entries))
