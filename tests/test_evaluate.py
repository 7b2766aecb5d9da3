"""`evaluate_checkpoint` on folders that training wrote, and the quickstart as a whole."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hf_vlr.errors import UserError
from hf_vlr.evaluate import evaluate_checkpoint
from hf_vlr.training.run import train_recipe

TINY = [
    "data.options.classes=6",
    "data.options.unseen=2",
    "data.options.max_count=6",
    "data.options.imbalance=3",
    "data.options.size=16",
    "data.options.test=3",
    "data.options.validation=2",
    "train.steps=3",
    "train.batch_size=8",
    "train.save_every=3",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    one = train_recipe("shapes-stage1", [*TINY, "data.image_size=16"], str(root / "one"))
    two = train_recipe("shapes-stage2", [*TINY, f"model.init={one}"], str(root / "two"))
    return {"one": one, "two": two}


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())["predictors"]


def test_a_recogniser_measures_the_same_after_a_round_trip(runs, tmp_path):
    documents = evaluate_checkpoint(str(runs["two"]), [], str(tmp_path / "again"))
    for name, before in metrics(runs["two"]).items():
        after = documents[0]["predictors"][name]
        for number in ("accuracy", "balanced_accuracy", "macro_f1", "nll", "ece"):
            assert after[number] == pytest.approx(before[number], rel=1e-5), (name, number)
    assert set(documents[0]["predictors"]) == {"fused", "visual", "language"}
    assert metrics(tmp_path / "again" / "eval" / "test") == documents[0]["predictors"]
    with np.load(tmp_path / "again" / "eval" / "test" / "predictions.npz", allow_pickle=False) as stored:
        assert stored["fused"].shape == (18, 6)
        np.testing.assert_allclose(np.exp(stored["fused"]).sum(1), 1, rtol=1e-5)


def test_a_dual_encoder_is_measured_by_its_texts_also_on_unseen_classes(runs):
    seen, unseen = evaluate_checkpoint(str(runs["one"]), ["eval.splits=[test,unseen]"])
    assert set(seen["predictors"]) == set(unseen["predictors"]) == {"all texts"}
    assert seen["predictors"]["all texts"]["num_classes"] == 6
    assert unseen["predictors"]["all texts"]["num_classes"] == 2
    assert (runs["one"] / "eval" / "unseen" / "per_class.csv").is_file()


def test_other_classes_than_the_model_knows_are_refused(runs, tmp_path):
    with pytest.raises(UserError, match="6"):
        evaluate_checkpoint(str(runs["two"]), ["data.options.classes=5"])
    folder = shutil.copytree(runs["two"], tmp_path / "reordered")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"]["0"], config["id2label"]["1"] = config["id2label"]["1"], config["id2label"]["0"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="another order"):
        evaluate_checkpoint(str(folder), [])


def test_weights_that_are_cut_short_are_refused(runs, tmp_path):
    folder = shutil.copytree(runs["two"], tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        evaluate_checkpoint(str(folder), [])


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        evaluate_checkpoint(str(tmp_path / "nothing"), [])
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="bert"):
        evaluate_checkpoint(str(tmp_path), [])


@pytest.mark.slow
def test_quickstart_tells_the_whole_story(tmp_path, capsys):
    from hf_vlr.quickstart import quickstart

    rows = quickstart(str(tmp_path / "qs"), smoke=True)
    shown = capsys.readouterr().out
    assert [*rows] == [
        "untrained (chance)",
        "visual only, MLP head",
        "visual only, linear head",
        "stage 1, by its texts",
        "stage 2, language-guided",
    ]
    assert rows["visual only, MLP head"]["accuracy"] > 3 * rows["untrained (chance)"]["accuracy"]
    assert "never seen in training" in shown and "from_pretrained" in shown
    assert len(list((tmp_path / "qs" / "examples").glob("*.png"))) == 3
    with pytest.raises(UserError, match="not empty"):
        quickstart(str(tmp_path / "qs"), smoke=True)
