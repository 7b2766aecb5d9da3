"""`hf-vlr posthoc`: what it reads, prints, writes and refuses."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

from hf_vlr.cli.posthoc import command
from hf_vlr.errors import UserError
from hf_vlr.evaluation.adjustment import Material, adjust
from hf_vlr.evaluation.predictions import read_predictions, write_predictions
from hf_vlr.posthoc import tau_norm


def _neighbour(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toys = _neighbour("adjusted_toys")
COUNTS = toys.COUNTS
SHARES = toys.SHARES
TEST = toys.TEST
VALIDATION = toys.VALIDATION
BOTH = toys.BOTH
predictions = toys.predictions
zero_shot = toys.zero_shot
steps_of = toys.steps_of
applied = toys.applied
last = toys.last


@pytest.fixture
def folders(tmp_path):
    """An evaluation each of test and validation images, of a model and of a zero-shot one."""
    for name, of in (("a", (TEST, VALIDATION)), ("z", tuple(one.zero_shot for one in BOTH))):
        for split, made in zip(("test", "validation"), of):
            write_predictions(tmp_path / name / split / "predictions.npz", made)
            (tmp_path / name / split / "metrics.json").write_text(
                json.dumps({"protocol": {"split": split, "sampler": "instance"}})
            )
    return tmp_path


def invoke(*words) -> str:
    result = CliRunner().invoke(command, [*map(str, words), "eval.resamples=0"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_prints_and_writes(folders):
    out = folders / "out"
    said = invoke(
        folders / "a/test", "--tune", folders / "a/validation", "logit-adjustment", "em", "learnt=uniform",
        "--out", out, "eval.report=false", "eval.rule=custom:50,10",
    )  # fmt: skip
    lines = said.splitlines()
    assert lines[0].startswith("logit-adjustment: tau=")
    assert "on validation (80 images)" in lines[0]
    assert lines[1].startswith("em: learnt=uniform, iterations=")
    # a narrow terminal shows the table in pieces
    starts = list(dict.fromkeys(line.split("  ")[0].strip() for line in lines if line.startswith(" visual")))
    assert starts == ["visual", "visual + logit-adjustment", "visual + logit-adjustment + em"]
    assert lines[-1] == f"written to {out}"
    document = json.loads((out / "metrics.json").read_text())
    assert list(document["predictors"]) == starts
    assert document["protocol"]["posthoc"]["steps"][0]["tuned"]["split"] == "validation"
    assert document["protocol"]["rule"]["name"] == "custom:50,10"
    written = read_predictions(out)
    expected = adjust(Material(TEST), steps_of("logit-adjustment em learnt=uniform"), Material(VALIDATION))
    for name, scores in expected.predictions.scores.items():
        np.testing.assert_array_equal(written.scores[name], scores)
    rows = list(csv.DictReader((out / "em_prior.csv").open()))
    assert [row["class_name"] for row in rows] == list("abcde")
    np.testing.assert_allclose([float(row["train_share"]) for row in rows], SHARES)
    np.testing.assert_allclose([float(row["estimated_share"]) for row in rows], expected.priors[starts[2]])


def test_the_command_mixes_two_models(folders):
    invoke(
        folders / "a/test", "--with", folders / "z/test", "--tune", folders / "a/validation",
        "--tune-with", folders / "z/validation", "gla", "--out", folders / "out", "eval.report=false",
    )  # fmt: skip
    np.testing.assert_array_equal(read_predictions(folders / "out").scores["visual + gla"], last(applied("gla")))


def test_the_command_takes_arrays(folders):
    files = {
        "z": TEST.scores["visual"], "y": TEST.labels, "n": COUNTS, "other": BOTH[0].zero_shot.scores["all texts"],
        "val": VALIDATION.scores["visual"], "valy": VALIDATION.labels,
    }  # fmt: skip
    for name, array in files.items():
        np.save(folders / f"{name}.npy", array)
    place = {name: folders / f"{name}.npy" for name in files}
    given = ["--logits", place["z"], "--labels", place["y"], "--train-counts", place["n"]]
    tuned = ["--tune-logits", place["val"], "--tune-labels", place["valy"]]
    said = invoke(*given, *tuned, "temperature", "--out", folders / "one", "eval.report=false")
    assert "best nll on val (80 images)" in said
    scaled = read_predictions(folders / "one").scores["logits + temperature"]
    np.testing.assert_array_equal(scaled, last(applied("temperature")))
    invoke(*given, "--with", place["other"], "ensemble", "weight=0.3", "--out", folders / "two", "eval.report=false")
    mixed = read_predictions(folders / "two").scores["logits + ensemble"]
    np.testing.assert_array_equal(mixed, last(applied("ensemble weight=0.3")))
    np.save(folders / "shares.npy", [1.0, 1, 1, 1, 6])
    said = invoke(*given, "prior-correction", f"prior={folders / 'shares.npy'}")
    assert said.startswith(f"prior-correction: prior={folders / 'shares.npy'}, learnt=train\n")


def test_the_command_takes_features_and_a_classifier(folders):
    generator = np.random.default_rng(0)
    arrays = {"x": generator.normal(size=(30, 4)), "w": generator.normal(size=(5, 4)), "b": generator.normal(size=5)}
    for name, array in {**arrays, "y": np.arange(30) % 5, "n": COUNTS}.items():
        np.save(folders / f"{name}.npy", array)
    words = ["--features", "x", "--classifier", "w", "--bias", "b", "--labels", "y", "--train-counts", "n"]
    words = [word if word.startswith("-") else folders / f"{word}.npy" for word in words]
    invoke(*words, "tau-norm", "tau=1", "--out", folders / "out", "eval.report=false")
    written = read_predictions(folders / "out").scores
    np.testing.assert_array_equal(written["logits"], tau_norm.logits(*arrays.values()))
    unit = arrays["w"] / np.linalg.norm(arrays["w"], axis=1, keepdims=True)
    assert (written["logits + tau-norm"].argmax(1) == (arrays["x"] @ unit.T).argmax(1)).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to adjust: name PREDICTIONS"),
        (["em"], "em is a method: name PREDICTIONS before it"),
        (["nowhere", "em"], "nowhere holds no predictions.npz"),
        (["TEST"], "no method is named"),
        (["TEST", "--tune", "TEST", "temperature"], "120 of the 120 tuning images are among the reported ones"),
        (["TEST", "em", "--out", "TEST"], "holds the predictions that are read"),
        (["TEST", "--tune", "VALIDATION", "temperature", "--out", "VALIDATION"], "holds the predictions that are read"),
        (["TEST/predictions.npz", "em", "--out", "TEST"], "holds the predictions that are read"),
        (["TEST", "--with", "ZERO", "ensemble", "weight=1", "--out", "ZERO"], "holds the predictions that are read"),
        (["TEST", "em", "eval.splits=validation"], "eval.splits says nothing of predictions that exist"),
        (["TEST", "em", "eval.crops=five"], "eval.crops"),
        (["TEST", "--tune-with", "VALIDATION", "em"], "--tune-with needs the labels of its images"),
        (["TEST", "--train-counts", "n.npy", "em"], "--train-counts goes with --logits"),
        (["TEST", "--labels", "n.npy", "em"], "--labels goes in place of"),
        (["--logits", "n.npy", "em"], "give --labels FILE"),
        (["--logits", "n.npy", "--labels", "n.npy", "em"], "give --train-counts FILE"),
        (["TEST", "--bias", "n.npy", "em"], "--bias goes with --classifier"),
        (["TEST", "em", "eval.ruel=oltr"], "unknown key eval.ruel"),
    ],
)
def test_the_command_says_what_is_wrong(folders, words, said):
    np.save(folders / "n.npy", COUNTS)
    places = {"TEST/predictions.npz": folders / "a/test/predictions.npz", "ZERO": folders / "z/test"}
    places |= {"TEST": folders / "a/test", "VALIDATION": folders / "a/validation", "n.npy": folders / "n.npy"}
    before = {path: path.read_bytes() for path in folders.rglob("*.*") if path.is_file()}
    with pytest.raises(UserError) as caught:
        invoke(*(places.get(word, word) for word in words))
    assert said in str(caught.value)
    assert {path: path.read_bytes() for path in folders.rglob("*.*") if path.is_file()} == before


@pytest.mark.slow
def test_a_process_of_its_own(folders):
    words = [folders / "a/test", "--tune", folders / "a/validation", "logit-adjustment", "--out", folders / "out"]
    program = "import sys; from hf_vlr.cli.posthoc import command; command(sys.argv[1:], prog_name='hf-vlr posthoc')"
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", program, *map(str, words)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (folders / "out" / "report.html").read_text(encoding="utf-8").count("visual + logit-adjustment") > 1
