import json
from pathlib import Path

import numpy as np
import pytest

from hf_vlr.data.batches import EpochBatches
from hf_vlr.errors import UserError
from hf_vlr.samplers import STRATEGIES, epoch_length, epoch_order, row_weights, weighted_indices

GOLDEN = json.loads((Path(__file__).parent / "golden" / "vlltr_testvectors.json").read_text())
GOLDEN_LABELS = np.repeat([0, 1, 2], [16, 4, 1])


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("rank", [0, 1])
def test_square_root_draws_are_the_original_ones(epoch: int, rank: int) -> None:
    weights = row_weights(GOLDEN_LABELS, "sqrt")
    assert weights.tolist() == [0.25] * 16 + [0.5] * 4 + [1.0]
    drawn = weighted_indices(weights, 22, generator_seed=epoch)
    assert drawn[rank::2].tolist() == GOLDEN[f"sampler_epoch{epoch}_rank{rank}_of2"]


def test_an_instance_epoch_holds_every_row_once() -> None:
    labels = np.repeat(np.arange(5), 20)
    assert sorted(epoch_order(labels, "instance", 0, 3)) == list(range(100))
    assert sorted(epoch_order(labels, "instance", 0, 3, num_samples=200)) == sorted([*range(100)] * 2)
    assert len(set(epoch_order(labels, "instance", 0, 3, num_samples=40).tolist())) == 40


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_order_depends_on_seed_and_epoch_alone(strategy: str) -> None:
    labels = np.repeat(np.arange(5), 20)
    order = epoch_order(labels, strategy, 1, 2)
    np.random.default_rng(0).random(7)
    assert np.array_equal(order, epoch_order(labels, strategy, 1, 2))
    assert not np.array_equal(order, epoch_order(labels, strategy, 1, 3))
    assert not np.array_equal(order, epoch_order(labels, strategy, 2, 2))


@pytest.mark.parametrize(("strategy", "shares"), [("sqrt", [10, 4, 1]), ("class-balanced", [1, 1, 1])])
def test_classes_are_drawn_in_the_promised_shares(strategy: str, shares: list[int]) -> None:
    labels = np.repeat([0, 1, 2], [100, 16, 1])
    drawn = np.bincount(labels[epoch_order(labels, strategy, 0, 0, num_samples=60000)])
    expected = 60000 * np.array(shares) / sum(shares)
    assert np.all(np.abs(drawn - expected) < 5 * np.sqrt(expected))


def test_rebalancing_keeps_the_share_of_image_text_pairs() -> None:
    labels = np.concatenate([np.full(300, -1), np.repeat([0, 1], [90, 10])])
    order = epoch_order(labels, "class-balanced", 0, 0, num_samples=40000)
    share = np.mean(labels[order] == -1)
    assert abs(share - 0.75) < 0.01
    assert abs(np.mean(labels[order] == 1) - 0.125) < 0.01


def test_an_unknown_strategy_is_named() -> None:
    with pytest.raises(UserError, match="'squirt' is unknown; there are: instance, sqrt, class-balanced"):
        epoch_order(np.zeros(3, dtype=np.int64), "squirt", 0, 0)


# classes 2 and 4 have no rows
UNEVEN = np.random.default_rng(0).permutation(np.repeat([0, 1, 3, 5], [12, 5, 3, 7]))
PAIRED = np.concatenate([UNEVEN, np.full(54, -1)])


@pytest.mark.parametrize("labels", [UNEVEN, PAIRED])
@pytest.mark.parametrize(("strategy", "size"), [("under", 3), ("over", 12)])
def test_every_class_comes_equally_often_in_every_epoch(strategy: str, size: int, labels: np.ndarray) -> None:
    pairs = np.count_nonzero(labels < 0)
    # as many times the rows of an instance epoch
    drawn_pairs = round(pairs * 4 * size / 27)
    assert epoch_length(labels, strategy) == 4 * size + drawn_pairs
    for epoch in range(5):
        order = epoch_order(labels, strategy, 0, epoch)
        assert len(order) == epoch_length(labels, strategy)
        drawn = labels[order]
        assert np.bincount(drawn[drawn >= 0], minlength=6).tolist() == [size, size, 0, size, 0, size]
        assert np.count_nonzero(drawn < 0) == drawn_pairs
        times = np.bincount(order, minlength=len(labels))
        for label in (0, 1, 3, 5, -1):
            of = times[labels == label]
            assert len(of) == 0 or of.max() - of.min() <= 1


@pytest.mark.parametrize("strategy", ["under", "over"])
def test_chance_decides_anew_in_each_epoch_which_rows_are_left_out_or_come_oftener(strategy: str) -> None:
    epochs = 600
    times = np.zeros(len(UNEVEN))
    seen = set()
    for epoch in range(epochs):
        order = epoch_order(UNEVEN, strategy, 0, epoch)
        times += np.bincount(order, minlength=len(UNEVEN))
        seen.add(tuple(order[:6].tolist()))
    assert len(seen) > 0.9 * epochs
    expected = epoch_length(UNEVEN, strategy) / 4 / np.bincount(UNEVEN)[UNEVEN]
    rest = expected % 1
    assert np.all(np.abs(times / epochs - expected) <= 5 * np.sqrt(rest * (1 - rest) / epochs))


def test_classes_are_mixed_within_an_epoch() -> None:
    order = UNEVEN[epoch_order(UNEVEN, "over", 0, 0)]
    assert len(np.unique(order[:12])) > 1
    assert np.count_nonzero(np.diff(order)) > 10


@pytest.mark.parametrize("strategy", ["under", "over"])
def test_one_class_and_pairs_alone_come_as_they_are(strategy: str) -> None:
    for labels in (np.zeros(7, dtype=np.int64), np.full(7, -1)):
        assert sorted(epoch_order(labels, strategy, 0, 0)) == list(range(7))
    assert len(epoch_order(np.empty(0, dtype=np.int64), strategy, 0, 0)) == 0


@pytest.mark.parametrize("strategy", ["under", "over"])
def test_more_rows_than_an_epoch_has_are_further_passes(strategy: str) -> None:
    length = epoch_length(UNEVEN, strategy)
    order = epoch_order(UNEVEN, strategy, 0, 0, num_samples=2 * length + 5)
    assert len(order) == 2 * length + 5
    passes = order[:length], order[length : 2 * length]
    assert all(len(set(np.bincount(UNEVEN[part])[[0, 1, 3, 5]])) == 1 for part in passes)
    assert not np.array_equal(*passes)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0), (0.25, 0.25), (0.5, 0.5), (1.0, 1)])
def test_the_progressive_shares_go_from_the_data_to_equality(progress: float, share: float) -> None:
    labels = np.repeat([0, 1, 3], [100, 16, 4])
    drawn = np.bincount(labels[epoch_order(labels, "progressive", 0, 0, 60000, progress=progress)], minlength=4)
    expected = 60000 * ((1 - share) * np.array([100, 16, 0, 4]) / 120 + share * np.array([1, 1, 0, 1]) / 3)
    assert np.all(np.abs(drawn - expected) <= 5 * np.sqrt(expected))


def test_progressive_weights_are_those_of_its_two_ends() -> None:
    start, end = row_weights(PAIRED, "progressive", 0.0), row_weights(PAIRED, "progressive", 1.0)
    for weights, strategy in ((start, "instance"), (end, "class-balanced")):
        other = row_weights(PAIRED, strategy)
        np.testing.assert_allclose(weights / weights.sum(), other / other.sum(), rtol=1e-12)
    np.testing.assert_allclose(row_weights(PAIRED, "progressive", 0.3), 0.7 * start + 0.3 * end, rtol=1e-12)


def test_the_last_epoch_of_progressive_batches_is_balanced() -> None:
    labels = np.repeat([0, 1], [9000, 1000])
    shares = []
    for epoch in range(4):
        batches = EpochBatches(labels, 10000, "progressive", 0, epochs=4)
        batches.set_epoch(epoch)
        shares.append(np.mean([labels[key.index] for key in next(iter(batches))]))
    assert np.allclose(shares, [0.1, 0.1 + 0.4 / 3, 0.1 + 0.8 / 3, 0.5], atol=0.025)
    # one epoch, or none that is known, is that of the data; beyond the last one it stays balanced
    for epochs, epoch, share in ((1, 0, 0.1), (None, 3, 0.1), (2, 5, 0.5)):
        order = EpochBatches(labels, 10, "progressive", 0, epochs=epochs).order(epoch)
        assert abs(labels[order].mean() - share) < 0.025


@pytest.mark.parametrize("strategy", ["progressive", "under", "over"])
def test_ranks_share_the_batches_of_one_process(strategy: str) -> None:
    def batches(**settings) -> list[list]:
        made = EpochBatches(UNEVEN, 4, strategy, 3, epochs=3, **settings)
        assert made.num_samples == epoch_length(UNEVEN, strategy)
        made.set_epoch(1)
        return list(made)

    for whole, *parts in zip(batches(), *(batches(rank=rank, world_size=2) for rank in (0, 1)), strict=True):
        assert whole == [key for part in parts for key in part]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_names_of_the_classes_mean_nothing(strategy: str) -> None:
    """Labels permuted: as many draws, and of each class the same share."""
    renamed = np.array([3, 5, 2, 0, 4, 1])[UNEVEN]
    count = epoch_length(UNEVEN, strategy)
    assert count == epoch_length(renamed, strategy)
    if strategy in ("under", "over"):
        size = count // 4
        assert np.bincount(renamed[epoch_order(renamed, strategy, 0, 0)]).tolist() == [size, size, 0, size, 0, size]
    elif strategy != "source-balanced":
        assert np.array_equal(row_weights(UNEVEN, strategy, 0.4), row_weights(renamed, strategy, 0.4))
