"""The order of an epoch: every row once, draws that favour rare classes, or classes of one size."""

import numpy as np
import torch

from hf_vlr.errors import UserError
from hf_vlr.randomness import numpy_generator, seed_for

SOURCE_BALANCED, PROGRESSIVE = "source-balanced", "progressive"
# The power of the class count n_c in a row's weight; a class is then drawn in proportion to n_c^(1 + power).
POWERS = {"instance": 0.0, "sqrt": -0.5, "class-balanced": -1.0}
# The size that every class is brought to, of the sizes of all classes that have rows.
SIZES = {"under": np.min, "over": np.max}
STRATEGIES = (*POWERS, PROGRESSIVE, *SIZES, SOURCE_BALANCED)


def epoch_order(
    labels: np.ndarray,
    strategy: str,
    seed: int,
    epoch: int,
    num_samples: int | None = None,
    parts: np.ndarray | None = None,
    progress: float = 0.0,
) -> np.ndarray:
    """Row indices of one epoch, int64 `[num_samples]` (default `epoch_length`), a function of the arguments alone.

    labels: int64 `[N]`; -1 marks image-text pairs.
    strategy: how the C classes with rows, n_c of them, are drawn.
        "instance": a permutation (further ones follow when more than N rows are asked for).
        "sqrt": draws with replacement by weight n_c^(-1/2), so that a class comes in proportion to √n_c (VL-LTR,
        both stages).
        "class-balanced": by weight 1/n_c, all classes equally often.
        "progressive": by weight (1 - t)/N + t/(C n_c), t = `progress`, from "instance" (with replacement) to
        "class-balanced" (Kang et al., ICLR 2020, §3).
        "under": a subset of min n_c rows of every class, another in each epoch.
        "over": max n_c rows of every class; of its rows none comes more than once oftener than another, and which
        come oftener changes from epoch to epoch. Of both, as of "instance", further ones follow when more rows are
        asked for.
        "source-balanced": all of several mixed sources equally often, whatever their sizes, and within a source
        each row.
    parts: int64 `[N]`, which source a row is of; None: one source.
    progress: the part t of the training that is done, 0 … 1; "progressive" alone reads it.

    Image-text pairs form one pool: together they are drawn as often as under "instance", each equally often,
    and only the share of the labelled rows is re-balanced. "under" and "over", which change how many labelled rows
    there are, change the number of pairs by the same factor. Raises `UserError` for an unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"sampler={strategy!r} is unknown; there are: {', '.join(STRATEGIES)}")
    length = epoch_length(labels, strategy)
    count = length if num_samples is None else num_samples
    if strategy == "instance" or strategy in SIZES:
        rng = numpy_generator(seed, epoch, 0, "order")
        passes = [one_pass(labels, strategy, rng) for _ in range(-(-count // max(1, length)))]
        return np.concatenate(passes)[:count] if passes else np.empty(0, dtype=np.int64)
    if strategy == SOURCE_BALANCED:
        of = np.zeros(len(labels), dtype=np.int64) if parts is None else parts
        weights = 1.0 / np.bincount(of)[of]
    else:
        weights = row_weights(labels, strategy, progress)
    return weighted_indices(weights, count, seed_for(seed, epoch, 0, "order"))


def epoch_length(labels: np.ndarray, strategy: str) -> int:
    """Draws in an epoch over labels `[N]`: N, but C min n_c under "under" and C max n_c under "over", plus pairs."""
    if strategy not in SIZES:
        return len(labels)
    size, pairs = equal_sizes(labels, strategy)
    return size * len(np.unique(labels[labels >= 0])) + pairs


def equal_sizes(labels: np.ndarray, strategy: str) -> tuple[int, int]:
    """Draws of each class that has rows, and of all image-text pairs together, under "under" and "over"."""
    labelled = labels[labels >= 0]
    pairs = len(labels) - len(labelled)
    counts = np.bincount(labelled)
    counts = counts[counts > 0]
    if not len(counts):
        return 0, pairs
    size = int(SIZES[strategy](counts))
    return size, round(pairs * size * len(counts) / len(labelled))


def one_pass(labels: np.ndarray, strategy: str, rng: np.random.Generator) -> np.ndarray:
    """Rows of one pass in random order: all of them, or every class brought to one size."""
    if strategy == "instance":
        return rng.permutation(len(labels))
    size, pairs = equal_sizes(labels, strategy)
    by_class = np.argsort(labels, kind="stable")
    present, first = np.unique(labels[by_class], return_index=True)
    groups = zip(present.tolist(), np.split(by_class, first[1:]), strict=True)
    return rng.permutation(np.concatenate([evenly(rows, size if label >= 0 else pairs, rng) for label, rows in groups]))


def evenly(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the rows `[n]`: each ⌊count/n⌋ times, and the rest by chance to different ones."""
    return np.concatenate([np.tile(rows, count // len(rows)), rng.permutation(rows)[: count % len(rows)]])


def row_weights(labels: np.ndarray, strategy: str, progress: float = 0.0) -> np.ndarray:
    """The weight of each row, float64 `[N]`: a function of n_c, and for -1 the mean weight of the labelled rows."""
    labelled = labels >= 0
    weights = np.ones(len(labels), dtype=np.float64)
    counts = np.bincount(labels[labelled])
    sizes = counts[labels[labelled]]
    if strategy == PROGRESSIVE:
        weights[labelled] = (1 - progress) / max(1, len(sizes)) + progress / (np.count_nonzero(counts) * sizes)
    else:
        weights[labelled] = sizes ** POWERS[strategy]
    if labelled.any():
        weights[~labelled] = weights[labelled].mean()
    return weights


def weighted_indices(weights: np.ndarray, num_samples: int, generator_seed: int) -> np.ndarray:
    """`num_samples` draws with replacement in proportion to `weights`, int64, by `torch.multinomial`."""
    generator = torch.Generator().manual_seed(generator_seed)
    drawn = torch.multinomial(torch.from_numpy(weights), num_samples, replacement=True, generator=generator)
    return drawn.numpy()
