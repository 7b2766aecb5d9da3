"""Where the errors go: a map of shot groups, and the classes that are taken for each other."""

import numpy as np
import numpy.typing as npt

from hf_vlr.report.markup import NOTHING, Cell, Html, name, paragraph, percent, share, table
from hf_vlr.report.view import Bools, View

TOP_PAIRS = 10
SHADES = 5


def group_table(view: View, predictor: str) -> Html:
    """The share of each true group's images that is predicted to be in each group; rows sum to 100 %."""
    confusion = view.document["predictors"][predictor]["group_confusion"]
    rows: list[list[str | Cell]] = []
    for true, counts in zip(confusion["groups"], confusion["counts"]):
        total = sum(counts)
        rows.append([true, *(_shaded(count, total) for count in counts)])
    caption = f"{predictor}: test images by the group of their class and of the predicted class."
    columns = [Cell(group, note="predicted") for group in confusion["groups"]]
    return table(caption, [Cell("", note="true"), *columns], rows, kind="heat")


def tail_sentence(view: View, predictor: str) -> Html:
    """How many few-shot errors land on many-shot classes, and whether the tail is predicted as often as it occurs."""
    entry = view.document["predictors"][predictor]
    few = entry["groups"]["few"]
    if few["accuracy"] is None:
        return paragraph("No few-shot class has test images.", "note")
    landed = share(entry["tail_to_head"])
    return paragraph(
        f"Errors of {predictor} on few-shot images that land on a many-shot class: {landed}. Few-shot classes are "
        f"{share(few['share'])} of the test images and {share(few['predicted_share'])} of the predictions."
    )


def pairs_table(view: View, predictor: str, among: Bools | None = None, title: str = "") -> Html:
    """The pairs of (true class, predicted class) that are confused most; `among` [C] limits the true classes."""
    labels, predicted = view.predictions.labels, view.predicted[predictor]
    wrong = predicted != labels
    if among is not None:
        wrong &= among[labels]
    pairs, counts = confused_pairs(labels[wrong], predicted[wrong], view.predictions.num_classes)
    if not counts.size:
        return paragraph(f"{title}: no errors.", "note")
    if counts[0] == 1 and counts.size > TOP_PAIRS:
        return paragraph(f"{title}: no two classes more than once.", "note")
    # of equally frequent pairs the one that costs its class more
    order = np.lexsort((-counts / view.images[pairs[:, 0]], -counts))
    pairs, counts = pairs[order], counts[order]
    names, shots = view.predictions.class_names, view.shots
    rows = [
        [
            Cell(name(names[true]), note=shots[true]),
            Cell(name(names[taken]), note=shots[taken]),
            f"{count:,}",
            percent(count / view.images[true], 0),
        ]
        for (true, taken), count in zip(pairs[:TOP_PAIRS], counts[:TOP_PAIRS])
    ]
    header = ["true class", "taken for", "images", "% of the class"]
    return table(f"{title}, the {len(rows)} most frequent.", header, rows, text_columns=2)


def confused_pairs(
    labels: npt.NDArray[np.integer], predicted: npt.NDArray[np.integer], num_classes: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pairs [P, 2] of (true, predicted) and how often each occurs [P], most frequent first, ties by label."""
    codes, counts = np.unique(labels.astype(np.int64) * num_classes + predicted, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return np.stack(np.divmod(codes[order], num_classes), axis=1), counts[order]


def _shaded(count: int, total: int) -> Cell:
    """A cell of the map, its shade by its share; "-" in the row of an empty group."""
    if total == 0:
        return Cell(NOTHING)
    part = count / total
    return Cell(share(part), f"shade-{min(SHADES, 1 + int(part * SHADES))}", f"{count:,}")
