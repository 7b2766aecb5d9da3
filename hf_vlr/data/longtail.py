"""Long-tailed class sizes, and which rows of a dataset to keep for them."""

import math
from collections.abc import Sequence
from difflib import get_close_matches

import numpy as np

from hf_vlr.errors import UserError
from hf_vlr.randomness import numpy_generator

KINDS = ("exp", "step", "pareto")
PUBLISHED_KINDS = ("exp", "step")
ORDERS = ("size", "given")


def class_sizes(
    num_classes: int, largest: int, imbalance_factor: float, kind: str = "exp", alpha: float = 6.0
) -> np.ndarray:
    """Images per class, int64 `[C]`, never increasing: n_0 = n_max = `largest`, n_{C-1} = int(n_max · (1/IF)).

    kind:
        "exp": n_i = int(n_max · (1/IF)^(i/(C-1))) (Cui et al., Class-Balanced Loss, 2019, section 5.1).
        "step": n_max for the first ⌊C/2⌋ classes, int(n_max · (1/IF)) for the rest (Buda et al., 2018; Cao et al.,
            LDAM, 2019).
        "pareto": the C-quantiles of a Pareto distribution of power `alpha` that begins at 0 (type II, what
            `numpy.random.pareto` draws from), brought to the range n_min = n_max/IF … n_max:
            q_i = ((i + ½)/C)^(-1/alpha) - 1, n_i = int(n_min + (n_max - n_min) · (q_i - q_{C-1})/(q_0 - q_{C-1})).
            ImageNet-LT and Places-LT are said to be drawn with power 6 (Liu et al., OLTR, 2019, section 4); with
            C = 1000, n_max = 1280, IF = 256 this gives 104,345 images, the published list has 115,846.

    int(…) that rounding would make 0 is 1. C = 1 is one class of n_max. Computed in Python's floats in the order of
    the published code, so that the sizes agree with its lists to the last image. Raises `UserError` for an unknown
    kind, or numbers outside C ≥ 1, 1 ≤ IF ≤ n_max, alpha > 0.
    """
    _check(num_classes, largest, imbalance_factor, kind, alpha)
    share = 1 / imbalance_factor
    if num_classes == 1:
        sizes = [float(largest)]
    elif kind == "exp":
        sizes = [largest * share ** (index / (num_classes - 1.0)) for index in range(num_classes)]
    elif kind == "step":
        half = num_classes // 2
        sizes = [float(largest)] * half + [largest * share] * (num_classes - half)
    else:
        sizes = _pareto(num_classes, largest, largest * share, alpha)
    return np.array([max(1, int(size)) for size in sizes], dtype=np.int64)


def assign_sizes(sizes: np.ndarray, available: np.ndarray, order: str = "size") -> np.ndarray:
    """The size of each class, int64 `[C]`: `sizes` (largest first) dealt to classes that have `available` images.

    order: "size", the class with the most images gets the largest size (ties by class index), so that a class is
    asked for more than it has only where no other order could help; "given", class i gets `sizes[i]`. On a balanced
    dataset both are the same. Raises `UserError` for an unknown order.
    """
    _known("order", order, ORDERS)
    if order == "given":
        return sizes.copy()
    wanted = np.empty_like(sizes)
    wanted[np.argsort(-available, kind="stable")] = sizes
    return wanted


def subset_by_sizes(labels: np.ndarray, sizes: Sequence[int] | np.ndarray, seed: int) -> np.ndarray:
    """`sizes[c]` random rows of every class c, or all it has where it has fewer; int64 row indices, ascending.

    labels: int64 `[N]`; rows of -1 are never chosen. The choice in one class depends on the seed, the class and its
    number of rows alone, and a smaller size takes a part of what a larger one takes.
    """
    chosen = []
    for label, size in enumerate(sizes):
        rows = np.flatnonzero(labels == label)
        order = numpy_generator(seed, 0, label, "longtail").permutation(len(rows))
        chosen.append(rows[order[: int(size)]])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


def published_cifar_subset(labels: np.ndarray, imbalance_factor: float, kind: str = "exp") -> np.ndarray:
    """The rows of CIFAR-10/100-LT as the published code cuts them, int64, in the order in which it lines them up.

    Of LDAM-DRW (Cao et al., 2019), which BBN and later work share: numpy's legacy generator from seed 0 shuffles the
    rows of each class in turn, classes ascending, and the first n_i are kept, n_i by `class_sizes` with n_max = N/C.

    labels: int64 `[N]` in the order of the original files (batch 1 … 5). kind: "exp" or "step". Does not touch
    numpy's global generator. Raises `UserError` for another kind, or classes of unequal size, which CIFAR never has.
    """
    _known("type", kind, PUBLISHED_KINDS)
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2 or classes[0] < 0 or counts.min() != counts.max():
        raise UserError(
            "the published subset is of a dataset with equally many images in every class; use seed= instead"
        )
    sizes = class_sizes(len(classes), int(counts[0]), imbalance_factor, kind)
    generator = np.random.RandomState(0)
    chosen = []
    for label, size in zip(classes, sizes):
        rows = np.flatnonzero(labels == label)
        generator.shuffle(rows)
        chosen.append(rows[:size])
    return np.concatenate(chosen).astype(np.int64)


def _pareto(num_classes: int, largest: float, smallest: float, alpha: float) -> list[float]:
    quantiles = [((index + 0.5) / num_classes) ** (-1 / alpha) - 1 for index in range(num_classes)]
    span = quantiles[0] - quantiles[-1]
    shares = [(quantile - quantiles[-1]) / span for quantile in quantiles[1:]]
    # smallest + (largest - smallest) can fall just short of the whole number it should be
    return [float(largest), *(smallest + (largest - smallest) * share for share in shares)]


def _check(num_classes: int, largest: int, imbalance_factor: float, kind: str, alpha: float) -> None:
    _known("type", kind, KINDS)
    if num_classes < 1 or largest < 1:
        raise UserError(f"{num_classes} classes of at most {largest} images: there must be one class and one image")
    if not 1 <= imbalance_factor < math.inf:
        raise UserError(f"imbalance_factor={imbalance_factor}: choose a number from 1 (balanced) upwards, like 100")
    if imbalance_factor > largest:
        raise UserError(
            f"imbalance_factor={imbalance_factor:g} leaves the smallest class without an image, as the largest has "
            f"{largest}; choose {largest} or less"
        )
    # above a thousand all quantiles are nearly one, and their differences are rounding
    if not 0.1 <= alpha <= 1000:
        raise UserError(f"alpha={alpha}: choose a number from 0.1 to 1000, like 6")


def _known(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        match = get_close_matches(str(value), known, n=1)
        hint = f", did you mean {match[0]!r}" if match else ""
        raise UserError(f"{name}={value} is unknown{hint}; there are: {', '.join(known)}")
