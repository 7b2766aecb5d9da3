"""Which class shares the scores of a trained model have learnt: those that its training has shown it.

Trained on classes drawn in proportion to n^p, n the training images of each, scores estimate log p(x|c) + p log n_c.
Weights 1/n_c in the loss do what drawing in proportion to 1/n_c does, and τ log n_c added to the scores in training is
missing from them afterwards: each takes its power away from p. Letter: `C` classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_vlr.posthoc.class_prior import Prior, from_counts

NAMES = {"train": 1.0, "sqrt": 0.5, "uniform": 0.0}
POWER = "train^"
# the power of n_c by sampler; others mix several powers, or know no classes
_DRAWN = {"instance": 1.0, "sqrt": 0.5, "class-balanced": 0.0, "under": 0.0, "over": 0.0}
_WEIGHED = {"none": 0.0, "inverse": 1.0}


@dataclass(frozen=True)
class Learnt:
    """Shares in proportion to n^power. doubt: why they are a guess, None where the training is known."""

    power: float
    doubt: str | None = None

    @property
    def name(self) -> str:
        return next((name for name, power in NAMES.items() if power == self.power), f"{POWER}{self.power:g}")

    def shares(self, train_counts: Any) -> Prior:
        """[C], sums to 1, of training images per class [C]."""
        return from_counts(train_counts, self.power)


def stated_by(protocol: Mapping[str, Any]) -> Learnt:
    """The shares that follow from a protocol's `sampler`, `logit_adjustment` and `reweight` of the training run.

    Where they do not follow, those of training, with the doubt.
    """
    sampler, weights = protocol.get("sampler"), protocol.get("reweight") or "none"
    added = protocol.get("logit_adjustment") or 0.0
    if sampler is None:
        return Learnt(1.0, "these predictions do not state how classes were drawn in training")
    if sampler not in _DRAWN or not isinstance(added, int | float):
        return Learnt(1.0, f"sampler {sampler} leaves open which they are")
    if weights not in _WEIGHED:
        return Learnt(1.0, f"weights of the classes ({weights}) leave open which they are")
    if protocol.get("task") == "rebalance" and _DRAWN[sampler]:
        return Learnt(1.0, "a classifier that was rebalanced leaves open which they are")
    return Learnt(_DRAWN[sampler] - added - _WEIGHED[weights])


def by_name(name: str) -> Learnt | None:
    """train, sqrt, uniform or train^POWER; None for another word."""
    if name in NAMES:
        return Learnt(NAMES[name])
    if not name.startswith(POWER):
        return None
    try:
        return Learnt(float(name.removeprefix(POWER)))
    except ValueError:
        return None
