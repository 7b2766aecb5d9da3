import csv
import json

import numpy as np
import pytest

from hf_vlr import __version__
from hf_vlr.errors import UserError
from hf_vlr.evaluation.document import metrics_document, write_metrics
from hf_vlr.evaluation.metrics import evaluate_predictions, per_class_table
from hf_vlr.evaluation.table import markdown_table, render_table

COUNTS = np.array([150, 30, 5, 4])
LABELS = np.array([0, 0, 1, 1, 2, 2, 3, 3])
NAMES = ["kit fox", "tench", "missile (a)", "missile (b)"]
PROTOCOL = {
    "split": "test",
    "resolution": 32,
    "test_time_augmentation": None,
    "pretraining": "none",
    "texts": ["templates"],
    "seed": 0,
}


def predictors():
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=(8, 4)) for name in ("fused", "visual", "language")}


def document(rule="oltr"):
    return metrics_document(predictors(), LABELS, COUNTS, NAMES, rule, PROTOCOL)


def test_the_document_holds_one_predictor_in_each_entry():
    made = document("vl-ltr")
    assert made["schema"] == 1
    assert list(made["predictors"]) == ["fused", "visual", "language"]
    for name, scores in predictors().items():
        entry = dict(made["predictors"][name])
        assert entry.pop("worst_class_name") == NAMES[entry["worst_class_label"]]
        assert entry == evaluate_predictions(scores, LABELS, COUNTS, "vl-ltr")
    protocol = made["protocol"]
    assert {field: protocol[field] for field in PROTOCOL} == PROTOCOL
    assert protocol["versions"]["hf_vlr"] == __version__
    assert (protocol["rule"]["name"], protocol["rule"]["averaging"]) == ("vl-ltr", "image")


def test_what_is_written_is_what_was_measured(tmp_path):
    made = document()
    tables = {name: per_class_table(scores, LABELS, COUNTS, NAMES) for name, scores in predictors().items()}
    path = write_metrics(tmp_path / "run", made, tables)
    # The rule's tuple of further groups comes back as a list; nothing else may change.
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(made))
    assert json.loads(path.read_text(encoding="utf-8"))["predictors"] == made["predictors"]
    with (path.parent / "per_class.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["predictor"], row["class_name"]) for row in rows] == [(p, c) for p in tables for c in NAMES]
    assert sorted(file.name for file in path.parent.iterdir()) == ["metrics.json", "per_class.csv"]
    assert path.read_bytes() == write_metrics(tmp_path / "again", document(), tables).read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32(1), {1, 2}])
def test_a_value_without_a_word_in_json_writes_nothing(tmp_path, value):
    with pytest.raises(UserError, match=r"metrics.json cannot be written"):
        write_metrics(tmp_path / "run", {"schema": 1, "value": value}, {})
    assert not (tmp_path / "run").exists()


def test_rendered_table():
    metrics = evaluate_predictions(np.array([0, 0, 1, 0, 2, 0, 0, 0]), LABELS, COUNTS)
    lines = render_table({"stage 2 [fused]": metrics, "zero-shot": None}).splitlines()
    assert lines[0].split() == ["all", "balanced", "many", "(1)", "medium", "(1)", "few", "(2)"]
    assert lines[2].split() == ["stage", "2", "[fused]", "50.0", "50.0", "100.0", "50.0", "25.0"]
    assert lines[3].split() == ["zero-shot"] + ["-"] * 5
    assert len(lines) == 4


def test_markdown_table():
    metrics = evaluate_predictions(np.array([0, 0, 1, 0]), LABELS[:4], COUNTS)
    assert markdown_table({"a|b": metrics, "c": None}) == (
        "|  | all | balanced | many (1) | medium (1) | few (0) |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| a\\|b | 75.0 | 75.0 | 100.0 | 50.0 | - |\n"
        "| c | - | - | - | - | - |\n"
    )


def test_tables_follow_the_rule_and_need_no_measured_row():
    metrics = evaluate_predictions(LABELS, LABELS, COUNTS, "vl-ltr")
    assert "10-shot (2) | 5-shot (2)" in markdown_table({"a": metrics})
    assert markdown_table({"a": None}).startswith("|  | all | balanced | many | medium | few |\n")


def test_long_and_wide_names_are_not_cut():
    name = "\N{CJK UNIFIED IDEOGRAPH-72D0}" * 60
    assert name in render_table({name: None})


def test_rows_of_different_groups_do_not_share_a_table():
    rows = {rule: evaluate_predictions(LABELS, LABELS, COUNTS, rule) for rule in ("oltr", "custom:3,2")}
    with pytest.raises(UserError, match=r"'oltr' and 'custom:3,2' were measured on different shot groups"):
        render_table(rows)


def test_bad_input_is_named():
    with pytest.raises(UserError, match="does not state resolution, seed"):
        short = {field: value for field, value in PROTOCOL.items() if field not in ("seed", "resolution")}
        metrics_document(predictors(), LABELS, COUNTS, NAMES, "oltr", short)
    with pytest.raises(UserError, match="no predictor"):
        metrics_document({}, LABELS, COUNTS, NAMES, "oltr", PROTOCOL)
    with pytest.raises(UserError, match="3 class names for 4 classes"):
        metrics_document(predictors(), LABELS, COUNTS, NAMES[:3], "oltr", PROTOCOL)
    broken = predictors() | {"visual": np.full((8, 4), np.nan)}
    with pytest.raises(UserError, match="predictor 'visual': scores of image 0 are NaN"):
        metrics_document(broken, LABELS, COUNTS, NAMES, "oltr", PROTOCOL)
