"""The columns that predictors are compared by: two means and the shot groups, each with its interval."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_vlr.report.view import View

Entry = Mapping[str, Any]
Interval = Sequence[float] | None

# Images that at least must differ for a difference to be told from chance: if each of n goes one way, a two-sided
# sign test gives 2^(1 − n), which is below 5 % from 6 on. A bootstrap of fewer has no spread to say so.
FEWEST_IMAGES = 6
MEANS = {"accuracy": "all images", "balanced_accuracy": "balanced"}


def column_value(entry: Entry, column: str) -> float | None:
    """A mean (by its key) or the accuracy of a group (by its name); None where nothing was measured."""
    return entry[column] if column in MEANS else entry["groups"][column]["accuracy"]


def column_interval(entry: Entry, column: str) -> Interval:
    """The [low, high] of `column_value`; None where there is none."""
    intervals = entry.get("intervals")
    if intervals is None:
        return None
    return intervals[column] if column in MEANS else intervals["groups"][column]


def column_images(entry: Entry, column: str) -> int:
    """How many test images `column_value` is measured on."""
    return entry["num_images"] if column in MEANS else entry["groups"][column]["images"]


def comparable(view: View) -> dict[str, Entry]:
    """The entries, by predictor, whose numbers all come from that predictor."""
    return {one: entry for one, entry in view.document["predictors"].items() if not entry.get("mixed")}


def leads(view: View, predictor: str, column: str) -> bool:
    """Whether the predictor's interval lies above those of all others, of which there is at least one.

    Never on fewer than `FEWEST_IMAGES` images.
    """
    if column_images(view.document["predictors"][predictor], column) < FEWEST_IMAGES:
        return False
    rivals = {one: column_interval(entry, column) for one, entry in comparable(view).items()}
    own = rivals.pop(predictor, None)
    return own is not None and bool(rivals) and all(other and other[1] < own[0] for other in rivals.values())
