import json
from pathlib import Path

import numpy as np
import pytest

from hf_vlr.errors import UserError
from hf_vlr.samplers import epoch_order, row_weights, weighted_indices

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


@pytest.mark.parametrize("strategy", ["instance", "sqrt", "class-balanced"])
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
