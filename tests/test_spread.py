"""Mean and deviation of every number over seeds."""

import json

import numpy as np
import pytest

from hf_vlr.errors import UserError
from hf_vlr.evaluation.metrics import evaluate_predictions
from hf_vlr.evaluation.spread import spread

COUNTS = np.array([200, 150, 50, 30, 5, 3])
LABELS = np.repeat(np.arange(6), 8)


def entry(seed, resamples=0):
    scores = np.random.default_rng(seed).normal(size=(48, 6)) + 2 * np.eye(6)[LABELS]
    return evaluate_predictions(scores, LABELS, COUNTS, resamples=resamples)


def test_each_number_has_its_mean_and_sample_deviation():
    entries = [entry(seed, resamples=5) for seed in range(4)]
    found = spread(entries)
    assert found.runs == 4
    for path in (("accuracy",), ("nll",), ("groups", "few", "ece"), ("shifted_priors", "forward-50")):
        values, mean, std = entries, found.mean, found.std
        for key in path:
            values, mean, std = [value[key] for value in values], mean[key], std[key]
        assert mean == pytest.approx(np.mean(values), rel=1e-12)
        assert std == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    counts = [one["group_confusion"]["counts"][2][0] for one in entries]
    assert found.mean["group_confusion"]["counts"][2][0] == pytest.approx(np.mean(counts))
    assert found.mean["group_confusion"]["groups"] == ["many", "medium", "few"]
    assert found.mean["num_images"] == 48 and found.std["num_images"] == 0
    # of one run only
    assert not {"intervals", "worst_class_label"} & found.mean.keys()
    assert json.loads(json.dumps(found.mean, allow_nan=False)) == found.mean


def test_one_run_has_no_deviation():
    found = spread([entry(0)])
    assert found.mean["accuracy"] == entry(0)["accuracy"]
    assert found.std["accuracy"] is found.std["groups"]["many"]["accuracy"] is None


def test_a_number_that_one_run_lacks_is_none():
    entries = [entry(0), entry(1) | {"tail_to_head": None}]
    found = spread(entries)
    assert found.mean["tail_to_head"] is found.std["tail_to_head"] is None
    assert found.mean["accuracy"] is not None


def test_runs_of_different_kinds_are_not_averaged():
    other = evaluate_predictions(LABELS, LABELS, COUNTS, "vl-ltr")
    with pytest.raises(UserError, match="differ in what 'groups' holds"):
        spread([entry(0), other])
    with pytest.raises(UserError, match="differ in what 'entry' holds"):
        spread([entry(0), entry(1) | {"mixed": True}])
    with pytest.raises(UserError, match="no run"):
        spread([])
