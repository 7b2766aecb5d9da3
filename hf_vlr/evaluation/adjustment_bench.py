"""What a post-hoc method is given, and what it gives back.

Letters: `N` images, `C` classes, `D` width of features.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from hf_vlr.errors import UserError
from hf_vlr.evaluation.arrays import read_array
from hf_vlr.evaluation.learnt_shares import NAMES, Learnt, by_name
from hf_vlr.evaluation.priors import PRIORS, prior_weights
from hf_vlr.posthoc import class_prior

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Images:
    """One split as a method sees it: scores [N, C], labels [N], features [N, D].

    other: scores [N, C] of a second model by predictor's name; other_names: those that may be mixed in.
    """

    scores: Array
    labels: Array
    other: Mapping[str, Array]
    other_names: tuple[str, ...] = ()
    features: Array | None = None


@dataclass(frozen=True)
class Bench:
    """What a method may use: the reported images, others to choose on, training images per class, a classifier [C, D].

    split: what the tuning images are called. learnt: the class shares in the scores, as far as the training states
    them. branches: predictors of a recogniser's branches among the `other` ones, which are trained.
    """

    reported: Images
    tuning: Images | None
    split: str
    train_counts: Array
    learnt: Learnt
    classifier: Array | None = None
    branches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fitted:
    """A method with all its parameters. told: what a reader must know of it; prior: class shares it has estimated."""

    apply: Callable[[Images], Array]
    told: dict[str, Any]
    warnings: tuple[str, ...] = ()
    prior: Array | None = None


class Settings:
    """The `key=value` words of one step, as text."""

    def __init__(self, method: str, words: Mapping[str, str]) -> None:
        self.method, self.words = method, words

    def text(self, key: str, default: str, choices: Sequence[str] = ()) -> str:
        value = self.words.get(key, default)
        if choices and value not in choices:
            raise UserError(f"{self.method} {key}={value} is not one of {', '.join(choices)}")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """The numbers of a comma-separated value; none where the key is not given."""
        try:
            values = tuple(float(part) for part in self.words[key].split(",")) if key in self.words else ()
        except ValueError:
            raise UserError(
                f"{self.method} {key}={self.words[key]}: give a number, or several to choose from"
            ) from None
        if not all(map(math.isfinite, values)):
            raise UserError(f"{self.method} {key}={self.words[key]}: give finite numbers")
        if key == "tau":
            values = tuple(class_prior.checked_power(value, f"{self.method} {key}") for value in values)
        return values

    def prior(self, key: str, name: str, train_counts: Array) -> Array:
        """Class shares by name: train, sqrt, uniform, forward-R, backward-R, or the numbers [C] in a .npy file."""
        learnt = by_name(name)
        if learnt is not None:
            return learnt.shares(train_counts)
        if name in PRIORS:
            return class_prior.checked_prior(prior_weights(name, train_counts), len(train_counts), key)
        if not name.endswith(".npy"):
            known = (*NAMES, *(one for one in PRIORS if one not in NAMES))
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{self.method} {key}={name}: use {', '.join(known)} or a .npy file{hint}")
        return class_prior.checked_prior(read_array(name, "class shares"), len(train_counts), f"prior of {name}")

    def learnt(self, bench: Bench) -> tuple[str, Array, tuple[str, ...]]:
        """The class shares that the scores have learnt, their name, and a warning where they are a guess."""
        if "learnt" in self.words:
            return self.words["learnt"], self.prior("learnt", self.words["learnt"], bench.train_counts), ()
        found, warnings = bench.learnt, ()
        if found.doubt is not None:
            guessed = f"{self.method} takes the class shares in the scores to be those of the training images"
            warnings = (f"{guessed}, but {found.doubt}: say learnt={', '.join([*NAMES][:-1])} or {[*NAMES][-1]}",)
        return found.name, found.shares(bench.train_counts), warnings
