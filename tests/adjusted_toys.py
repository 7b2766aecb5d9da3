"""Toy predictions of two models on two splits, for the tests of post-hoc methods and of their command."""

from dataclasses import replace

import numpy as np

from hf_vlr.evaluation.adjustment import Material, Step, adjust, parse_steps
from hf_vlr.evaluation.predictions import Predictions

COUNTS = np.array([200, 60, 12, 3, 0])
SHARES = np.maximum(COUNTS, 1) / np.maximum(COUNTS, 1).sum()
ROOTS = np.sqrt(SHARES) / np.sqrt(SHARES).sum()


def predictions(seed: int = 0, rows: int = 120, split: str = "test", name: str = "visual", **changes) -> Predictions:
    """A model that has learnt `COUNTS`, on about balanced images."""
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % 5
    logits = 2.0 * (generator.normal(size=(rows, 5)) + 2.5 * np.eye(5)[labels] + np.log(SHARES))
    protocol = {"split": split, "source": "toys", "sampler": "instance"}
    known = Predictions({name: logits}, labels, COUNTS, tuple("abcde"), protocol)
    return replace(known, **changes)


def zero_shot(seed: int, labels: np.ndarray) -> Predictions:
    logits = np.random.default_rng(seed).normal(size=(len(labels), 5)) + 2 * np.eye(5)[labels] + [1, 0, 0, 0, -1]
    return Predictions({"all texts": logits}, labels, COUNTS, tuple("abcde"), {"split": "test"})


TEST, VALIDATION = predictions(0), predictions(1, rows=80, split="validation")
BOTH = Material(TEST, zero_shot(2, TEST.labels)), Material(VALIDATION, zero_shot(3, VALIDATION.labels))


def steps_of(text: str) -> list[Step]:
    return parse_steps(text.split())


def applied(text: str, tuned: bool = True, **how):
    return adjust(BOTH[0], steps_of(text), BOTH[1] if tuned else None, **how)


def last(adjusted) -> np.ndarray:
    return list(adjusted.predictions.scores.values())[-1]
