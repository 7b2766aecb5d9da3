"""Class by class: the worst ones, and a table of all where they are few."""

from collections.abc import Sequence

import numpy as np

from hf_vlr.report.markup import NOTHING, Cell, Html, folded, name, paragraph, percent, table
from hf_vlr.report.mistakes import confused_pairs
from hf_vlr.report.view import Ints, View

WORST = 10
MOST_ROWS = 50
# up to here a table of all classes is shown
ALL_ROWS = 120


def classes_body(view: View) -> Html:
    """The worst classes of the main predictor, then all of them, or the first 50 by training images."""
    accuracy = view.class_accuracy(view.correct(view.main))
    tested = np.flatnonzero(view.images > 0)
    # of equally bad classes the one with more test images says more
    order = tested[np.lexsort((tested, -view.images[tested], accuracy[tested]))]
    worst = _table(view, order[:WORST], f"The classes that {view.main} knows worst, accuracy in percent.")
    everything = view.predictions.num_classes <= ALL_ROWS
    shown = view.order if everything else view.order[:MOST_ROWS]
    count = f"All {len(shown)} classes" if everything else f"The {len(shown)} classes with most training images"
    full = _table(view, shown, f"{count}, by falling number of training images, accuracy in percent.")
    if everything:
        return Html(worst + folded(count, full))
    note = f"{view.predictions.num_classes - len(shown):,} more are in per_class.csv, next to this page."
    return Html(worst + folded(count, Html(full + paragraph(note, "note"))))


def _table(view: View, labels: Sequence[int] | Ints, caption: str) -> Html:
    accuracies = {one: view.class_accuracy(view.correct(one)) for one in view.predicted}
    mistaken = _commonest_mistakes(view)
    rows = [
        [
            Cell(name(view.predictions.class_names[label]), note=view.shots[label]),
            *(percent(None if np.isnan(one[label]) else float(one[label])) for one in accuracies.values()),
            f"{view.predictions.train_counts[label]:,}",
            f"{view.images[label]:,}",
            Cell(mistaken.get(int(label), Html(NOTHING)), "text"),
        ]
        for label in labels
    ]
    last = Cell(Html(f"{name(view.main)} most often says"), "text")
    return table(caption, ["class", *map(name, accuracies), "training images", "test images", last], rows)


def _commonest_mistakes(view: View) -> dict[int, Html]:
    """By class the one that it is most often mistaken for, and for how many images."""
    wrong = ~view.correct(view.main)
    labels, predicted = view.predictions.labels[wrong], view.predicted[view.main][wrong]
    pairs, counts = confused_pairs(labels, predicted, view.predictions.num_classes)
    found: dict[int, Html] = {}
    for (true, taken), count in zip(pairs.tolist(), counts.tolist()):
        found.setdefault(true, Html(f"{name(view.predictions.class_names[taken])} ({count:,})"))
    return found
