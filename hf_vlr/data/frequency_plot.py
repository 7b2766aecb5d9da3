"""The tail as a picture: training images per class, by rank, coloured by shot group."""

from pathlib import Path

import numpy as np

from hf_vlr.data.shots import SHOT_NAMES, shot_groups
from hf_vlr.errors import UserError

COLOURS = {"many": "#2b6cb0", "medium": "#dd8b20", "few": "#c0392b"}


def plot_frequencies(counts: np.ndarray, out: str | Path, title: str, rule: str = "oltr") -> Path:
    """Write a PNG of the counts [C] in falling order on a logarithmic axis; returns its path.

    Raises `UserError` where the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    order = np.argsort(-counts, kind="stable")
    figure = Figure(figsize=(8, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    groups = shot_groups(counts, rule)
    for name in SHOT_NAMES:
        ranks = np.flatnonzero(groups[name][order])
        label = f"{name}: {len(ranks)} classes, {counts[groups[name]].sum():,} images"
        axes.bar(ranks + 1, counts[order][ranks], width=1.0, color=COLOURS[name], label=label)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.8)
    axes.set_xlim(0.5, len(counts) + 0.5)
    axes.set(title=title, xlabel="class, by rank", ylabel="training images")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    try:
        figure.savefig(out, format="png")
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror})") from error
    return Path(out)
