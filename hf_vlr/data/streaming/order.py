"""An epoch's order, rearranged so that rows which are fetched together are also read together."""

from itertools import pairwise

import numpy as np

from hf_vlr.randomness import numpy_generator

# Blocks whose rows are mixed with each other at any time, over all lanes.
WINDOW = 16
LANES = 8
# Each cut between two lanes splits a block, which is then fetched twice: at most once in so many blocks.
BLOCKS_PER_LANE = 8


def block_order(
    order: np.ndarray,
    block_of: np.ndarray | None,
    window: int,
    seed: int,
    epoch: int,
    *,
    batch_size: int = 1,
    parts: np.ndarray | None = None,
) -> np.ndarray:
    """The rows of `order`, each as often as it stands there, block by block; int64 `[n]`.

    order: int64 `[n]`, row indices of an epoch, as any sampler gives them, with or without repetitions.
    block_of: int64 `[N]`, the block of a row; rows of one block should be neighbours in the source. None gives
        `order` back.
    window: blocks that are mixed with each other at any time (at least one a lane).
    batch_size: B, rows of a global batch.
    parts: int64 `[N]`, which of several mixed sources a row is of. Every source runs through the whole epoch, in
        proportion to its rows in `order`; a source without blocks (-1) keeps the sampler's order.

    Blocks come in random order. Each block's rows are strewn over the time of `window` blocks, so that every block is
    open once in an epoch, and exactly `window` blocks are at every time. The order is cut into L lanes of equal length
    (L divides B, at most 8), and every batch takes B/L rows of each lane, lane by lane: a rank's contiguous slice of
    every batch comes from its own lanes, so that ranks need not fetch the same blocks. Nothing depends on the number
    of ranks; it is a function of the arguments.
    """
    if block_of is None or len(order) == 0:
        return order
    rng = numpy_generator(seed, epoch, 0, "blocks")
    sources = [order] if parts is None else [order[parts[order] == part] for part in np.unique(parts)]
    grouped = _merged([_grouped(rows, block_of, rng) for rows in sources if len(rows)])
    lanes = _lanes(batch_size, len(np.unique(block_of[order])))
    cuts = len(order) * np.arange(lanes + 1) // lanes
    pieces = [grouped[start:stop] for start, stop in pairwise(cuts)]
    mixed = [_mixed(piece, block_of, max(1, window // lanes), rng, parts) for piece in pieces]
    share, batches = batch_size // lanes, len(order) // batch_size
    whole = np.stack([lane[: batches * share].reshape(batches, share) for lane in mixed], axis=1)
    return np.concatenate([whole.reshape(-1), *(lane[batches * share :] for lane in mixed)])


def _lanes(batch_size: int, blocks: int) -> int:
    """The largest number of lanes that divides a batch and leaves each lane enough blocks."""
    most = max(1, min(LANES, blocks // BLOCKS_PER_LANE))
    return next(lanes for lanes in range(most, 0, -1) if batch_size % lanes == 0)


def _grouped(rows: np.ndarray, block_of: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The rows block by block, the blocks in random order; rows that have no block stay as they are."""
    blocks = block_of[rows]
    if blocks[0] < 0:
        return rows
    _, number = np.unique(blocks, return_inverse=True)
    place = rng.permutation(number.max() + 1)
    return rows[np.argsort(place[number], kind="stable")]


def _mixed(
    piece: np.ndarray, block_of: np.ndarray, window: int, rng: np.random.Generator, parts: np.ndarray | None
) -> np.ndarray:
    """A lane's rows, each source's blocks strewn over its window."""
    sources = [piece] if parts is None else [piece[parts[piece] == part] for part in np.unique(parts[piece])]
    return _merged([_strewn(rows, block_of, window, rng) for rows in sources if len(rows)])


def _strewn(rows: np.ndarray, block_of: np.ndarray, window: int, rng: np.random.Generator) -> np.ndarray:
    """Rows that stand block by block, sorted by times drawn within their block's own span.

    With R blocks the epoch lasts max(1, R - window + 1): block r is open from r - window + 1 to r + 1, cut to that
    time, so that the first and the last rows are mixed with as many blocks as the others.
    """
    blocks = block_of[rows]
    if len(rows) == 0 or blocks[0] < 0:
        return rows
    rank = np.concatenate([[0], np.cumsum(blocks[1:] != blocks[:-1])])
    start = np.maximum(0, rank - window + 1)
    stop = np.minimum(rank + 1, max(1, rank[-1] - window + 2))
    return rows[np.argsort(start + (stop - start) * rng.random(len(rows)), kind="stable")]


def _merged(sequences: list[np.ndarray]) -> np.ndarray:
    """Several sequences as one, each evenly spread over the whole and in its own order."""
    if len(sequences) == 1:
        return sequences[0]
    at = np.concatenate([(np.arange(len(rows)) + 0.5) / len(rows) for rows in sequences])
    return np.concatenate(sequences)[np.argsort(at, kind="stable")]
