"""The fusion weight: exact mixtures, and a choice that follows the better branch."""

import numpy as np
import pytest

from hf_vlr.errors import UserError
from hf_vlr.evaluation.fusion import GRID, choose_fusion_weight, fused_log_probabilities


def log_probabilities(seed: int, rows: int = 60, classes: int = 4) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(rows, classes))
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def informed(labels: np.ndarray, strength: float, seed: int) -> np.ndarray:
    """Log-probabilities that know the label by `strength`."""
    logits = np.random.default_rng(seed).normal(size=(len(labels), labels.max() + 1))
    logits[np.arange(len(labels)), labels] += strength
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


LABELS = np.arange(60) % 4


def balanced_loss(visual: np.ndarray, language: np.ndarray, labels: np.ndarray, alpha: float) -> float:
    mixture = alpha * np.exp(visual) + (1 - alpha) * np.exp(language)
    losses = -np.log(mixture[np.arange(len(labels)), labels])
    return float(np.mean([losses[labels == label].mean() for label in np.unique(labels)]))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_fusion_is_the_mixture(alpha):
    visual, language = log_probabilities(0), log_probabilities(1)
    fused = fused_log_probabilities(visual, language, alpha)
    np.testing.assert_allclose(np.exp(fused), alpha * np.exp(visual) + (1 - alpha) * np.exp(language), atol=1e-12)
    np.testing.assert_allclose(np.exp(fused).sum(1), 1)
    assert np.isfinite(fused_log_probabilities(np.full((1, 2), -800.0), language[:1, :2], alpha)).all()


def test_the_choice_minimises_the_balanced_likelihood():
    labels = np.repeat([0, 1, 2, 3], [30, 20, 8, 2])
    visual, language = informed(labels, 1.0, 0), informed(labels, 1.5, 1)
    chosen = choose_fusion_weight(visual, language, labels)
    losses = [balanced_loss(visual, language, labels, alpha) for alpha in GRID]
    assert balanced_loss(visual, language, labels, chosen) == pytest.approx(min(losses))
    assert 0 < chosen < 1


def test_the_better_branch_decides():
    good, bad = informed(LABELS, 4.0, 0), log_probabilities(1)
    assert choose_fusion_weight(good, bad, LABELS) > 0.8
    assert choose_fusion_weight(bad, good, LABELS) == pytest.approx(1 - choose_fusion_weight(good, bad, LABELS))


def test_two_branches_that_err_apart_are_mixed():
    visual, language = informed(LABELS, 4.0, 0), informed(LABELS, 4.0, 1)
    visual[:30], language[30:] = log_probabilities(2)[:30], log_probabilities(3)[:30]
    assert 0.25 < choose_fusion_weight(visual, language, LABELS) < 0.75


def test_a_class_counts_once_whatever_its_size():
    """The visual branch knows the large class, the language branch the small one."""
    labels = np.repeat([0, 1], [95, 5])
    p, q = np.full((100, 2), np.log(0.5)), np.full((100, 2), np.log(0.5))
    p[labels == 0], q[labels == 1] = np.log([0.9, 0.1]), np.log([0.1, 0.9])
    assert choose_fusion_weight(p, q, labels) == pytest.approx(0.5)


def test_a_certain_and_wrong_branch_is_survived():
    language = np.full((60, 4), -np.inf)
    language[np.arange(60), (LABELS + 1) % 4] = 0.0
    assert choose_fusion_weight(log_probabilities(0), language, LABELS) == 1.0


def test_no_image_to_choose_on_is_an_error():
    with pytest.raises(UserError, match=r"set model\.fusion_weight, or raise data\.validation_fraction"):
        choose_fusion_weight(np.empty((0, 3)), np.empty((0, 3)), np.empty(0, dtype=np.int64))
