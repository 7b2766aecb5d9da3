"""The order of an epoch: every row once, or draws that favour rare classes."""

import numpy as np
import torch

from hf_vlr.errors import UserError
from hf_vlr.randomness import numpy_generator, seed_for

SOURCE_BALANCED = "source-balanced"
# The power of the class count n_c in a row's weight; a class is then drawn in proportion to n_c^(1 + power).
POWERS = {"instance": 0.0, "sqrt": -0.5, "class-balanced": -1.0}


def epoch_order(
    labels: np.ndarray,
    strategy: str,
    seed: int,
    epoch: int,
    num_samples: int | None = None,
    parts: np.ndarray | None = None,
) -> np.ndarray:
    """Row indices of one epoch, int64 `[num_samples]` (default N), a function of the arguments alone.

    labels: int64 `[N]`; -1 marks image-text pairs.
    strategy: "instance", a permutation (further ones follow when more than N rows are asked for); "sqrt",
        draws with replacement by weight n_c^(-1/2), so that a class comes in proportion to √n_c (VL-LTR, both
        stages); "class-balanced", by weight 1/n_c, all classes equally often; "source-balanced", all of several
        mixed sources equally often, whatever their sizes, and within a source each row.
    parts: int64 `[N]`, which source a row is of; None: one source.

    Image-text pairs form one pool: together they are drawn as often as under "instance", each equally often,
    and only the share of the labelled rows is re-balanced. Raises `UserError` for an unknown strategy.
    """
    if strategy not in (*POWERS, SOURCE_BALANCED):
        raise UserError(f"sampler={strategy!r} is unknown; there are: {', '.join((*POWERS, SOURCE_BALANCED))}")
    count = len(labels) if num_samples is None else num_samples
    if strategy == "instance":
        rng = numpy_generator(seed, epoch, 0, "order")
        passes = [rng.permutation(len(labels)) for _ in range(-(-count // max(1, len(labels))))]
        return np.concatenate(passes)[:count] if passes else np.empty(0, dtype=np.int64)
    if strategy == SOURCE_BALANCED:
        of = np.zeros(len(labels), dtype=np.int64) if parts is None else parts
        weights = 1.0 / np.bincount(of)[of]
    else:
        weights = row_weights(labels, strategy)
    return weighted_indices(weights, count, seed_for(seed, epoch, 0, "order"))


def row_weights(labels: np.ndarray, strategy: str) -> np.ndarray:
    """The weight of each row, float64 `[N]`: n_c^power, and for -1 the mean weight of the labelled rows."""
    labelled = labels >= 0
    weights = np.ones(len(labels), dtype=np.float64)
    counts = np.bincount(labels[labelled])
    weights[labelled] = counts[labels[labelled]] ** POWERS[strategy]
    if labelled.any():
        weights[~labelled] = weights[labelled].mean()
    return weights


def weighted_indices(weights: np.ndarray, num_samples: int, generator_seed: int) -> np.ndarray:
    """`num_samples` draws with replacement in proportion to `weights`, int64, by `torch.multinomial`."""
    generator = torch.Generator().manual_seed(generator_seed)
    drawn = torch.multinomial(torch.from_numpy(weights), num_samples, replacement=True, generator=generator)
    return drawn.numpy()
