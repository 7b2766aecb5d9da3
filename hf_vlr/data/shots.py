"""Shot groups: which classes count as many-shot, medium-shot and few-shot.

Shapes: C classes. Groups follow the *training* counts, whatever split is scored.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_vlr.errors import UserError

SHOT_NAMES = ("many", "medium", "few")


@dataclass(frozen=True)
class ShotRule:
    """Thresholds on a class's number n of training images, and how a group is averaged.

    many: n > `many_above`; few: n < `few_below`; medium: the rest, so the three groups are a partition.
    `averaging` is "class" (mean of class accuracies) or "image" (share of the group's images that are
    right). `at_most` names further groups, which overlap the three: (name, largest n).
    """

    name: str
    many_above: int
    few_below: int
    averaging: str
    at_most: tuple[tuple[str, int], ...] = ()


# "oltr": 20 and 100 are medium (Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019).
# "vl-ltr": one off at both ends, and images are weighed (as Tian et al., ECCV 2022, compute it).
SHOT_RULES = {
    "oltr": ShotRule("oltr", many_above=100, few_below=20, averaging="class"),
    "vl-ltr": ShotRule(
        "vl-ltr", many_above=99, few_below=21, averaging="image", at_most=(("10-shot", 10), ("5-shot", 5))
    ),
}


def shot_rule(rule: str | ShotRule) -> ShotRule:
    """The rule of a name: "oltr", "vl-ltr", or "custom:HI,LO" (many > HI, few < LO, class means).

    Raises `UserError` for an unknown name, for limits that are not two integers, and unless 0 <= LO <= HI.
    """
    if isinstance(rule, ShotRule):
        return rule
    if rule in SHOT_RULES:
        return SHOT_RULES[rule]
    kind, _, limits = rule.partition(":")
    if kind != "custom":
        raise UserError(f"unknown shot rule '{rule}': use {', '.join(SHOT_RULES)} or custom:HI,LO")
    try:
        high, low = (int(limit) for limit in limits.split(","))
    except ValueError as error:
        raise UserError(f"shot rule '{rule}' needs two integers: custom:HI,LO, as in custom:100,20") from error
    if not 0 <= low <= high:
        raise UserError(f"shot rule '{rule}' needs 0 <= LO <= HI: many is above HI, few is below LO")
    return ShotRule(rule, many_above=high, few_below=low, averaging="class")


def shot_groups(train_counts: npt.ArrayLike, rule: str | ShotRule = "oltr") -> dict[str, npt.NDArray[np.bool_]]:
    """Boolean masks [C] by group: many, medium, few, then the rule's further groups.

    `train_counts` [C] are non-negative integers. Raises `UserError` for other counts and for an unknown
    rule.
    """
    limits, counts = shot_rule(rule), _checked_counts(train_counts)
    many, few = counts > limits.many_above, counts < limits.few_below
    groups = {"many": many, "medium": ~(many | few), "few": few}
    return groups | {name: counts <= most for name, most in limits.at_most}


def shot_names(train_counts: npt.ArrayLike, rule: str | ShotRule = "oltr") -> list[str]:
    """The group of each class, C strings out of many, medium, few. Raises as `shot_groups` does."""
    groups = shot_groups(train_counts, rule)
    return np.select([groups[name] for name in SHOT_NAMES], SHOT_NAMES, default="").tolist()


def _checked_counts(train_counts: npt.ArrayLike) -> npt.NDArray[Any]:
    counts = np.asarray(train_counts)
    if counts.ndim != 1 or counts.size == 0 or not np.issubdtype(counts.dtype, np.integer):
        raise UserError(f"train counts must be one integer for each class, got {counts.dtype} {counts.shape}")
    if counts.min() < 0:
        raise UserError(f"class {int(counts.argmin())} has a negative train count: count its training images again")
    return counts
