"""Ensembles of two models and GLA: by definition, at their ends, and where the truth is known."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from hf_vlr.errors import UserError
from hf_vlr.posthoc import class_prior, ensembling, label_bias, logit_adjustment, tuning

SPACES = ensembling.SPACES


def scores(seed: int, rows: int = 50, classes: int = 4, scale: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=scale, size=(rows, classes))


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.93])
def test_the_two_means(weight):
    own, other = scores(0), scores(1)
    arithmetic = weight * softmax(own, axis=1) + (1 - weight) * softmax(other, axis=1)
    np.testing.assert_allclose(np.exp(ensembling.mixed(own, other, weight)), arithmetic, rtol=1e-10)
    geometric = softmax(own, axis=1) ** weight * softmax(other, axis=1) ** (1 - weight)
    geometric /= geometric.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(ensembling.mixed(own, other, weight, "logit")), geometric, rtol=1e-10)


@pytest.mark.parametrize("space", SPACES)
def test_the_ends_are_the_parts(space):
    own, other = scores(0), scores(1)
    np.testing.assert_allclose(ensembling.mixed(own, other, 1.0, space), log_softmax(own, axis=1), rtol=1e-12)
    np.testing.assert_allclose(ensembling.mixed(own, other, 0.0, space), log_softmax(other, axis=1), rtol=1e-12)


@pytest.mark.parametrize("space", SPACES)
def test_a_model_mixed_with_itself_stays(space):
    own = scores(0)
    np.testing.assert_allclose(ensembling.mixed(own, own, 0.3, space), log_softmax(own, axis=1), atol=1e-12)


@pytest.mark.parametrize("space", SPACES)
def test_what_a_search_sees_is_what_is_mixed(space):
    own, other, labels = scores(0), scores(1), np.arange(50) % 4
    part = ensembling.candidates(own, other, space)(slice(10, 30))(0.4)
    part = np.log(part) if space == "probability" else log_softmax(part, axis=1)
    np.testing.assert_allclose(part, ensembling.mixed(own, other, 0.4, space)[10:30], atol=1e-12)
    found = tuning.search(
        "weight", [0.4], ensembling.candidates(own, other, space), labels, 4, split="v", criterion="nll",
        probabilities=space == "probability",
    )  # fmt: skip
    mixture = torch.from_numpy(ensembling.mixed(own, other, 0.4, space))
    assert found.scores[0] == pytest.approx(float(torch.nn.functional.nll_loss(mixture, torch.from_numpy(labels))))


def test_extreme_logits_stay_finite():
    own, other = 1e5 * scores(0), -1e5 * scores(0)
    for space in SPACES:
        for weight in (0.0, 1e-300, 0.5, 1.0):
            assert np.isfinite(ensembling.mixed(own, other, weight, space)).all()


def test_dtypes_and_one_class():
    own = scores(0).astype(np.float32)
    assert ensembling.mixed(own, own, 0.5).dtype == np.float32
    assert ensembling.mixed(own, own.astype(np.float64), 0.5).dtype == np.float64
    assert (ensembling.mixed(scores(0, classes=1), scores(1, classes=1), 0.5) == 0).all()


def test_what_cannot_be_mixed():
    own = scores(0)
    for weight in (-0.1, 1.1, np.nan):
        with pytest.raises(UserError, match="between 0 and 1"):
            ensembling.mixed(own, own, weight)
    with pytest.raises(UserError, match="score the same images"):
        ensembling.mixed(own, own[:-1], 0.5)
    with pytest.raises(UserError, match="unknown space 'log'"):
        ensembling.mixed(own, own, 0.5, "log")


def balanced_loss(z: np.ndarray, labels: np.ndarray, log_prior: np.ndarray) -> float:
    losses = -log_softmax(z - log_prior, axis=1)[np.arange(len(labels)), labels]
    return float(np.mean([losses[labels == label].mean() for label in np.unique(labels)]))


def test_the_label_bias_minimises_the_balanced_loss():
    labels = np.repeat([0, 1, 2, 3], [40, 25, 10, 5])
    z = scores(2, rows=80)
    z[np.arange(80), labels] += 1.5
    found = label_bias.estimate(z, labels)
    best = minimize(lambda free: balanced_loss(z, labels, free), np.zeros(4), method="BFGS", options={"gtol": 1e-10})
    np.testing.assert_allclose(found.prior, softmax(best.x), rtol=1e-5)
    assert found.converged
    assert (found.prior.sum(), found.unseen) == (pytest.approx(1.0), 0)


def test_freed_of_its_bias_a_model_expects_every_class_as_often():
    labels = np.repeat([0, 1, 2, 3], [40, 25, 10, 5])
    z = scores(2, rows=80)
    freed = softmax(z - np.log(label_bias.estimate(z, labels).prior), axis=1)
    means = np.stack([freed[labels == label].mean(axis=0) for label in range(4)])
    np.testing.assert_allclose(means.mean(axis=0), 0.25, atol=1e-6)


def test_a_bias_that_was_put_in_is_found():
    """Points around class means: the posterior under shares q is the posterior of a model biased by q."""
    generator, shares = np.random.default_rng(0), np.array([0.6, 0.3, 0.1])
    labels = np.repeat([0, 1, 2], [5000, 2000, 3000])
    points = generator.normal(size=(10000, 2)) + np.array([[0, 0], [2, 0], [0, 2]])[labels]
    density = -0.5 * ((points[:, None] - np.array([[0, 0], [2, 0], [0, 2]])) ** 2).sum(-1)
    found = label_bias.estimate(density + np.log(shares), labels)
    np.testing.assert_allclose(found.prior, shares, atol=0.02)


def test_a_class_without_labelled_images_gets_the_mean_of_the_others():
    labels = np.repeat([0, 1, 3], 20)
    z = scores(3, rows=60)
    found = label_bias.estimate(z, labels)
    alone = label_bias.estimate(z[:, [0, 1, 3]], np.repeat([0, 1, 2], 20))
    assert (found.unseen, alone.unseen) == (1, 0)
    np.testing.assert_allclose(found.prior[[0, 1, 3]] / found.prior[[0, 1, 3]].sum(), alone.prior, rtol=1e-10)
    assert found.prior[2] == pytest.approx(np.exp(np.log(found.prior[[0, 1, 3]]).mean()))


def test_the_bias_of_one_class_and_of_extreme_scores():
    assert label_bias.estimate(scores(0, classes=1), np.zeros(50, dtype=int)).prior.tolist() == [1.0]
    found = label_bias.estimate(1e4 * scores(0), np.arange(50) % 4)
    assert np.isfinite(np.log(found.prior)).all()


def test_gla_is_the_product_of_both_models_without_their_priors():
    own, other, counts, bias = scores(0), scores(1), np.array([60, 30, 9, 1]), np.array([0.1, 0.2, 0.3, 0.4])
    product = softmax(own, axis=1) / counts * softmax(other, axis=1) / bias
    product /= product.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        np.exp(ensembling.generalised_logit_adjustment(own, other, counts, bias)), product, rtol=1e-10
    )


def test_gla_with_a_model_that_says_nothing_is_logit_adjustment():
    own, counts = scores(0), np.array([60, 30, 9, 0])
    result = ensembling.generalised_logit_adjustment(
        own, np.zeros_like(own), class_prior.from_counts(counts), np.ones(4)
    )
    np.testing.assert_allclose(result, logit_adjustment.adjusted(own, counts, 1.0), atol=1e-12)
