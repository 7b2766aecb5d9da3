"""`hf-vlr eval` as it is typed."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from hf_vlr.cli.main import main
from hf_vlr.data.texts.clip_templates import clip_templates
from hf_vlr.data.texts.parts import part_rows
from hf_vlr.errors import UserError

SPEC = importlib.util.spec_from_file_location("foreign", Path(__file__).with_name("foreign.py"))
foreign = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(foreign)
FAST = ["eval.resamples=0", "eval.report=false"]


@pytest.fixture
def hf_vlr(capsys):
    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        return end.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def arrays(tmp_path) -> list[str]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 4)
    np.save(tmp_path / "logits.npy", rng.normal(size=(12, 3)) + 3 * np.eye(3)[labels])
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "counts.npy", np.array([200, 40, 5]))
    names = ("logits", "labels", "train-counts")
    files = ("logits.npy", "labels.npy", "counts.npy")
    return [word for name, file in zip(names, files, strict=True) for word in (f"--{name}", str(tmp_path / file))]


def test_help_teaches(hf_vlr):
    code, out, _ = hf_vlr("eval", "--help")
    assert code == 0
    for taught in ("openai/clip-vit-base-patch32", "--logits logits.npy", "report.html", "data.cache_dir=off"):
        assert taught in out


def test_arrays_are_measured_and_written(hf_vlr, arrays, tmp_path):
    words = ["eval.rule=custom:100,20", "protocol.split=test", "protocol.resolution=224", *FAST]
    code, out, _ = hf_vlr("eval", *arrays, *words, "--predictor", "theirs", "--out", tmp_path / "out")
    assert code == 0
    assert out.startswith("test: 12 images\n")
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(document["predictors"]) == ["theirs"]
    labels, logits = np.load(tmp_path / "labels.npy"), np.load(tmp_path / "logits.npy")
    assert document["predictors"]["theirs"]["accuracy"] == (logits.argmax(1) == labels).mean()
    assert {name: group["classes"] for name, group in document["predictors"]["theirs"]["groups"].items()} == {
        "many": 1,
        "medium": 1,
        "few": 1,
    }
    assert (document["protocol"]["split"], document["protocol"]["resolution"]) == ("test", "224")
    assert document["protocol"]["pretraining"] is None
    # the same predictions under another rule, without the files they came from
    (tmp_path / "logits.npy").unlink()
    code, _, _ = hf_vlr("eval", "--predictions", tmp_path / "out", "eval.rule=custom:10,2", *FAST)
    again = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert code == 0
    assert again["predictors"]["theirs"]["groups"]["many"]["classes"] == 2
    assert again["protocol"]["split"] == "test"


def test_arrays_without_out_are_only_printed(hf_vlr, arrays, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    code, out, _ = hf_vlr("eval", *arrays, *FAST)
    assert code == 0
    assert "logits" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_model_is_measured_against_a_reference(hf_vlr, tmp_path):
    folder = foreign.save_clip(tmp_path / "clip")
    words = [*foreign.SMALL_DATA, "eval.resamples=0", "data.texts=clip-templates:1", "--data", "shapes-lt"]
    code, out, _ = hf_vlr("eval", folder, *words, *FAST, "--split", "validation", "--out", tmp_path / "first")
    assert code == 0
    assert "validation: 12 images" in out
    first = tmp_path / "first" / "eval" / "validation"
    reported = (*words, "eval.crops=five", "--split", "validation", "--reference", first, "--out", tmp_path / "second")
    code, out, _ = hf_vlr("eval", folder, *reported)
    assert code == 0
    assert "12 images, five crops, 5 forward passes" in out
    assert (tmp_path / "second" / "eval" / "validation" / "report.html").stat().st_size > 10_000
    code, _, err = hf_vlr("eval", folder, *words, *FAST, "--reference", first)
    assert code == 2
    assert "error: the reference has 12 images, these predictions 18" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a MODEL, or give --logits or --predictions"),
        (["model"], "Missing option '--data'. It says what model is measured on"),
        (["model", "--data", "shapes-lt", "--labels", "x.npy"], "--labels goes with --logits"),
        (["nowhere/at/all", "--data", "shapes-lt"], "model nowhere/at/all cannot be read: "),
        (["nowhere", "--data", "shapes-lt", "--split", "tset"], "eval.splits="),
        (["--logits", "no.npy"], "--logits needs --labels FILE"),
        (["--logits", "no.npy", "--labels", "l.npy"], "--logits needs --train-counts FILE"),
        (
            ["--logits", "no.npy", "--data", "shapes-lt"],
            "--data is for a MODEL; with --logits write protocol.split=",
        ),
        (["--predictions", "no", "--logits", "l.npy"], "give --logits or --predictions, not both"),
        (["--predictions", "no", "--labels", "l.npy"], "--labels goes with --logits"),
        (["--predictions", "no"], "no holds no predictions.npz"),
    ],
)
def test_a_mistake_is_one_line(hf_vlr, words, said):
    code, out, err = hf_vlr("eval", *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data.workers=2", "data.workers=2: of predictions that exist, only eval.KEY and protocol.FIELD can be said"),
        ("protocol.splitt=test", "protocol.splitt is no field of the protocol; there are: split, "),
        ("eval.ruel=oltr", "unknown key eval.ruel"),
        ("eval.mixed_convention=true", "the mixed convention needs the predictors fused, visual, language"),
        ("eval.rule=custom:1", "shot rule 'custom:1' needs two integers"),
    ],
)
def test_words_that_mean_nothing_for_arrays_are_one_line(hf_vlr, arrays, word, said):
    code, _, err = hf_vlr("eval", *arrays, word)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


def test_one_template_needs_no_other_package(monkeypatch):
    monkeypatch.setattr("hf_vlr.data.texts.clip_templates.find_spec", lambda name: None)
    clip_templates.cache_clear()
    rows = list(part_rows("clip-templates:1", ["red_fox", "birds/tit"]))
    assert [row.text for row in rows] == ["a photo of a red fox.", "a photo of a tit, birds."]
    with pytest.raises(UserError, match="install it"):
        list(part_rows("clip-templates:7", ["red fox"]))
    with pytest.raises(UserError, match="there are 1, 7 and 80"):
        part_rows("clip-templates:8", ["red fox"])


def test_seven_and_eighty_templates():
    clip_templates.cache_clear()
    pytest.importorskip("open_clip")
    assert len(list(part_rows("clip-templates:7", ["fox"]))) == 7
    assert "itap of a fox." in [row.text for row in part_rows("clip-templates:7", ["fox"])]
    eighty = [row.text for row in part_rows("clip-templates", ["fox"])]
    assert len(eighty) == 80
    assert eighty == [row.text for row in part_rows("clip-templates:80", ["fox"])]


@pytest.mark.parametrize("word", ["eval.crops=five", "eval.splits=[validation]", "eval.batch_size=2"])
def test_what_only_a_model_can_be_asked_for_is_refused(hf_vlr, arrays, tmp_path, word):
    said = f"error: {word}: predictions that exist stay as they are; {word.partition('=')[0]} is for a MODEL\n"
    assert hf_vlr("eval", *arrays, *FAST, word) == (2, "", said)
    assert hf_vlr("eval", *arrays, *FAST, "--out", tmp_path / "out")[0] == 0
    assert hf_vlr("eval", "--predictions", tmp_path / "out", *FAST, word) == (2, "", said)


def test_predictions_may_be_named_by_their_file(hf_vlr, arrays, tmp_path):
    folder = tmp_path / "out"
    assert hf_vlr("eval", *arrays, *FAST, "protocol.split=test", "--out", folder)[0] == 0
    before = (folder / "predictions.npz").stat().st_mtime_ns
    code, out, err = hf_vlr("eval", "--predictions", folder / "predictions.npz", "eval.rule=custom:10,2", *FAST)
    assert (code, err) == (0, "")
    assert out.startswith("test: 12 images")
    document = json.loads((folder / "metrics.json").read_text())
    assert document["protocol"]["rule"]["name"].startswith("custom")
    # the same folder, said in another way
    assert hf_vlr("eval", "--predictions", folder, *FAST, "--out", f"{folder}/../out")[0] == 0
    assert (folder / "predictions.npz").stat().st_mtime_ns == before
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "per_class.csv", "predictions.npz"]


@pytest.mark.parametrize("name", ["nothere", "./no/model", "a/b/c", "~/nothere"])
def test_a_folder_that_is_not_there_is_not_asked_of_the_hub(hf_vlr, name):
    said = f"error: model {name} cannot be read: there is no such folder, and a model on the Hub is called ORG/NAME\n"
    assert hf_vlr("eval", name, "--data", "shapes-lt", *foreign.SMALL_DATA) == (2, "", said)


def test_a_model_that_is_neither_here_nor_on_the_hub_is_called_so(hf_vlr):
    _, _, err = hf_vlr("eval", "nobody/nothing", "--data", "shapes-lt", *foreign.SMALL_DATA)
    assert err.startswith("error: model nobody/nothing cannot be read: there is no such folder, and on the Hub: ")


def test_no_split_is_nothing_to_measure(hf_vlr, tmp_path):
    folder = foreign.save_clip(tmp_path / "clip")
    for command in (["eval"], ["protocol", "zero-shot"]):
        code, _, err = hf_vlr(*command, folder, "--data", "shapes-lt", *foreign.SMALL_DATA, "eval.splits=[]")
        assert code == 2
        assert err.endswith("eval.splits=[] leaves nothing to measure; name a split, e.g. eval.splits=test\n")
        assert err.count("\n") == 1
