"""What a user can get wrong: one line that names the thing and the fix, exit code 2, nothing half-written."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from hf_vlr.cli.main import main

RECIPE = """
task: cvlp
data: {image_size: 16, max_text_length: 16, folds: 2, fold: 0, validation_fraction: 0.0}
model: {vision: scratch:resnet, projection_dim: 8, num_anchors: 2}
train: {steps: 3, batch_size: 4, log_every: 1}
"""
SHAPES = (
    "--data",
    "shapes-lt",
    "data.folds=null",
    "data.fold=null",
    "data.options={classes: 4, unseen: 0, max_count: 4}",
)


@pytest.fixture
def photos(tmp_path) -> Path:
    """An image folder of two classes, six pictures each."""
    folder = tmp_path / "photos"
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for index in range(6):
            pixels = np.random.default_rng(index).integers(0, 99, (20, 20, 3)) + 80 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture
def train(tmp_path, capsys):
    """Run `hf-vlr train` in this process; gives the exit code, stdout and stderr."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(RECIPE)

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["train", str(recipe), "--out", str(tmp_path / "run"), *map(str, words)])
        return caught.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(train, tmp_path):
    """Train on something wrong; the error's line, after a look at all that must hold for every error."""

    def run(*words: str) -> str:
        code, _, err = train(*words)
        complaint = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 2
        assert "Traceback" not in err
        assert len(complaint) == 1
        assert err.endswith(f"{complaint[0]}\n")
        assert not (tmp_path / "run").exists()
        return complaint[0].removeprefix("error: ")

    return run


def test_the_photos_are_good(train, photos, tmp_path):
    code, out, err = train("--data", f"imagefolder:{photos}")
    assert (code, [line for line in err.splitlines() if line.startswith("error")]) == (0, [])
    assert "written to" in out
    assert (tmp_path / "run" / "config.json").is_file()


def test_a_missing_folder(refused, tmp_path):
    said = refused("--data", f"imagefolder:{tmp_path / 'gone'}")
    assert said == f"{tmp_path / 'gone'}: there is no such folder; check the path in data.source"


def test_an_empty_class(refused, photos):
    (photos / "emu").mkdir()
    said = refused("--data", f"imagefolder:{photos}")
    assert said == f"imagefolder:{photos}: no train images for class emu; add images or remove the class"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image(refused, photos, workers):
    for path in (photos / "dog").iterdir():  # whichever fold and batch it comes in
        path.write_bytes(path.read_bytes()[:60])
    said = refused("--data", f"imagefolder:{photos}", f"data.workers={workers}")
    assert said.startswith(str(photos / "dog"))
    assert ".png: not a readable image (" in said
    assert said.endswith("; replace it or remove it")


def test_a_class_without_text(refused, photos, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"class_name": "cat", "text": "a small beast"}\n')
    said = refused("--data", f"imagefolder:{photos}", f"data.texts={texts}")
    assert said == "no text for class dog; add sentences for it or join '+templates' to data.texts"


def test_a_text_for_no_class(refused, photos, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"label": 7, "text": "a small beast"}\n')
    said = refused("--data", f"imagefolder:{photos}", f"data.texts={texts}")
    assert said == f"{texts} line 1: label 7 is outside 0 … 1; mend or remove it"


def parquet(folder: Path, labels: list[int | None], feature) -> Path:
    """A Parquet dataset with these labels, read as `feature` says."""
    folder.mkdir()
    images = [Image.new("RGB", (16, 16), (20 * i, 9, 90)) for i in range(len(labels))]
    features = Features({"image": ImageFeature(), "label": feature, "text": Value("string")})
    columns = {"image": images, "label": labels, "text": [f"picture {i}" for i in range(len(labels))]}
    Dataset.from_dict(columns, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


def test_a_label_outside_the_range(refused, tmp_path):
    folder = parquet(tmp_path / "set", [0, 1, -3, 1, 0, 1], Value("int64"))
    said = refused("--data", folder)
    assert "row 2: label -3 is outside -1 … 1; mend it" in said


def test_recognition_of_unlabelled_pairs(refused, tmp_path):
    folder = parquet(tmp_path / "set", [0, 1, None, 1, 0, 1, 0, 1], ClassLabel(names=["cat", "dog"]))
    said = refused("--data", folder, "task=recognition", "data.fold=1")
    assert said == f"task=recognition needs a label for every image; {folder} has 1 without: task=unicl"


def test_a_loss_that_is_not_a_number(refused, photos):
    said = refused("--data", f"imagefolder:{photos}", "optim.lr=1e30", "optim.warmup_fraction=0", "train.steps=9")
    assert "first at epoch 0, batch 1 (training rows " in said
    assert "lower optim.lr (now 1e+30)" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model.visoin=x"], "unknown key model.visoin; did you mean model.vision?"),
        (["data.fold=null"], "data.folds=2 needs data.fold, the fold that is tested (0 … 1)"),
        (["data.fold=2"], "data.fold=2 must be below data.folds=2"),
        (["vision=scratch:resent"], "model.vision=scratch:resent is unknown; did you mean resnet? There are: "),
        (["model.freeze=vision_model", "data.cache_views=1"], "data.cache_views needs a frozen text tower in stage 1"),
        (["model.language=false"], "task=cvlp needs language: leave model.language true"),
        (["eval.splits=unseen"], "imagefolder:PHOTOS has no split 'unseen'; only shapes-lt has one"),
        (["data.folds=null", "data.fold=null"], "imagefolder:PHOTOS has no test split; set data.folds=4 data.fold=0"),
        (["optim.lr_scales.vision_tower=0.1"], "optim.lr_scales.vision_tower names no trained module of this model"),
        (
            [
                "model.freeze="
                + ",".join(("vision_model", "text_model", "visual_projection", "text_projection", "logit_scale"))
            ],
            "nothing to train: every part of the model is in model.freeze",
        ),
        (["task=recognition", "model.fusion_weight=null"], "imagefolder:PHOTOS has no validation split; "),
        (["data.texts=nowhere.jsonl"], "nowhere.jsonl: there is no such file of class texts; check data.texts"),
    ],
)
def test_a_recipe_that_does_not_work(words, expected, refused, photos):
    assert refused("--data", f"imagefolder:{photos}", *words).startswith(expected.replace("PHOTOS", str(photos)))


def test_a_start_from_nothing(refused, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "gone", "no-such/model"):
        said = refused("--data", f"imagefolder:{photos}", f"model.init={place}")
        assert said.startswith(f"model.init={place}: no checkpoint there (")


def test_a_start_from_another_model(refused, photos, tmp_path):
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "bert")
    said = refused("--data", f"imagefolder:{photos}", f"model.init={tmp_path / 'bert'}")
    assert said.startswith(f"model.init={tmp_path / 'bert'} is a 'bert' checkpoint; it must be unicl, vlltr or clip ")


def test_a_start_from_a_damaged_model(train, refused, photos, tmp_path):
    assert train("--data", f"imagefolder:{photos}")[0] == 0
    (tmp_path / "run").rename(tmp_path / "first")
    weights = tmp_path / "first" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    said = refused("--data", f"imagefolder:{photos}", f"model.init={tmp_path / 'first'}")
    assert said.startswith(f"model.init={tmp_path / 'first'} cannot be loaded: ")


def test_an_occupied_folder(train, photos, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "letter.txt").write_text("mine")
    code, _, err = train("--data", f"imagefolder:{photos}")
    assert (code, err) == (2, f"error: output={run} holds other files; name a new folder with out=\n")
    assert [path.name for path in run.iterdir()] == ["letter.txt"]
    (run / "letter.txt").unlink()
    assert train("--data", f"imagefolder:{photos}")[0] == 0
    before = load_file(run / "model.safetensors")
    code, _, err = train("--data", f"imagefolder:{photos}")
    assert code == 2
    assert err == f"error: output={run} already holds a run; go on with --resume, or name another folder with out=\n"
    assert all(torch.equal(value, before[key]) for key, value in load_file(run / "model.safetensors").items())
    code, _, err = train("--data", f"imagefolder:{photos}", "--resume", "seed=5")
    assert (code, err) == (2, f"error: cannot resume {run} with another seed; start anew with out=\n")


def test_a_file_in_the_place_of_the_folder(train, photos, tmp_path):
    (tmp_path / "run").write_text("mine")
    code, _, err = train("--data", f"imagefolder:{photos}")
    assert (code, err) == (2, f"error: output={tmp_path / 'run'} is a file; name a folder\n")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_damaged_checkpoint(train, photos, tmp_path):
    assert train("--data", f"imagefolder:{photos}")[0] == 0
    (path, *_) = sorted((tmp_path / "run" / "checkpoints").iterdir())[::-1]
    path.write_bytes(b"")
    code, _, err = train("--data", f"imagefolder:{photos}", "--resume")
    assert code == 2
    assert f"error: checkpoint {path} cannot be resumed from (" in err.splitlines()[-1]


def test_generated_data_that_cannot_be(refused):
    assert refused(*SHAPES, "data.options.classes=1").startswith("classes=1 of shapes-lt must be at least 2")
    said = refused(*SHAPES, "data.folds=2", "data.fold=0")
    assert said == "shapes-lt has its own test split; leave data.folds and data.fold out"
    said = refused(*SHAPES, "eval.splits=unseen")
    assert said == "shapes-lt has no unseen classes; set data.options.unseen above 0"
    said = refused(*SHAPES, "eval.splits=test,unseen", "data.options.unseen=2")
    assert said == "eval.splits=unseen: its classes are not the trained ones; measure it with `hf-vlr eval`"
