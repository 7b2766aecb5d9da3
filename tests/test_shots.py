import json
from pathlib import Path

import numpy as np
import pytest

from hf_vlr.data.shots import SHOT_RULES, shot_groups, shot_names, shot_rule
from hf_vlr.errors import UserError
from hf_vlr.evaluation.metrics import evaluate_predictions

GOLDEN = Path(__file__).parent / "golden" / "vlltr_testvectors.json"


def test_vl_ltr_rule_reproduces_the_original_shot_accuracies():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    inputs = golden["shot_acc_inputs"]
    counts = np.array(inputs["train_class_count"])
    metrics = evaluate_predictions(np.array(inputs["preds"]), inputs["labels"], counts, "vl-ltr")
    groups = shot_groups(counts, "vl-ltr")
    for theirs, ours in {
        "many": "many",
        "median": "medium",
        "low": "few",
        "10-shot": "10-shot",
        "5-shot": "5-shot",
    }.items():
        low, high, correct, total, accuracy = golden["shot_acc"][theirs]
        assert groups[ours].tolist() == ((counts > low) & (counts <= high)).tolist()
        assert metrics["groups"][ours]["images"] == total
        assert metrics["groups"][ours]["accuracy"] == correct / total == accuracy / 100


def test_rules_differ_exactly_at_the_borders():
    counts = [101, 100, 99, 21, 20, 19, 1]
    assert shot_names(counts, "oltr") == ["many"] + ["medium"] * 4 + ["few"] * 2
    assert shot_names(counts, "vl-ltr") == ["many"] * 2 + ["medium"] * 2 + ["few"] * 3
    assert shot_names([9, 8, 5, 4, 0], "custom:8,5") == ["many", "medium", "medium", "few", "few"]


@pytest.mark.parametrize("rule", [*SHOT_RULES, "custom:7,3", "custom:5,5"])
def test_the_three_groups_are_a_partition(rule):
    groups = shot_groups(np.arange(130), rule)
    members = np.stack([groups[name] for name in ("many", "medium", "few")])
    assert (members.sum(axis=0) == 1).all()
    names = shot_names(np.arange(130), rule)
    assert all(groups[name][label] for label, name in enumerate(names))


def test_groups_of_the_published_cifar_100_lt():
    # 500 images in the largest class, imbalance factor 100: the literature counts 35 / 35 / 30 classes.
    counts = np.array([int(500 * 0.01 ** (c / 99)) for c in range(100)])
    assert [int(mask.sum()) for mask in shot_groups(counts).values()] == [35, 35, 30]


def test_a_rule_object_passes_through():
    assert shot_rule(SHOT_RULES["oltr"]) is SHOT_RULES["oltr"] is shot_rule("oltr")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("otlr", "unknown shot rule 'otlr'"),
        ("custom:8", "two integers"),
        ("custom:8,five", "two integers"),
        ("custom:5,8", "0 <= LO <= HI"),
        ("custom:5,-1", "0 <= LO <= HI"),
    ],
)
def test_bad_rules_are_named(rule, message):
    with pytest.raises(UserError, match=message):
        shot_groups([1, 2], rule)


@pytest.mark.parametrize(("counts", "message"), [([], "one integer"), ([1.5], "one integer"), ([3, -1], "class 1 ")])
def test_bad_counts_are_named(counts, message):
    with pytest.raises(UserError, match=message):
        shot_groups(counts)
