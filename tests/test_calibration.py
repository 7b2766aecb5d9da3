"""Calibration errors against torchmetrics, a loop over bins and hand-counted examples."""

import importlib.util

import numpy as np
import pytest

from hf_vlr.evaluation.calibration import BINS, calibration_errors, reliability
from hf_vlr.evaluation.metrics import evaluate_predictions


def drawn(rows=500, classes=6, seed=3):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, rows)
    scores = generator.normal(size=(rows, classes))
    scores[np.arange(rows), labels] += generator.normal(1.5, 1.0, rows)
    powers = np.exp(scores)
    return powers / powers.sum(axis=1, keepdims=True), labels


def outcome(probabilities, labels):
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == labels


@pytest.mark.skipif(importlib.util.find_spec("torchmetrics") is None, reason="torchmetrics is not installed")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_agrees_with_torchmetrics(seed):
    import torch
    from torchmetrics.classification import MulticlassCalibrationError

    probabilities, labels = drawn(seed=seed)
    found = calibration_errors(*outcome(probabilities, labels))
    for norm, ours in zip(("l1", "max"), found):
        theirs = MulticlassCalibrationError(num_classes=6, n_bins=15, norm=norm)
        # its bin sums are float32
        expected = theirs(torch.tensor(probabilities), torch.tensor(labels)).item()
        assert ours == pytest.approx(expected, abs=2e-6)


def test_a_loop_over_bins():
    confidence, correct = outcome(*drawn())
    error, gaps, diagram = 0.0, [], reliability(confidence, correct)
    for i in range(BINS):
        inside = (confidence > i / BINS) & (confidence <= (i + 1) / BINS)
        assert diagram["images"][i] == inside.sum()
        if not inside.any():
            assert diagram["confidence"][i] is diagram["accuracy"][i] is None
            continue
        assert diagram["confidence"][i] == pytest.approx(confidence[inside].mean(), rel=1e-12)
        assert diagram["accuracy"][i] == pytest.approx(correct[inside].mean(), rel=1e-12)
        gaps.append(abs(confidence[inside].mean() - correct[inside].mean()))
        error += inside.mean() * gaps[-1]
    assert calibration_errors(confidence, correct) == pytest.approx((error, max(gaps)), rel=1e-12)


def test_gaps_of_either_sign_do_not_cancel():
    # one is right and one wrong, in the two highest bins
    result = evaluate_predictions(np.log([[0.92, 0.08], [0.95, 0.05]]), [0, 1], [1, 1])
    assert (result["ece"], result["mce"]) == (pytest.approx((0.08 + 0.95) / 2), pytest.approx(0.95))


def test_bins_are_closed_on_the_right():
    diagram = reliability(np.array([1.0, 14 / 15, 0.95]), np.array([True, False, True]))
    assert diagram["images"][-2:] == [1, 2]
    assert diagram["accuracy"][-2:] == [0, 1]


def test_certainty_that_is_right_has_no_error_and_certainty_that_is_wrong_all():
    for correct, expected in ((True, 0.0), (False, 1.0)):
        assert calibration_errors(np.ones(5), np.full(5, correct)) == (expected, expected)


def test_no_images_leave_every_bin_empty():
    nothing = reliability(np.empty(0), np.empty(0, dtype=bool))
    assert nothing == {"confidence": [None] * BINS, "accuracy": [None] * BINS, "images": [0] * BINS}
