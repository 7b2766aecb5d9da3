"""Scores reduced to numbers per image: the streaming pass against the definitions, and scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from hf_vlr.errors import UserError
from hf_vlr.evaluation import outcome as outcome_module
from hf_vlr.evaluation.outcome import measure, measure_reference

FIELDS = ("rank", "log_likelihood", "confidence", "brier")


def drawn(rows=200, classes=9, dtype=np.float64, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, rows)
    return (3 * generator.normal(size=(rows, classes))).astype(dtype), labels


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_the_pass_is_the_definition(dtype, monkeypatch):
    monkeypatch.setattr(outcome_module, "_CHUNK_NUMBERS", 70)
    scores, labels = drawn(dtype=dtype)
    fast, slow = measure(scores, labels, 9), measure_reference(scores, labels, 9)
    np.testing.assert_array_equal(fast.predictions, slow.predictions)
    for field in FIELDS:
        np.testing.assert_allclose(getattr(fast, field), getattr(slow, field), rtol=1e-12, atol=1e-14)


def test_sums_agree_with_scikit_learn():
    scores, labels = drawn()
    found = measure(scores, labels, 9)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    one_hot = np.eye(9)[labels]
    assert -found.log_likelihood.mean() == pytest.approx(sklearn_metrics.log_loss(labels, probabilities), rel=1e-12)
    per_class = [sklearn_metrics.brier_score_loss(one_hot[:, c], probabilities[:, c]) for c in range(9)]
    assert found.brier.mean() == pytest.approx(sum(per_class), rel=1e-12)
    for k in (1, 2, 5, 8):
        expected = sklearn_metrics.top_k_accuracy_score(labels, scores, k=k, labels=range(9))
        assert (found.rank < k).mean() == pytest.approx(expected, rel=1e-12)


def test_ties_go_to_the_lower_index():
    scores = np.array([[1.0, 2.0, 2.0, 0.0, 2.0]] * 5)
    found = measure(scores, np.arange(5), 5)
    assert found.predictions.tolist() == [1] * 5
    assert found.rank.tolist() == [3, 0, 1, 4, 2]
    all_equal = measure(np.zeros((7, 7), dtype=np.float16), np.arange(7), 7)
    assert all_equal.rank.tolist() == list(range(7))
    np.testing.assert_allclose(all_equal.brier, 6 / 7)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_extreme_logits_are_certainty(dtype):
    scores = np.array([[1e4, -1e4, -1e4], [1e4, -1e4, 1e4], [-1e4, -1e4, -1e4]], dtype=dtype)
    with np.errstate(all="raise", under="ignore"):
        found = measure(scores, [0, 1, 2], 3)
    assert found.confidence.tolist() == pytest.approx([1, 1 / 2, 1 / 3])
    assert found.brier.tolist() == pytest.approx([0, 3 / 2, 2 / 3])
    assert found.log_likelihood[0] == 0
    assert found.log_likelihood[1] == pytest.approx(float(scores[1, 1]) - float(scores[1, 0]) - np.log(2))
    assert found.rank.tolist() == [0, 2, 2]


def test_float64_beyond_its_range_makes_no_noise():
    with np.errstate(all="raise", under="ignore", divide="ignore"):
        found = measure(np.array([[1.7e308, -1.7e308]]), [0], 2)
    assert (found.confidence[0], found.brier[0]) == (1, 0)


def test_a_certain_and_right_prediction_has_no_negative_brier_term():
    scores = np.random.default_rng(0).uniform(15, 40, size=(2000, 1)) * np.array([[1.0, 0.0, 0.0]])
    assert measure(scores, np.zeros(2000, dtype=np.int64), 3).brier.min() >= 0


def test_a_memory_map_is_read_like_an_array(tmp_path):
    scores, labels = drawn(dtype=np.float32)
    np.save(tmp_path / "scores.npy", scores)
    mapped = np.load(tmp_path / "scores.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    whole, streamed = measure(scores, labels, 9), measure(mapped, labels, 9)
    for field in ("predictions", *FIELDS):
        np.testing.assert_array_equal(getattr(streamed, field), getattr(whole, field))
    transposed = measure(np.asfortranarray(scores), labels, 9)
    np.testing.assert_array_equal(transposed.brier, whole.brier)


def test_the_caller_keeps_its_scores():
    scores, labels = drawn()
    before = scores.copy()
    measure(scores, labels, 9)
    np.testing.assert_array_equal(scores, before)


def test_the_broken_image_is_named_in_any_chunk(monkeypatch):
    monkeypatch.setattr(outcome_module, "_CHUNK_NUMBERS", 70)
    for value in (np.nan, np.inf, -np.inf):
        scores, labels = drawn()
        scores[123, 4] = value
        with pytest.raises(UserError, match="scores of image 123 are NaN or infinite"):
            measure(scores, labels, 9)


def test_classes_are_counted():
    found = measure(np.array([0, 0, 2, 1]), np.array([0, 1, 2, 1]), 4)
    images, hits = found.class_totals()
    assert (images.tolist(), hits.tolist()) == ([1, 2, 1, 0], [1, 1, 1, 0])
    assert found.rank is found.log_likelihood is found.confidence is found.brier is None
