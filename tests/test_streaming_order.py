"""The order of blocks: the sampler's rows and no others, every block opened once, batches that are mixed."""

from collections import OrderedDict

import numpy as np
import pytest

from hf_vlr.data.batches import EpochBatches
from hf_vlr.data.streaming.order import WINDOW, block_order
from hf_vlr.samplers import epoch_order

ROWS, PER_BLOCK = 4096, 32
BLOCKS = np.arange(ROWS) // PER_BLOCK
LABELS = np.random.default_rng(0).zipf(1.6, ROWS) % 20


def opened(rows: np.ndarray, blocks: np.ndarray, memory: int) -> int:
    """How many blocks a process opens that keeps the last `memory` ones."""
    kept, count = OrderedDict(), 0
    for block in blocks[rows].tolist():
        count += block not in kept
        kept[block] = None
        kept.move_to_end(block)
        if len(kept) > memory:
            kept.popitem(last=False)
    return count


def shares(batches: EpochBatches, ranks: int) -> list[np.ndarray]:
    """The rows of each rank, in its order."""
    found = []
    for rank in range(ranks):
        part = EpochBatches(
            batches.labels, batches.batch_size, batches.strategy, 0, rank=rank, world_size=ranks, blocks=batches.blocks
        )
        found.append(np.array([key.index for batch in part for key in batch if not key.blank]))
    return found


@pytest.mark.parametrize("strategy", ["instance", "sqrt", "class-balanced"])
@pytest.mark.parametrize(("count", "batch"), [(4096, 64), (4096, 100), (1000, 64), (7, 4), (1, 1)])
def test_the_rows_are_those_of_the_sampler_as_often(strategy, count, batch):
    order = epoch_order(LABELS, strategy, 3, 1, num_samples=count)
    arranged = block_order(order, BLOCKS, WINDOW, 3, 1, batch_size=batch)
    assert np.array_equal(np.sort(arranged), np.sort(order))
    assert arranged.dtype == np.int64


def test_it_is_a_function_of_its_arguments():
    order = epoch_order(LABELS, "instance", 0, 0)
    first = block_order(order, BLOCKS, WINDOW, 0, 0, batch_size=64)
    assert np.array_equal(first, block_order(order, BLOCKS, WINDOW, 0, 0, batch_size=64))
    assert not np.array_equal(first, block_order(order, BLOCKS, WINDOW, 0, 1, batch_size=64))
    assert not np.array_equal(first, block_order(order, BLOCKS, WINDOW, 1, 0, batch_size=64))
    assert block_order(order, None, WINDOW, 0, 0) is order


@pytest.mark.parametrize("strategy", ["instance", "class-balanced"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_all_ranks_together_open_every_block_about_once(strategy, ranks):
    batch = 96 if ranks == 3 else 64
    whole = EpochBatches(LABELS, batch, strategy, 0, blocks=BLOCKS)
    rows = shares(whole, ranks)
    touched = len(np.unique(BLOCKS[np.concatenate(rows)]))
    counts = [opened(part, BLOCKS, WINDOW + 8) for part in rows]
    # 8 lanes among 3 ranks: two of them lie in two ranks' slices
    assert sum(counts) <= (1.4 if ranks == 3 else 1.15) * touched
    assert max(counts) <= 1.2 * sum(counts) / ranks + WINDOW
    plain = epoch_order(LABELS, strategy, 0, 0)
    assert opened(plain, BLOCKS, WINDOW + 8) > 20 * touched


def test_every_batch_is_mixed_from_the_first_to_the_last():
    order = epoch_order(LABELS, "instance", 0, 0)
    arranged = block_order(order, BLOCKS, WINDOW, 0, 0, batch_size=64).reshape(-1, 64)
    mixed = [len(np.unique(BLOCKS[batch])) for batch in arranged]
    assert min(mixed) >= WINDOW // 2
    assert np.mean(mixed) >= WINDOW - 2
    # neighbours in a batch are not neighbours in the source
    assert np.mean(np.diff(arranged, axis=1) == 1) < 0.1


def test_few_blocks_are_shuffled_as_a_whole():
    order = epoch_order(LABELS[:320], "instance", 0, 0)
    arranged = block_order(order, BLOCKS[:320], WINDOW, 0, 0, batch_size=64)
    assert np.corrcoef(np.arange(320), BLOCKS[arranged])[0, 1] ** 2 < 0.05


def test_each_mixed_source_runs_through_the_whole_epoch():
    parts = np.repeat([0, 1, 2], [3000, 100, 996])
    # the second source is at hand, the third has few blocks
    blocks = np.where(parts == 0, BLOCKS, np.where(parts == 1, -1, 94 + np.arange(ROWS) // 250))
    for strategy in ("instance", "source-balanced"):
        order = epoch_order(np.zeros(ROWS, dtype=np.int64), strategy, 0, 0, parts=parts)
        arranged = block_order(order, blocks, WINDOW, 0, 0, batch_size=128, parts=parts)
        assert np.array_equal(np.sort(arranged), np.sort(order))
        drawn = np.stack([np.bincount(parts[batch], minlength=3) for batch in arranged.reshape(-1, 128)])
        share = np.bincount(parts[order], minlength=3) / ROWS * 128
        assert np.abs(drawn - share).max() <= 9  # a row or so in each of at most eight lanes


def test_a_source_at_hand_keeps_the_samplers_order_within_a_lane():
    order = np.random.default_rng(0).permutation(64)
    arranged = block_order(order, np.full(64, -1), WINDOW, 0, 0, batch_size=8)
    assert np.array_equal(arranged, order)


def test_epoch_batches_take_blocks_and_resume_anywhere():
    batches = EpochBatches(LABELS, 64, "sqrt", 0, blocks=BLOCKS)
    batches.set_epoch(2)
    whole = list(batches)
    assert whole != list(EpochBatches(LABELS, 64, "sqrt", 0))
    for start in (1, 17, 63):
        batches.set_epoch(2, start_batch=start)
        assert list(batches) == whole[start:]
