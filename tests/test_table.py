"""Tables to read: columns, folds, intervals, spreads over seeds, and the stars of mixed rows."""

import numpy as np
import pytest
from rich.cells import cell_len

from hf_vlr.errors import UserError
from hf_vlr.evaluation.metrics import evaluate_predictions
from hf_vlr.evaluation.mixed import NOTE, mixed_convention
from hf_vlr.evaluation.spread import spread
from hf_vlr.evaluation.table import WIDE, markdown_table, render_table

COUNTS = np.array([150, 30, 5, 4])
LABELS = np.array([0, 0, 1, 1, 2, 2, 3, 3])


def entry(seed=0, resamples=0, classes=8):
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), 10)
    scores = generator.normal(size=(labels.size, classes)) + 2 * np.eye(classes)[labels]
    return evaluate_predictions(scores, labels, np.linspace(200, 1, classes).astype(int), resamples=resamples)


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


def test_wide_tables_fold_at_80_cells_and_lose_no_column():
    rows = {"visual only, linear head": entry(), "stage 2, language-guided": entry(1), "zero-shot": None}
    text = render_table(rows, wide=True)
    assert max(map(cell_len, text.splitlines())) <= 80
    blocks = text.split("\n\n")
    assert len(blocks) > 1
    for block in blocks:
        assert [line.strip().split("   ")[0].strip() for line in block.splitlines()[2:]] == list(rows)
    titles = [*(column.title for column in WIDE), "all", "balanced", "many (4)"]
    assert all(f" {title} " in text.replace("\n", " \n") for title in titles)
    assert "\n\n" not in render_table(rows, wide=True, width=400)


def test_wide_numbers_have_their_units():
    row = entry()
    header, _, cells = markdown_table({"a": row}, wide=True).splitlines()
    shown = dict(zip(header.split(" | "), cells.split(" | ")))
    assert shown["top-5"] == f"{100 * row['top5']:.1f}"
    assert shown["NLL"] == f"{row['nll']:.3f}"
    assert shown["Brier"] == f"{row['brier']:.3f}"
    assert shown["ECE"] == f"{100 * row['ece']:.1f}"
    ids = evaluate_predictions(LABELS, LABELS, COUNTS)
    assert markdown_table({"a": ids}, wide=True).splitlines()[2].endswith("| 100.0 | 100.0 | - | - | - | - | - |")


def test_intervals_are_shown_on_request():
    row = entry(resamples=200)
    low, high = row["intervals"]["accuracy"]
    few = row["intervals"]["groups"]["few"]
    text = render_table({"a": row}, intervals=True, width=200)
    assert f"{100 * row['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in text
    assert f"{100 * row['groups']['few']['accuracy']:.1f} [{100 * few[0]:.1f}, {100 * few[1]:.1f}]" in text
    assert "[" not in render_table({"a": row})
    assert "[" not in render_table({"a": entry()}, intervals=True)
    assert "| - |" in markdown_table({"a": evaluate_predictions(LABELS[:4], LABELS[:4], COUNTS, resamples=5)})


def test_several_seeds_are_one_row():
    entries = [entry(seed) for seed in range(3)]
    values = [100 * one["accuracy"] for one in entries]
    text = render_table({"three seeds": spread(entries), "one": spread(entries[:1])}, width=200)
    assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in text
    assert text.count("±") == 5
    assert "many (4)" in text


def test_a_mixed_row_is_starred_and_explained_once():
    scores = np.random.default_rng(0).normal(size=(3, 8, 4))
    row = mixed_convention(*scores, LABELS, COUNTS, "oltr")
    text = render_table({"ours": evaluate_predictions(scores[0], LABELS, COUNTS), "theirs": row, "again": row})
    assert "theirs *" in text and "again *" in text and "ours *" not in text
    assert " ".join(text.split()).count(f"* {NOTE}") == 1
    assert max(map(cell_len, text.splitlines())) <= 80
    assert [line.split()[3] for line in text.splitlines() if line.startswith(" theirs *")] == ["-"]
    assert markdown_table({"theirs": row}).endswith(f"\n\\* {NOTE}\n")
