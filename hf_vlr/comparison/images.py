"""The images that all rows were tested on: matched, or refused.

Letters: N images, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hf_vlr.comparison.runs import Row, Run
from hf_vlr.data.shots import ShotRule, shot_groups, shot_names, shot_rule
from hf_vlr.errors import UserError
from hf_vlr.evaluation.outcome import Floats, Ints, Outcome


@dataclass(frozen=True)
class Images:
    """labels [N]; train_counts [C], which define the shot groups; class_names, C; how the runs were paired."""

    labels: Ints
    train_counts: Ints
    class_names: tuple[str, ...]
    rule: ShotRule
    paired_by: str

    @cached_property
    def groups(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Masks [C] of many, medium, few and the rule's further groups."""
        return shot_groups(self.train_counts, self.rule)

    @cached_property
    def per_class(self) -> Ints:
        """Test images of each class [C]."""
        return np.bincount(self.labels, minlength=len(self.train_counts))

    def averages_classes(self, over: str) -> bool:
        """Whether an accuracy is a mean over classes rather than over images."""
        return over == "balanced_accuracy" or (over in self.groups and self.rule.averaging == "class")

    def weights(self, over: str) -> Floats:
        """The weight [N] of each image in an accuracy, so that Σ w_i correct_i is it; they sum to 1, or are all 0.

        `over`: "accuracy", "balanced_accuracy", or a group's name, averaged as the rule says.
        """
        inside = np.ones(len(self.labels), dtype=bool) if over not in self.groups else self.groups[over][self.labels]
        weights = inside / (self.per_class[self.labels] if self.averages_classes(over) else 1)
        return weights / max(weights.sum(), np.finfo(float).tiny)


def align(
    rows: Sequence[Row], rule: str | ShotRule, *, counts_from: str | None = None, different_splits: bool = False
) -> tuple[Images, list[Row]]:
    """The images, and the rows with their outcomes in one order.

    Runs are paired by their images' identities where all of them know these, then in the order of the identities;
    else image by image as they are stored. Raises `UserError` where that is not one and the same set of images: other
    classes, other numbers of images, other images or labels, and, without identities, other splits by name, unless
    `different_splits` vouches for them. Where training counts put a class into different shot groups, `counts_from`
    names the row whose counts hold; without it that is an error, too.
    """
    runs = [run for row in rows for run in row.runs]
    for run in runs[1:]:
        _check_classes(runs[0], run)
    known = all(run.predictions.rows is not None for run in runs)
    orders = [_by_identity(run) if known else np.arange(len(run.outcome.labels)) for run in runs]
    for run, order in zip(runs[1:], orders[1:]):
        _check_images(runs[0], orders[0], run, order)
        if not known and not different_splits:
            _check_split(runs[0], run)
    counts = _train_counts(rows, shot_rule(rule), counts_from)
    names = next((run.predictions.class_names for run in runs if not _numbered(run)), runs[0].predictions.class_names)
    aligned = [replace(run, outcome=_taken(run.outcome, order)) if known else run for run, order in zip(runs, orders)]
    found = iter(aligned)
    paired_by = "identity" if known else "order"
    images = Images(aligned[0].outcome.labels, counts, names, shot_rule(rule), paired_by)
    return images, [replace(row, runs=tuple(next(found) for _ in row.runs)) for row in rows]


def _by_identity(run: Run) -> Ints:
    """The order of a run's images by identity; labels decide between images that are listed twice."""
    return np.lexsort((run.outcome.labels, run.predictions.rows))


def _taken(outcome: Outcome, order: Ints) -> Outcome:
    arrays = {field.name: getattr(outcome, field.name) for field in fields(outcome) if field.name != "num_classes"}
    return replace(outcome, **{name: array[order] for name, array in arrays.items() if array is not None})


def _numbered(run: Run) -> bool:
    """Whether the names are only numbers, given where none are known."""
    return all(name == f"class {index}" for index, name in enumerate(run.predictions.class_names))


def _check_classes(first: Run, other: Run) -> None:
    classes = [run.predictions.num_classes for run in (first, other)]
    if classes[0] != classes[1]:
        raise UserError(
            f"{first.location} has {classes[0]} classes, {other.location} {classes[1]}: compare one data set"
        )
    if _numbered(first) or _numbered(other):
        return
    for index, (one, two) in enumerate(zip(first.predictions.class_names, other.predictions.class_names)):
        if one != two:
            raise UserError(
                f"class {index} is {one!r} in {first.location} and {two!r} in {other.location}: compare runs that "
                "list the same classes in the same order"
            )


def _check_images(first: Run, first_order: Ints, other: Run, order: Ints) -> None:
    places = f"{first.location} and {other.location}"
    sizes = [len(run.outcome.labels) for run in (first, other)]
    if sizes[0] != sizes[1]:
        raise UserError(f"{places} were tested on {sizes[0]:,} and {sizes[1]:,} images: compare runs on one split")
    ours, theirs = first.predictions.rows, other.predictions.rows
    if ours is not None and theirs is not None:
        missing = int((~np.isin(ours, theirs)).sum())
        if missing:
            raise UserError(
                f"{places} were tested on different images ({missing:,} of {sizes[0]:,}): nothing is paired"
            )
        if not np.array_equal(ours[first_order], theirs[order]):
            raise UserError(
                f"{places} hold the same images in another order, which a third run without identities hides"
            )
    differ = int((first.outcome.labels[first_order] != other.outcome.labels[order]).sum())
    if differ:
        raise UserError(f"{places} have other labels for {differ:,} of {sizes[0]:,} images: nothing is paired")


def _check_split(first: Run, other: Run) -> None:
    """Without identities, equal labels prove little: a balanced validation split may have those of the test split."""
    ours, theirs = (run.protocol.get("split") for run in (first, other))
    if ours is not None and theirs is not None and ours != theirs:
        raise UserError(
            f"{first.location} was tested on {ours}, {other.location} on {theirs}, and they do not name their images; "
            "if these are the same ones, say so with --allow-different-splits"
        )


def _train_counts(rows: Sequence[Row], rule: ShotRule, counts_from: str | None) -> Ints:
    """The counts [C] that define the groups."""
    if counts_from is not None:
        chosen = [row for row in rows if row.name == counts_from]
        if not chosen:
            raise UserError(f"--counts-from {counts_from} is no row; there are {', '.join(row.name for row in rows)}")
        return chosen[0].runs[0].predictions.train_counts
    first, *others = (run for row in rows for run in row.runs)
    counts = first.predictions.train_counts
    shots = shot_names(counts, rule)
    for run in others:
        own = run.predictions.train_counts
        if all(np.array_equal(mask, shot_groups(own, rule)[name]) for name, mask in shot_groups(counts, rule).items()):
            continue
        label = next((i for i, (one, two) in enumerate(zip(shots, shot_names(own, rule))) if one != two), None)
        example = (
            ""
            if label is None
            else (
                f": class {label} is {shots[label]}-shot with {counts[label]:,} training images in the one, "
                f"{shot_names(own, rule)[label]}-shot with {own[label]:,} in the other"
            )
        )
        raise UserError(
            f"the shot groups of {first.location} and {run.location} differ{example}; choose whose training counts "
            f"hold, as in --counts-from {rows[0].name}"
        )
    return counts
