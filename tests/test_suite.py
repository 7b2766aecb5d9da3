"""Suites: reading them, pooling folds and seeds, and the comparison."""

import json

import numpy as np
import pytest

from hf_vlr.errors import UserError
from hf_vlr.suite import Suite, SuiteRun, compare, load_suite, markdown, packaged_suites, place_of, pool, run_suite

TINY = [
    "data.options.classes=6",
    "data.options.unseen=0",
    "data.options.max_count=6",
    "data.options.imbalance=3",
    "data.options.size=16",
    "data.options.test=3",
    "data.options.validation=2",
    "data.image_size=16",
    "train.steps=2",
    "train.batch_size=8",
    "train.save_every=2",
]


def suite_of(predictors: dict[str, str], seeds: list[int], folds: int | None) -> Suite:
    runs = {name: SuiteRun("none") for name in predictors}
    return Suite(runs, {name: f"{name}/{what}" for name, what in predictors.items()}, "a", seeds, folds)


def write_run(root, name, seed, fold, predictions, labels, counts, predictor="visual"):
    folder = place_of(root, name, seed, fold)
    folder.mkdir()
    scores = np.eye(len(counts))[predictions]
    np.savez_compressed(folder / "predictions.npz", labels=labels, train_counts=counts, **{predictor: scores})


@pytest.mark.parametrize("name", packaged_suites())
def test_packaged_suites_name_packaged_recipes(name):
    from hf_vlr.training.recipe import load_recipe

    suite, rest = load_suite(name, ["suite.seeds=[7]", "optim.lr=1e-4"])
    assert suite.seeds == [7] and rest == ["optim.lr=1e-4"]
    for run in suite.runs.values():
        load_recipe(run.recipe, run.set)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"against": "nobody"}, "nobody"),
        ({"rows": {"a": "missing/visual"}}, "missing"),
        ({"runs": {"a": SuiteRun("r", [], "later"), "later": SuiteRun("r")}}, "later"),
    ],
)
def test_a_suite_that_names_nothing_is_refused(change, word):
    suite = suite_of({"a": "visual"}, [0], None)
    for key, value in change.items():
        setattr(suite, key, value)
    with pytest.raises(UserError, match=word):
        suite.check()


def test_unknown_suite_and_key(tmp_path):
    with pytest.raises(UserError, match="openclipart-scratch"):
        load_suite("no-such-suite")
    path = tmp_path / "s.yaml"
    path.write_text("runs: {a: {recipe: r}}\nrows: {a: a/visual}\nagainst: a\nsedes: [1]\n")
    with pytest.raises(UserError, match="sedes"):
        load_suite(str(path))


def test_pooling_concatenates_folds_and_averages_counts(tmp_path):
    suite = suite_of({"a": "visual"}, [0, 1], 2)
    labels = [np.array([0, 1, 2]), np.array([2, 1])]
    guesses = {0: [[0, 1, 1], [2, 2]], 1: [[0, 0, 2], [2, 1]]}
    for seed in (0, 1):
        for fold in (0, 1):
            counts = np.array([30, 10 + 2 * fold, 5])
            write_run(tmp_path, "a", seed, fold, np.array(guesses[seed][fold]), labels[fold], counts)
    found = pool(suite, tmp_path, "a/visual")
    assert found.labels.tolist() == [0, 1, 2, 2, 1]
    assert found.predictions.tolist() == [[0, 1, 1, 2, 2], [0, 0, 2, 2, 1]]
    assert found.train_counts.tolist() == [30, 11, 5]
    with pytest.raises(UserError, match="fused"):
        pool(suite, tmp_path, "a/fused")


def test_comparison_against_hand_counted_numbers(tmp_path):
    suite = suite_of({"a": "visual", "b": "visual"}, [0], None)
    labels = np.repeat([0, 1, 2], 4)
    counts = np.array([200, 50, 5])
    write_run(tmp_path, "a", 0, 0, np.array([0] * 4 + [1] * 4 + [0] * 4), labels, counts)
    write_run(tmp_path, "b", 0, 0, np.array([0] * 4 + [1, 1, 0, 0] + [2, 2, 2, 0]), labels, counts)
    document = compare(suite, tmp_path)
    rows = document["rows"]
    assert rows["a"]["values"] == {"all": [8 / 12], "balanced": [8 / 12], "many": [1.0], "medium": [1.0], "few": [0.0]}
    assert rows["a"]["difference"] == {}
    assert rows["b"]["difference"]["few"][0] == pytest.approx(0.75)
    assert rows["b"]["difference"]["medium"][0] == pytest.approx(-0.5)
    low, high = rows["b"]["difference"]["few"][1:]
    assert 0 < low < 0.75 < high <= 1
    text = markdown(document)
    assert "| b | 75.0 | 75.0 | 100.0 | 50.0 | 75.0 |" in text and "+75.0 [" in text
    json.dumps(document, allow_nan=False)


@pytest.mark.slow
def test_a_suite_trains_compares_and_keeps_complete_runs(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "seeds: [0, 1]\n"
        "runs:\n"
        "  base: {recipe: shapes-baseline, set: [model.visual_head=linear]}\n"
        "  one: {recipe: shapes-stage1}\n"
        "  two: {recipe: shapes-stage2, init: one}\n"
        "rows: {base: base/visual, one: one/language, two: two/fused}\n"
        "against: base\n"
    )
    document = run_suite(str(path), TINY, str(tmp_path / "out"))
    assert document["images"] == 18 and len(document["rows"]["two"]["values"]["all"]) == 2
    weights = tmp_path / "out" / "two-seed1-fold0" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    again = run_suite(str(path), TINY, str(tmp_path / "out"))
    assert again == document and weights.stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"optim\.lr"):
        run_suite(str(path), [*TINY, "optim.lr=0.5"], str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "suite.json").read_text()) == document
