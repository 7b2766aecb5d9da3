"""When a difference may be called one."""

from collections.abc import Mapping
from typing import TypeVar

ALPHA = 0.05
CONFIDENCE = 0.95
BETTER, WORSE, NOTHING_SHOWN = "better", "worse", "no difference shown"
# what sums of fractions leave of zero
_ROUNDING = 1e-12

Key = TypeVar("Key")


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """The p of each of M tests, adjusted so that all those up to α may be called, with errors in at most a share α.

    With p_(1) <= … <= p_(M), the adjusted p_(i) is max over j <= i of min(1, (M − j + 1) p_(j)) (Holm, Scandinavian
    Journal of Statistics 1979). The chance that any true null is rejected at level α is at most α, however the tests
    depend on each other.
    """
    adjusted: dict[Key, float] = {}
    reached = 0.0
    for place, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        reached = max(reached, min(1.0, (len(p_values) - place) * p))
        adjusted[key] = reached
    return {key: adjusted[key] for key in p_values}


def verdict(estimate: float, low: float, high: float, p_adjusted: float, *, lower_is_better: bool = False) -> str:
    """ "better" or "worse" where the interval excludes zero and the adjusted p is at most 0.05, else neither."""
    if p_adjusted > ALPHA or (low <= _ROUNDING and high >= -_ROUNDING):
        return NOTHING_SHOWN
    return BETTER if (estimate > 0) != lower_is_better else WORSE


def resamples_needed(tests: int) -> int:
    """The fewest resamples whose smallest p, 1 / (R + 1), can pass the strictest of `tests` thresholds, α / M."""
    return round(tests / ALPHA) - 1
