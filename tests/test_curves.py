"""Curves of runs: what is read from their logs, and a picture of it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from hf_vlr.cli.main import main
from hf_vlr.errors import UserError
from hf_vlr.training.curves import plot_curves, read_curve


def write_log(folder: Path, *lines: dict) -> Path:
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def overfitting(tmp_path) -> Path:
    """A run whose validation loss is lowest in the middle."""
    lines = []
    for step in range(1, 61):
        lines.append({"step": step, "epoch": step // 20, "loss": 5 / step + 0.5, "grad_norm": 3.0})
        if step % 10 == 0:
            lines.append({"step": step, "epoch": step // 20, "validation_loss": 1 + (step - 30) ** 2 / 500})
    return write_log(tmp_path / "overfitting", *lines)


def test_a_curve_is_what_was_logged(overfitting):
    curve = read_curve(overfitting)
    assert curve.name == overfitting.as_posix()
    assert curve.training[0] == (1, 5.5) and len(curve.training) == 60
    assert [step for step, _ in curve.validation] == [10, 20, 30, 40, 50, 60]
    assert curve.best() == (30, 1.0)
    other = read_curve(overfitting, "grad_norm")
    assert (other.validation, other.best()) == ([], None)


def test_numbers_that_were_not_finite_are_left_out(tmp_path):
    folder = write_log(tmp_path / "run", {"step": 1, "loss": None}, {"step": 2, "loss": 2.0})
    assert read_curve(folder).training == [(2, 2.0)]


def test_what_cannot_be_drawn_is_named(overfitting, tmp_path):
    with pytest.raises(UserError, match=r"nowhere holds no log\.jsonl; name the folder of a run"):
        read_curve(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"log\.jsonl has no accuracy; there are grad_norm, loss$"):
        read_curve(overfitting, "accuracy")
    torn = write_log(tmp_path / "torn", {"step": 1, "loss": 2.0})
    with (torn / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    with pytest.raises(UserError, match=r"log\.jsonl, line 2 is no log line; remove it"):
        read_curve(torn)


def test_the_picture_shows_each_run_in_a_colour_of_its_own(overfitting, tmp_path):
    flat = write_log(tmp_path / "flat", {"step": 1, "loss": 3.0}, {"step": 60, "loss": 3.0})
    out = plot_curves([read_curve(overfitting), read_curve(flat)], tmp_path / "curves.png")
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**24)}
    assert {(31, 119, 180), (255, 127, 14)} <= colours  # the first two of matplotlib's
    with pytest.raises(UserError, match=r"nowhere/curves\.png cannot be written"):
        plot_curves([read_curve(flat)], tmp_path / "nowhere" / "curves.png")


def test_the_command_prints_the_ends_and_the_best(overfitting, tmp_path, capsys):
    flat = write_log(tmp_path / "flat", {"step": 1, "loss": 3.0})
    out = tmp_path / "curves.png"
    with pytest.raises(SystemExit) as caught:
        main(["curves", str(overfitting), str(flat), "--out", str(out)])
    assert caught.value.code == 0
    header, first, second, last = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "run" and header.endswith("lowest on validation")
    assert first.split() == [str(overfitting), "0.5833", "2.8", "1", "at", "step", "30"]
    assert second.split() == [str(flat), "3", "-", "-"]
    assert last == f"written to {out}" and out.is_file()
