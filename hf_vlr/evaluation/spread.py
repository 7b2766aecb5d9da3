"""Several runs of one experiment as one row: the mean and the standard deviation of every number over the seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_vlr.errors import UserError

# of one run, and without meaning as a mean
PER_RUN = ("intervals", "worst_class_label", "worst_class_name", "note")


@dataclass(frozen=True)
class Spread:
    """`mean` and `std` of each number of an entry over `runs` entries, in the entry's own tree."""

    mean: dict[str, Any]
    std: dict[str, Any]
    runs: int


def spread(entries: Sequence[Mapping[str, Any]]) -> Spread:
    """Mean and sample standard deviation (ddof = 1) over runs of every number in entries of `metrics.json`.

    A number is None where a run has none, and every deviation is None with a single run. Intervals, labels and names
    belong to one run and are left out. Raises `UserError` without entries, and for entries that hold other numbers:
    other groups, or a mixed convention among plain ones.
    """
    if not entries:
        raise UserError("there is no run to average: give at least one entry")
    mean, std = _both([{key: entry[key] for key in entry if key not in PER_RUN} for entry in entries], "entry")
    return Spread(mean, std, len(entries))


def _both(values: Sequence[Any], place: str) -> tuple[Any, Any]:
    """(mean, deviation) of numbers, or of each place of a tree."""
    first = values[0]
    if isinstance(first, Mapping):
        if any(not isinstance(value, Mapping) or value.keys() != first.keys() for value in values):
            raise UserError(f"the runs differ in what '{place}' holds: average runs of one experiment")
        parts = {key: _both([value[key] for value in values], key) for key in first}
        return {key: part[0] for key, part in parts.items()}, {key: part[1] for key, part in parts.items()}
    if isinstance(first, list | tuple):
        if any(not isinstance(value, list | tuple) or len(value) != len(first) for value in values):
            raise UserError(f"the runs differ in what '{place}' holds: average runs of one experiment")
        pairs = [_both(column, place) for column in zip(*values)]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if any(value is None for value in values):
        return None, None
    if isinstance(first, str | bool):
        if any(value != first for value in values):
            raise UserError(f"the runs differ in '{place}': average runs of one experiment")
        return first, None
    numbers = np.asarray(values, dtype=np.float64)
    return float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else None
