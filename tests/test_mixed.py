"""VL-LTR's own convention: two predictors in one row, labelled so, and nothing else."""

import numpy as np
import pytest

from hf_vlr.errors import UserError
from hf_vlr.evaluation.metrics import evaluate_predictions
from hf_vlr.evaluation.mixed import NOTE, mixed_convention, summed_predictions
from hf_vlr.evaluation.outcome import measure

COUNTS = np.array([300, 200, 50, 40, 15, 9, 4])
LABELS = np.repeat(np.arange(7), [9, 4, 6, 3, 5, 8, 2])


def drawn(seed=0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(2, LABELS.size, 7)) + 1.5 * np.eye(7)[LABELS]
    visual, language = logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)
    return np.log(0.2 * np.exp(visual) + 0.8 * np.exp(language)), visual, language


@pytest.mark.parametrize("rule", ["vl-ltr", "oltr"])
def test_headline_and_groups_by_their_definitions(rule):
    fused, visual, language = drawn()
    entry = mixed_convention(fused, visual, language, LABELS, COUNTS, rule, resamples=50)
    headline = evaluate_predictions(fused, LABELS, COUNTS, rule, 50)
    groups = evaluate_predictions((visual + language).argmax(axis=1), LABELS, COUNTS, rule, 50)
    assert (entry["accuracy"], entry["top5"]) == (headline["accuracy"], headline["top5"])
    for name, group in groups["groups"].items():
        for key in ("accuracy", "classes", "images", "share"):
            assert entry["groups"][name][key] == group[key]
    assert entry["intervals"]["accuracy"] == headline["intervals"]["accuracy"]
    assert entry["intervals"]["groups"] == groups["intervals"]["groups"]
    # what the label warns of: the groups do not add up to the headline
    shares = [entry["groups"][name]["share"] * groups["groups"][name]["accuracy"] for name in ("many", "medium", "few")]
    assert rule == "oltr" or sum(shares) != pytest.approx(entry["accuracy"], abs=1e-3)


def test_everything_that_would_mix_is_none_and_the_entry_says_so():
    entry = mixed_convention(*drawn(), LABELS, COUNTS, "oltr", resamples=5)
    assert (entry["mixed"], entry["note"]) == (True, NOTE)
    stated = {"num_images", "num_classes", "classes_without_test_images", "accuracy", "top5", "groups"}
    nested = {"group_confusion", "shifted_priors", "intervals", "mixed", "note"}
    assert {key for key, value in entry.items() if value is not None} == stated | nested
    assert entry["group_confusion"]["counts"] is None
    assert set(entry["shifted_priors"].values()) == {None}
    assert entry["intervals"]["balanced_accuracy"] is None
    for group in entry["groups"].values():
        assert [key for key, value in group.items() if value is None] == ["nll", "brier", "ece", "predicted_share"]


def test_logits_serve_as_well_as_log_probabilities():
    fused, visual, language = drawn()
    shifted = visual + np.linspace(-5, 5, LABELS.size)[:, None]
    np.testing.assert_array_equal(summed_predictions(shifted, language), summed_predictions(visual, language))
    found = measure(fused, LABELS, 7)
    assert mixed_convention(found, shifted, language, LABELS, COUNTS) == mixed_convention(*drawn(), LABELS, COUNTS)


def test_the_sum_is_taken_in_float64_over_any_number_of_rows():
    generator = np.random.default_rng(0)
    visual, language = generator.normal(size=(2, 700, 5)).astype(np.float16)
    expected = (visual.astype(float) + language.astype(float)).argmax(axis=1)
    np.testing.assert_array_equal(summed_predictions(visual, language), expected)


def test_branches_that_do_not_fit_are_named():
    fused, visual, language = drawn()
    with pytest.raises(UserError, match="the branches score"):
        mixed_convention(fused, visual, language[:-1], LABELS, COUNTS)
    with pytest.raises(UserError, match="predictions for 37 labels"):
        mixed_convention(fused, visual[:-1], language[:-1], LABELS, COUNTS)
