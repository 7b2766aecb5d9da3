"""τ-normalisation on arrays: the definition, its ends, and the same as the torch side computes."""

import numpy as np
import pytest
import torch

from hf_vlr.errors import UserError
from hf_vlr.posthoc import tau_norm, tuning
from hf_vlr.rebalancing import TAUS, choose_tau, tau_classifier

GENERATOR = np.random.default_rng(0)
WEIGHTS = GENERATOR.normal(size=(6, 10)) * np.array([8.0, 4.0, 2.0, 1.0, 0.5, 0.25])[:, None]
FEATURES = GENERATOR.normal(size=(200, 10)).astype(np.float32)
LABELS = (FEATURES @ WEIGHTS.T).argmax(1)


@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0, 1.7])
def test_rows_by_their_lengths(tau):
    norms = np.linalg.norm(WEIGHTS, axis=1)
    found = tau_norm.normalised(WEIGHTS, tau)
    plain = WEIGHTS / norms[:, None] ** tau
    ratios = found / plain
    np.testing.assert_allclose(ratios, ratios[0, 0])
    np.testing.assert_allclose(found, tau_classifier(torch.from_numpy(WEIGHTS), tau).numpy(), rtol=1e-10)


def test_tau_zero_is_the_identity_and_tau_one_makes_lengths_equal():
    np.testing.assert_array_equal(tau_norm.normalised(WEIGHTS, 0.0), WEIGHTS)
    lengths = np.linalg.norm(tau_norm.normalised(WEIGHTS, 1.0), axis=1)
    np.testing.assert_allclose(lengths, np.exp(np.log(np.linalg.norm(WEIGHTS, axis=1)).mean()))


def test_a_zero_row_and_one_class():
    weights = np.array([[3.0, 4.0], [0.0, 0.0]])
    assert np.isfinite(tau_norm.normalised(weights, 100.0)).all()
    assert (tau_norm.normalised(weights, 1.0)[1] == 0).all()
    np.testing.assert_allclose(tau_norm.normalised(weights[:1], 1.0), weights[:1])


def test_logits_are_a_linear_layer():
    bias = np.arange(6.0)
    layer = torch.nn.functional.linear(torch.from_numpy(FEATURES).double(), *map(torch.from_numpy, (WEIGHTS, bias)))
    found = tau_norm.logits(FEATURES, WEIGHTS, bias)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, layer.numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(tau_norm.logits(FEATURES, WEIGHTS), layer.numpy() - bias, rtol=1e-6, atol=1e-5)


def test_a_search_sees_the_logits_of_the_normalised_weights():
    part = tau_norm.candidates(FEATURES, WEIGHTS)(slice(20, 60))(0.7)
    np.testing.assert_allclose(part, tau_norm.logits(FEATURES, tau_norm.normalised(WEIGHTS, 0.7))[20:60], atol=1e-4)


def test_the_choice_is_that_of_the_training_side():
    labels = np.random.default_rng(1).permutation(LABELS)
    labels[:150] = LABELS[:150]
    found = tuning.search(
        "tau", TAUS, tau_norm.candidates(FEATURES, WEIGHTS), labels, 6, split="v", criterion="balanced-accuracy"
    )
    features, weights = torch.from_numpy(FEATURES).double(), torch.from_numpy(WEIGHTS)
    assert found.value == choose_tau(features @ weights.T, weights, torch.from_numpy(labels))


def test_what_does_not_fit():
    with pytest.raises(UserError, match="features of width 9 for weights of width 10"):
        tau_norm.logits(FEATURES[:, :9], WEIGHTS)
    with pytest.raises(UserError, match=r"bias has shape \(5,\) for 6 classes"):
        tau_norm.logits(FEATURES, WEIGHTS, np.zeros(5))
    with pytest.raises(UserError, match="tau is inf"):
        tau_norm.normalised(WEIGHTS, np.inf)
