"""Scores under other class shares: by hand, by torch, there and back, and shares found without labels."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from hf_vlr.errors import UserError
from hf_vlr.posthoc import class_prior, em_prior, logit_adjustment, prior_correction
from hf_vlr.posthoc.scores import CHUNK_NUMBERS, row_chunks, shifted_log_softmax, shifted_log_softmax_reference

COUNTS = np.array([500, 120, 30, 6, 1])


def scores(rows: int = 40, classes: int = 5, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=scale, size=(rows, classes))


def log_softmax(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).log_softmax(1).numpy()


def two_gaussians(labels: np.ndarray, shares: np.ndarray, distance: float, seed: int = 0) -> np.ndarray:
    """The true log-posteriors of points drawn around +-distance/2, for classes as frequent as `shares`."""
    points = np.random.default_rng(seed).normal(size=len(labels)) + distance * (labels - 0.5)
    density = -0.5 * (points[:, None] - distance * np.array([-0.5, 0.5])) ** 2
    return log_softmax(density + np.log(shares))


def test_logit_adjustment_by_hand():
    """Odds of 3 to 1 in a class that is 9 times as frequent are odds of 1 to 3."""
    adjusted = logit_adjustment.adjusted(np.log([[0.75, 0.25]]), [90, 10], 1.0)
    np.testing.assert_allclose(np.exp(adjusted), [[0.25, 0.75]], rtol=1e-12)
    half = logit_adjustment.adjusted(np.log([[0.75, 0.25]]), [90, 10], 0.5)
    np.testing.assert_allclose(np.exp(half), [[0.5, 0.5]], rtol=1e-12)


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0, 2.5, -1.0])
def test_logit_adjustment_is_the_softmax_of_shifted_logits(tau):
    z = scores()
    expected = log_softmax(z - tau * np.log(COUNTS / COUNTS.sum()))
    np.testing.assert_allclose(logit_adjustment.adjusted(z, COUNTS, tau), expected, rtol=1e-12, atol=1e-12)


def test_tau_zero_and_equal_counts_change_nothing():
    z = scores()
    np.testing.assert_allclose(logit_adjustment.adjusted(z, COUNTS, 0.0), log_softmax(z), rtol=1e-12)
    np.testing.assert_allclose(logit_adjustment.adjusted(z, np.full(5, 7), 1.3), log_softmax(z), rtol=1e-12)
    uniform = np.ones(5)
    np.testing.assert_allclose(prior_correction.to_prior(z, uniform, uniform), log_softmax(z), rtol=1e-12)


def test_an_adjustment_of_one_is_a_correction_to_uniform():
    z = scores()
    corrected = prior_correction.to_prior(z, COUNTS, np.ones(5))
    np.testing.assert_allclose(logit_adjustment.adjusted(z, COUNTS, 1.0), corrected, rtol=1e-12)


def test_adjustments_add_up():
    z = scores()
    twice = logit_adjustment.adjusted(logit_adjustment.adjusted(z, COUNTS, 0.4), COUNTS, 0.6)
    np.testing.assert_allclose(twice, logit_adjustment.adjusted(z, COUNTS, 1.0), atol=1e-12)


def test_a_class_without_training_images_counts_as_one():
    z = scores(classes=3)
    np.testing.assert_array_equal(
        logit_adjustment.adjusted(z, [50, 5, 0], 1.0), logit_adjustment.adjusted(z, [50, 5, 1], 1.0)
    )
    np.testing.assert_allclose(class_prior.from_counts([6, 0, 3]), [0.6, 0.1, 0.3])
    np.testing.assert_allclose(class_prior.from_counts([9, 0, 4], 0.5), [3 / 6, 1 / 6, 2 / 6])
    np.testing.assert_allclose(class_prior.from_counts([9, 0, 4], 0.0), [1 / 3] * 3)
    np.testing.assert_allclose(class_prior.from_counts([2, 0, 4], -1.0), [2 / 7, 4 / 7, 1 / 7])


def test_one_class_is_certain():
    z = scores(classes=1)
    for result in (
        logit_adjustment.adjusted(z, [3], 1.0),
        prior_correction.to_prior(z, [3], [1]),
        np.log(em_prior.estimate(z, [3]).prior)[None],
    ):
        assert (result == 0).all()


def test_extreme_logits_and_tau_stay_finite():
    z = np.array([[3e4, -3e4, 0.0, 1.0, 2.0], [-1e38, 1e38, 0.0, 0.0, 0.0]])
    adjusted = logit_adjustment.adjusted(z, COUNTS, 100.0)
    assert np.isfinite(adjusted).all()
    np.testing.assert_allclose(np.exp(adjusted).sum(1), 1.0)
    assert adjusted.argmax(1).tolist() == [0, 1]
    # a rarity that is 500 times to the power 100 outweighs any score
    assert logit_adjustment.adjusted(scores(), COUNTS, 100.0).argmax(1).tolist() == [4] * 40
    assert np.isfinite(prior_correction.to_prior(z, COUNTS, [1, 0, 0, 0, 0])).all()


def test_corrected_and_back_is_as_before():
    z, shares = scores(), np.array([0.05, 0.1, 0.2, 0.3, 0.35])
    there = prior_correction.to_prior(z, COUNTS, shares)
    np.testing.assert_allclose(prior_correction.to_prior(there, shares, COUNTS), log_softmax(z), atol=1e-12)


def test_a_correction_gives_the_posterior_under_the_new_shares():
    """The same points, described for two populations."""
    labels, before, after = np.arange(200) % 2, np.array([0.9, 0.1]), np.array([0.3, 0.7])
    learnt, wanted = (two_gaussians(labels, shares, 1.5) for shares in (before, after))
    np.testing.assert_allclose(prior_correction.to_prior(learnt, before, after), wanted, atol=1e-12)


def test_a_class_that_cannot_occur_is_never_chosen():
    assert 0 not in prior_correction.to_prior(scores(200), COUNTS, [0, 1, 1, 1, 1]).argmax(1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_results_have_the_dtype_of_the_scores(dtype):
    z = scores().astype(dtype)
    adjusted = logit_adjustment.adjusted(z, COUNTS, 1.0)
    assert adjusted.dtype == (np.float64 if dtype == np.float64 else np.float32)
    np.testing.assert_allclose(adjusted, logit_adjustment.adjusted(z.astype(np.float64), COUNTS, 1.0), rtol=1e-6)


def test_pieces_make_the_whole():
    z = scores(rows=CHUNK_NUMBERS // 700 * 2 + 5, classes=700)
    assert len(list(row_chunks(*z.shape))) == 3
    shift = np.linspace(-2, 2, 700)
    np.testing.assert_allclose(shifted_log_softmax(z, shift), shifted_log_softmax_reference(z, shift), atol=1e-12)
    before = z.copy()
    shifted_log_softmax(z, 0.0)
    np.testing.assert_array_equal(z, before)


def test_em_finds_the_shares_of_data_that_have_them():
    generator, before, after = np.random.default_rng(3), np.array([0.8, 0.2]), np.array([0.25, 0.75])
    labels = (generator.random(20000) < after[1]).astype(int)
    found = em_prior.estimate(two_gaussians(labels, before, 2.0, seed=4), before)
    assert found.converged
    np.testing.assert_allclose(found.prior, after, atol=0.015)
    # and they are the true ones for accuracy too
    learnt = two_gaussians(labels, before, 2.0, seed=4)
    corrected = prior_correction.to_prior(learnt, before, found.prior)
    assert (corrected.argmax(1) == labels).mean() > (learnt.argmax(1) == labels).mean() + 0.05


def test_the_likelihood_never_falls_and_ends_at_its_maximum():
    z, start = scores(rows=300, scale=1.0), COUNTS / COUNTS.sum()
    found = em_prior.estimate(z, COUNTS, tolerance=1e-10, max_iterations=20000)
    assert (np.diff(found.log_likelihoods) >= -1e-13).all()
    assert len(found.log_likelihoods) == found.iterations + 1
    ratios = np.exp(log_softmax(z)) / start

    def loss(free: np.ndarray) -> float:
        shares = np.exp(free - np.logaddexp.reduce(free))
        return -np.log(ratios @ shares).mean()

    best = minimize(loss, np.log(start), method="BFGS", options={"gtol": 1e-9})
    assert found.log_likelihoods[-1] == pytest.approx(-best.fun, abs=1e-6)
    assert -found.log_likelihoods[0] == pytest.approx(loss(np.log(start)), abs=1e-12)


def test_em_is_the_papers_steps():
    z = scores(rows=90)
    found = em_prior.estimate(z, COUNTS, tolerance=0.0, max_iterations=7)
    assert (found.iterations, found.converged) == (7, False)
    np.testing.assert_allclose(found.prior, em_prior.estimate_reference(z, COUNTS, 7), rtol=1e-10)


def test_em_leaves_shares_that_fit():
    """Calibrated scores of a test set that is like training: nothing to correct."""
    labels = (np.random.default_rng(5).random(40000) < 0.2).astype(int)
    found = em_prior.estimate(two_gaussians(labels, np.array([0.8, 0.2]), 2.0, seed=6), [0.8, 0.2])
    np.testing.assert_allclose(found.prior, [0.8, 0.2], atol=0.015)


def test_em_on_extreme_scores_counts_predictions():
    certain = np.where(np.eye(3)[[0, 0, 1, 2]] > 0, 0.0, -1e5)
    np.testing.assert_allclose(em_prior.estimate(certain, [5, 3, 2]).prior, [0.5, 0.25, 0.25])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: logit_adjustment.adjusted(scores(), COUNTS[:4]), "4 train counts for scores of 5 classes"),
        (lambda: logit_adjustment.adjusted(scores(), -COUNTS), "must not be negative"),
        (lambda: logit_adjustment.adjusted(scores(), COUNTS * 0), "no class has training images"),
        (lambda: logit_adjustment.adjusted(scores(), COUNTS, np.nan), "tau is nan"),
        (lambda: logit_adjustment.adjusted(scores(), COUNTS, 1e308), "at most 100"),
        (lambda: class_prior.from_counts([1, 2], np.inf), "power is inf"),
        (lambda: logit_adjustment.adjusted(scores()[0], COUNTS), r"shape \(5,\)"),
        (lambda: logit_adjustment.adjusted(scores()[:0], COUNTS), r"shape \(0, 5\)"),
        (lambda: logit_adjustment.adjusted(np.full((2, 5), -np.inf), COUNTS), "of image 0 are NaN or infinite"),
        (lambda: prior_correction.to_prior(scores(), [1, 0, 1, 1, 1], COUNTS), "train prior of class 1 is 0"),
        (lambda: prior_correction.to_prior(scores(), COUNTS, [1, 1]), r"test prior has shape \(2,\) for 5 classes"),
        (lambda: prior_correction.to_prior(scores(), COUNTS, [1, 1, 1, 1, -1]), "none negative"),
        (lambda: em_prior.estimate(scores(), [1, 0, 1, 1, 1]), "train prior of class 1 is 0"),
        (lambda: em_prior.estimate(scores(), COUNTS, max_iterations=0), "at least one step"),
    ],
)
def test_what_does_not_fit_is_said(call, said):
    with pytest.raises(UserError, match=said):
        call()
