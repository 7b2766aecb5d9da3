"""Temperature scaling: the minimum that scipy finds, and what no temperature can change."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from hf_vlr.errors import UserError
from hf_vlr.posthoc import temperature
from hf_vlr.posthoc.temperature import BOUNDS


def calibrated(rows: int = 400, classes: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their softmax."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2.0, size=(rows, classes))
    shares = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    return logits, np.array([generator.choice(classes, p=row) for row in shares])


def loss(logits: np.ndarray, labels: np.ndarray, value: float, balanced: bool = False) -> float:
    losses = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits / value), torch.from_numpy(labels), reduction="none"
    ).numpy()
    if balanced:
        return float(np.mean([losses[labels == label].mean() for label in np.unique(labels)]))
    return float(losses.mean())


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("factor", [0.02, 0.5, 1.0, 7.0, 300.0])
def test_the_fit_is_the_minimum(factor, balanced):
    logits, labels = calibrated()
    logits = factor * logits
    found = temperature.fit(logits, labels, balanced=balanced)
    best = minimize_scalar(
        lambda log: loss(logits, labels, np.exp(log), balanced),
        bounds=np.log(BOUNDS),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert found == pytest.approx(np.exp(best.x), rel=1e-5)
    assert loss(logits, labels, found, balanced) <= best.fun + 1e-12


def test_the_temperature_of_logits_scales_with_them():
    logits, labels = calibrated()
    assert temperature.fit(3.0 * logits, labels) == pytest.approx(3.0 * temperature.fit(logits, labels), rel=1e-6)


def test_calibrated_scores_need_none():
    assert temperature.fit(*calibrated(rows=20000)) == pytest.approx(1.0, abs=0.03)


def test_a_shift_of_an_image_changes_nothing():
    logits, labels = calibrated()
    shift = np.random.default_rng(1).normal(scale=50, size=(len(labels), 1))
    assert temperature.fit(logits + shift, labels) == pytest.approx(temperature.fit(logits, labels), rel=1e-6)


@pytest.mark.parametrize("value", [0.01, 0.7, 1.0, 50.0])
def test_no_prediction_changes(value):
    logits, _ = calibrated()
    scaled = temperature.scaled(logits, value)
    np.testing.assert_array_equal(scaled.argmax(1), logits.argmax(1))
    np.testing.assert_allclose(scaled, torch.from_numpy(logits / value).log_softmax(1).numpy(), atol=1e-10)


def test_scores_that_are_always_right_or_worse_than_chance_meet_the_bounds():
    logits, _ = calibrated()
    assert temperature.fit(logits, logits.argmax(1)) == BOUNDS[0]
    assert temperature.fit(1000 * logits, logits.argmax(1)) == BOUNDS[0]
    assert temperature.fit(logits, logits.argmin(1)) == BOUNDS[1]


def test_a_best_value_beyond_the_bounds_is_cut():
    logits, labels = calibrated()
    assert temperature.fit(1e-5 * logits, labels) == BOUNDS[0]
    assert temperature.fit(1e5 * logits, labels) == BOUNDS[1]


def test_scores_without_a_preference_have_temperature_one():
    assert temperature.fit(np.zeros((5, 3)), np.array([0, 1, 2, 0, 1])) == 1.0
    assert temperature.fit(np.random.default_rng(0).normal(size=(5, 1)), np.zeros(5, dtype=int)) == 1.0


def test_extreme_logits():
    logits, labels = calibrated()
    assert temperature.fit(1e2 * logits, labels) == pytest.approx(1e2 * temperature.fit(logits, labels), rel=1e-6)
    assert np.isfinite(temperature.scaled(1e30 * logits, 1e-3)).all()


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, 1e-300, 1e300])
def test_a_temperature_is_positive(value):
    with pytest.raises(UserError, match="give a positive number"):
        temperature.scaled(np.zeros((2, 2)), value)


def test_labels_have_to_fit():
    for labels in (np.zeros(3, dtype=int), np.array([0, 2]), np.array([0.0, 1.0])):
        with pytest.raises(UserError, match="label"):
            temperature.fit(np.zeros((2, 2)), labels)
