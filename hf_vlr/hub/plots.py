"""The pictures of a card: training images per class, accuracy along the tail, the loss."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from hf_vlr.data.frequency_plot import COLOURS, plot_frequencies
from hf_vlr.data.shots import SHOT_NAMES
from hf_vlr.hub.measurements import ClassRow
from hf_vlr.hub.reading import read_lines
from hf_vlr.hub.run_facts import LOG_FILE, RunFacts
from hf_vlr.training.curves import plot_curves, read_curve

FREQUENCY, TAIL, CURVE = "plots/class_frequency.png", "plots/accuracy_along_the_tail.png", "plots/training_loss.png"
# words for those who do not see them
WORDS = {
    FREQUENCY: "Training images of each class, by falling number, coloured by shot group",
    TAIL: "Accuracy of each class by its number of training images",
    CURVE: "Loss over the steps of training",
}


def plots(facts: RunFacts) -> dict[str, bytes]:
    """PNG files by path, those that something is known for; the same facts give the same bytes."""
    found: dict[str, bytes] = {}
    classes = facts.measurements[0].classes if facts.measurements else ()
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "plot.png"
        if classes and any(row.train_count for row in classes):
            counts = np.array([row.train_count for row in classes])
            rule = facts.measurements[0].protocol["rule"]["name"]
            plot_frequencies(counts, picture, facts.data_name or "training data", rule)
            found[FREQUENCY] = picture.read_bytes()
            plot_tail(classes, picture)
            found[TAIL] = picture.read_bytes()
        if any(line.get("loss") is not None for line in read_lines(facts.folder / LOG_FILE)):
            plot_curves([replace(read_curve(facts.folder), name="loss")], picture)
            found[CURVE] = picture.read_bytes()
    return found


def plot_tail(classes: tuple[ClassRow, ...], out: Path) -> None:
    """Write a PNG of each class's accuracy over its training images, with the mean of each shot group as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name in SHOT_NAMES:
        rows = [row for row in classes if row.shot == name and row.accuracy is not None]
        if not rows:
            continue
        # a class without training images has no place on a logarithmic axis
        counts, heights = [max(row.train_count, 0.5) for row in rows], [row.accuracy for row in rows]
        mean = float(np.mean(heights))
        label = f"{name}: {100 * mean:.1f} %, mean of {len(rows)} classes"
        axes.plot(counts, heights, "o", color=COLOURS[name], alpha=0.5, markersize=4, markeredgewidth=0, label=label)
        axes.hlines(mean, min(counts), max(counts), color=COLOURS[name], linewidth=2)
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_ylim(-0.03, 1.03)
    axes.set(xlabel="training images of the class", ylabel="accuracy of the class")
    axes.spines[["top", "right"]].set_visible(False)
    # above the plot, where no class is
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(SHOT_NAMES))
    figure.savefig(out, format="png")
