"""Accuracy under shifted priors, against test sets that are drawn as the protocol says."""

import numpy as np
import pytest

from hf_vlr.evaluation.metrics import evaluate_predictions
from hf_vlr.evaluation.priors import PRIORS, prior_weights, shifted_priors

# by falling count: 2, 0, 1
COUNTS = np.array([60, 3, 400])


def test_names_and_order():
    assert PRIORS == (
        "forward-50", "forward-25", "forward-10", "forward-5", "forward-2", "uniform",
        "backward-2", "backward-5", "backward-10", "backward-25", "backward-50",
    )  # fmt: skip


def test_weights_by_hand():
    np.testing.assert_allclose(prior_weights("forward-25", COUNTS), [1 / 5, 1 / 25, 1])
    np.testing.assert_allclose(prior_weights("backward-25", COUNTS), [1 / 5, 1, 1 / 25])
    np.testing.assert_allclose(prior_weights("uniform", COUNTS), [1, 1, 1])
    # equal counts keep their order
    np.testing.assert_allclose(prior_weights("forward-10", np.array([7, 7, 7])), [1, 10**-0.5, 0.1])
    assert prior_weights("backward-50", np.array([7])).tolist() == [1]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_it_is_what_drawn_test_sets_give_on_average(direction):
    generator = np.random.default_rng(0)
    right = {0: generator.random(100) < 0.5, 1: generator.random(100) < 0.2, 2: generator.random(100) < 0.8}
    # r^(-i/(C-1)) of 100 images: whole numbers for r = 25
    sizes = {2: 100, 0: 20, 1: 4} if direction == "forward" else {1: 100, 0: 20, 2: 4}
    accuracies = []
    for _ in range(4000):
        drawn = [generator.choice(right[c], size, replace=False) for c, size in sizes.items()]
        accuracies.append(np.concatenate(drawn).mean())
    rates = np.array([right[c].mean() for c in range(3)])
    expected = shifted_priors(rates, COUNTS)[f"{direction}-25"]
    standard_error = np.std(accuracies) / np.sqrt(len(accuracies))
    assert standard_error > 0
    assert abs(np.mean(accuracies) - expected) < 4 * standard_error
    assert abs(expected - rates.mean()) > 20 * standard_error


def test_a_predictor_of_the_head_gains_forward_and_loses_backward():
    found = list(shifted_priors(np.array([0.5, 0.1, 0.9]), COUNTS).values())
    assert found == sorted(found, reverse=True)
    assert found[5] == pytest.approx(0.5)
    level = shifted_priors(np.full(3, 0.4), COUNTS)
    assert list(level.values()) == pytest.approx([0.4] * 11)


def test_classes_without_test_images_keep_their_place_and_are_left_out():
    found = shifted_priors(np.array([np.nan, 0.1, 0.9]), COUNTS)
    assert found["forward-50"] == pytest.approx((0.9 + 0.1 / 50) / (1 + 1 / 50))
    assert found["uniform"] == pytest.approx(0.5)


def test_uniform_is_the_balanced_accuracy():
    generator = np.random.default_rng(1)
    labels, predictions = generator.integers(0, 3, size=(2, 90))
    result = evaluate_predictions(predictions, labels, COUNTS)
    assert list(result["shifted_priors"]) == list(PRIORS)
    assert result["shifted_priors"]["uniform"] == pytest.approx(result["balanced_accuracy"], rel=1e-12)
