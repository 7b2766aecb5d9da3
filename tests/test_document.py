import csv
import json
from collections.abc import Mapping

import numpy as np
import pytest

from hf_vlr import __version__
from hf_vlr.errors import UserError
from hf_vlr.evaluation.document import MIXED_NAME, metrics_document, write_metrics
from hf_vlr.evaluation.metrics import evaluate_predictions, per_class_table
from hf_vlr.evaluation.predictions import Predictions

COUNTS = np.array([150, 30, 5, 4])
LABELS = np.array([0, 0, 1, 1, 2, 2, 3, 3])
NAMES = ("kit fox", "tench", "missile (a)", "missile (b)")
PROTOCOL = {
    "split": "test",
    "resolution": 32,
    "test_time_augmentation": None,
    "pretraining": "none",
    "texts": ["templates"],
    "seed": 0,
}


def scores():
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=(8, 4)) for name in ("fused", "visual", "language")}


def predictions(**changes):
    fields = {"scores": scores(), "labels": LABELS, "train_counts": COUNTS, "class_names": NAMES, "protocol": PROTOCOL}
    return Predictions(**(fields | changes))


def tree(value):
    """The keys of a document; a leaf by its kind, a list by what it holds."""
    if isinstance(value, dict):
        return {key: tree(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        kinds = [tree(part) for part in value]
        return [kinds[0], len(kinds)] if kinds and all(kind == kinds[0] for kind in kinds) else kinds
    return "text" if isinstance(value, str) else "number" if value is not None else None


NUMBER = "number"
GROUP = dict.fromkeys(("accuracy", "classes", "images", "nll", "brier", "ece", "share", "predicted_share"), NUMBER)
PAIR = [NUMBER, 2]
PRIORS = (
    "forward-50", "forward-25", "forward-10", "forward-5", "forward-2", "uniform",
    "backward-2", "backward-5", "backward-10", "backward-25", "backward-50",
)  # fmt: skip
ENTRY = {
    "num_images": NUMBER,
    "num_classes": NUMBER,
    "classes_without_test_images": NUMBER,
    "accuracy": NUMBER,
    "top5": NUMBER,
    "balanced_accuracy": NUMBER,
    "groups": {"many": GROUP, "medium": GROUP, "few": GROUP},
    "macro_f1": NUMBER,
    "harmonic_mean": NUMBER,
    "geometric_mean": NUMBER,
    "worst_class": NUMBER,
    "worst_class_label": NUMBER,
    "worst_tenth": NUMBER,
    "nll": NUMBER,
    "brier": NUMBER,
    "ece": NUMBER,
    "mce": NUMBER,
    "group_confusion": {"groups": ["text", 3], "counts": [[NUMBER, 3], 3]},
    "tail_to_head": NUMBER,
    "shifted_priors": dict.fromkeys(PRIORS, NUMBER),
    "reliability": NUMBER,
    "intervals": {
        "confidence": NUMBER,
        "resamples": NUMBER,
        "accuracy": PAIR,
        "balanced_accuracy": PAIR,
        "groups": {"many": PAIR, "medium": PAIR, "few": PAIR},
    },
    "worst_class_name": "text",
}


def test_the_schema_is_the_one_written_down():
    # enough images to fill every bin of every group, and two of the tail's to miss
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, 6000)
    logits = generator.normal(size=(6000, 6)) * generator.uniform(0.1, 8, size=(6000, 1))
    large = predictions(
        scores={"visual": logits},
        labels=labels,
        train_counts=np.array([150, 140, 30, 25, 5, 4]),
        class_names=tuple("abcdef"),
    )
    # a confidence below 1/6 is impossible: the two lowest bins are empty
    held = [None, None, *[NUMBER] * 13]
    bins = {"confidence": held, "accuracy": held, "images": [NUMBER, 15]}
    made = metrics_document(large, "oltr", resamples=10)
    assert list(made) == ["schema", "protocol", "predictors"]
    assert made["schema"] == 2
    assert tree(made["predictors"]) == {
        "visual": ENTRY | {"reliability": dict.fromkeys(("all", "many", "medium", "few"), bins)}
    }
    assert list(made["predictors"]["visual"]) == list(ENTRY)
    assert list(made["protocol"]) == ["versions", *PROTOCOL, "rule"]
    assert "intervals" not in metrics_document(large, "oltr", 0)["predictors"]["visual"]


def test_the_schema_stays_where_there_is_less_to_measure():
    """Same keys without scores, without a group and in the mixed convention: what cannot be measured is None."""

    def keys(value):
        return {key: keys(part) for key, part in value.items()} if isinstance(value, dict) else None

    full = keys(metrics_document(predictions(), "oltr", 10)["predictors"]["visual"])
    ids = predictions(scores={"ids": LABELS}, train_counts=np.array([5, 5, 5, 5]))
    bare = keys(metrics_document(ids, "oltr", 10)["predictors"]["ids"])
    assert bare == full | {"reliability": None}
    mixed = keys(metrics_document(predictions(), "oltr", 10, mixed_convention=True)["predictors"][MIXED_NAME])
    assert mixed == full | {"reliability": None, "mixed": None, "note": None}


def test_the_document_holds_one_predictor_in_each_entry():
    made = metrics_document(predictions(), "vl-ltr", 20)
    assert list(made["predictors"]) == ["fused", "visual", "language"]
    for name, values in scores().items():
        entry = dict(made["predictors"][name])
        assert entry.pop("worst_class_name") == NAMES[entry["worst_class_label"]]
        assert "mixed" not in entry
        assert entry == evaluate_predictions(values, LABELS, COUNTS, "vl-ltr", 20)
    protocol = made["protocol"]
    assert {field: protocol[field] for field in PROTOCOL} == PROTOCOL
    assert protocol["versions"]["hf_vlr"] == __version__
    assert (protocol["rule"]["name"], protocol["rule"]["averaging"]) == ("vl-ltr", "image")


def test_a_predictor_is_read_once_and_let_go():
    read = []

    class Lazy(Mapping):
        def __getitem__(self, name):
            read.append(name)
            return scores()[name]

        def __iter__(self):
            return iter(scores())

        def __len__(self):
            return 3

    made = metrics_document(predictions(scores=Lazy()), "oltr", 0)
    assert read == ["fused", "visual", "language"]
    assert made == metrics_document(predictions(), "oltr", 0)


def test_what_is_written_is_what_was_measured(tmp_path):
    made = metrics_document(predictions(), "oltr", 20, mixed_convention=True)
    tables = {name: per_class_table(values, LABELS, COUNTS, NAMES) for name, values in scores().items()}
    path = write_metrics(tmp_path / "run", made, tables)
    # The rule's tuple of further groups comes back as a list; nothing else may change.
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(made))
    assert json.loads(path.read_text(encoding="utf-8"))["predictors"] == made["predictors"]
    with (path.parent / "per_class.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["predictor"], row["class_name"]) for row in rows] == [(p, c) for p in tables for c in NAMES]
    assert sorted(file.name for file in path.parent.iterdir()) == ["metrics.json", "per_class.csv"]
    again = metrics_document(predictions(), "oltr", 20, mixed_convention=True)
    assert path.read_bytes() == write_metrics(tmp_path / "again", again, tables).read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32(1), {1, 2}])
def test_a_value_without_a_word_in_json_writes_nothing(tmp_path, value):
    with pytest.raises(UserError, match=r"metrics.json cannot be written"):
        write_metrics(tmp_path / "run", {"schema": 1, "value": value}, {})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": {"split": "test", "texts": None}}, "does not state resolution, .*seed"),
        ({"scores": {}}, "no predictor"),
        ({"class_names": NAMES[:3]}, "3 class names for 4 classes"),
        ({"scores": scores() | {"visual": np.full((8, 4), np.nan)}}, "predictor 'visual': scores of image 0 are NaN"),
        ({"labels": LABELS[:7]}, "predictor 'fused': 8 predictions for 7 labels"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        metrics_document(predictions(**changes), "oltr", 0)


def test_the_mixed_convention_needs_both_branches():
    alone = predictions(scores={"visual": scores()["visual"]})
    with pytest.raises(UserError, match="needs the predictors fused, visual, language; fused, language missing"):
        metrics_document(alone, "oltr", 0, mixed_convention=True)
