"""`hf-vlr export` as it is typed, and its folder in a process without torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from hf_vlr import UniCLModel, VLLTRForImageClassification
from hf_vlr.cli.export import command
from hf_vlr.errors import UserError
from hf_vlr.evaluate import recipe_of
from hf_vlr.export import exporting, extra
from hf_vlr.export.sessions import Session
from hf_vlr.export.told import accuracy_lines
from hf_vlr.training.options import Recipe
from hf_vlr.training.run_data import transforms

# a process that has onnxruntime, numpy, pillow and tokenizers, and none of these
WITHOUT = """
import runpy, sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "transformers", "hf_vlr", "timm", "onnx"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Without())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_without_torch(*words: object) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *map(str, words)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def export(capsys, *words: object) -> list[str]:
    command.main([str(word) for word in words], standalone_mode=False)
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def recogniser(tiny, tmp_path) -> Path:
    tiny.recogniser(vision="resnet").save_pretrained(tmp_path / "model")
    tiny.processor().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def encoder(tiny, tmp_path) -> Path:
    tiny.model().save_pretrained(tmp_path / "encoder")
    tiny.processor().save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture
def data(tiny, tmp_path) -> str:
    """Five classes of 6, 5, 4, 3 and 2 training images, one of each held out for validation, and two test images."""
    for label, name in enumerate(tiny.CLASS_NAMES):
        for split, count in (("train", 6 - label), ("test", 2)):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                tiny.picture(100 * label + 10 * count + number, (40 + label, 36)).save(folder / f"{number}.png")
    return f"imagefolder:{tmp_path / 'photos'}"


def test_a_recogniser_is_served_without_torch(tiny, recogniser, tmp_path, capsys):
    said = export(capsys, recogniser, "--out", tmp_path / "served")
    assert sorted(path.name for path in (tmp_path / "served").iterdir()) == [
        "example.py",
        "export.json",
        "labels.json",
        "model.onnx",
        "preprocessor.json",
    ]
    assert not any("accuracy" in line or "balanced" in line for line in said)
    record = json.loads((tmp_path / "served" / "export.json").read_text())
    assert record["model"] == "model"
    assert all(errors["relative"] <= 1e-5 for errors in record["parity"]["model.onnx"].values())
    labels = json.loads((tmp_path / "served" / "labels.json").read_text())
    assert labels["id2label"] == {str(index): name for index, name in enumerate(tiny.CLASS_NAMES)}
    assert labels["train_images"] == [120, 60, 25, 7, 1]
    assert labels["shot"] == ["many", "medium", "medium", "few", "few"]

    # a transparent picture whose sides are odd
    picture = tiny.picture(3, (71, 45)).convert("RGBA")
    picture.putalpha(128)
    picture.save(tmp_path / "one.png")
    lines = run_without_torch(tmp_path / "served" / "example.py", tmp_path / "one.png")
    found = VLLTRForImageClassification.from_pretrained(recogniser).predict(tmp_path / "one.png", top_k=5)[0]
    assert [line.split(None, 1)[1] for line in lines] == [one["label"] for one in found["classes"]]
    for line, one in zip(lines, found["classes"], strict=True):
        assert float(line.split("%")[0]) / 100 == pytest.approx(one["score"], abs=1e-3)


@pytest.mark.slow
def test_a_dual_encoder_becomes_two_towers(tiny, encoder, tmp_path, capsys):
    export(capsys, encoder, "--out", tmp_path / "served")
    model = UniCLModel.from_pretrained(encoder).eval()
    sentences = ["a fox", "a grey wolf that hunts at dusk " * 4, "lynx"]
    lines = run_without_torch(tmp_path / "served" / "example_texts.py", *sentences)
    tokens = AutoTokenizer.from_pretrained(encoder)(
        sentences, padding=True, truncation=True, max_length=tiny.POSITIONS, return_tensors="pt"
    )
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(model.get_text_features(**tokens), dim=-1)
    assert [float(line.split()[0]) for line in lines] == pytest.approx((vectors @ vectors[0]).tolist(), abs=1e-4)

    paths = [tmp_path / f"{seed}.png" for seed in range(3)]
    for seed, path in enumerate(paths):
        tiny.picture(seed).save(path)
    lines = run_without_torch(tmp_path / "served" / "example.py", *paths)
    transform, _ = transforms(Recipe(task="cvlp").data, tiny.processor().image_processor)
    pixels = torch.stack([transform(tiny.picture(seed)) for seed in range(3)])
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(model.get_image_features(pixels), dim=-1)
    assert [float(line.split()[0]) for line in lines] == pytest.approx((vectors @ vectors[0]).tolist(), abs=1e-4)


@pytest.mark.slow
def test_int8_is_measured_on_the_test_split(recogniser, data, tmp_path, capsys):
    words = ("--int8", "--data", data, "int8.images=8", "int8.margin=1", "latency.runs=1")
    said = export(capsys, recogniser, "--out", tmp_path / "served", *words)
    record = json.loads((tmp_path / "served" / "export.json").read_text())
    told = record["int8"]
    assert (told["kind"], told["calibration_images"]) == ("static", 8)
    sizes = {name: (tmp_path / "served" / name).stat().st_size for name in ("model.onnx", "model.int8.onnx")}
    assert list(told["bytes"].values()) == list(sizes.values())
    change = told["accuracy"]
    assert change["images"] == 10
    names = [f"{name} {kind}" for name in ("fused", "visual", "language") for kind in ("float32", "int8")]
    assert sorted(change["predictors"]) == sorted(names)
    # by hand, from the files that were written
    hits, guesses = expected_hits(recogniser, tmp_path / "served", tmp_path / "photos" / "test")
    for kind, count in hits.items():
        assert change["predictors"][f"fused {kind}"]["accuracy"] == pytest.approx(count / 10)
    agreed = np.mean([one == other for one, other in zip(*guesses.values())])
    assert change["agreement"]["fused"]["share"] == pytest.approx(agreed)
    assert list(record["latency"]["forward"]) == ["torch float32, eager", "onnxruntime float32", "onnxruntime int8"]
    assert any("stays within the margin (100.0 points)" in line for line in said)
    change["falls"] = {"accuracy": 0.031}
    assert "int8 falls beyond the margin (100.0 points): accuracy by 3.1 points" in accuracy_lines(record)


def expected_hits(model: Path, served: Path, test: Path) -> tuple[dict[str, int], dict[str, list[str]]]:
    """How many test images each file names rightly, and what it calls them."""
    from PIL import Image
    from transformers import AutoImageProcessor

    names = list(json.loads((served / "labels.json").read_text())["id2label"].values())
    processor = AutoImageProcessor.from_pretrained(model)
    hits, guesses = {}, {}
    for kind, file in (("float32", "model.onnx"), ("int8", "model.int8.onnx")):
        session = Session(served / file)
        found = []
        for path in sorted(test.glob("*/*.png")):
            pixels = processor(images=Image.open(path), return_tensors="np")["pixel_values"]
            found.append((names[int(session.run(pixel_values=pixels)["logits"].argmax())], path.parent.name))
        hits[kind] = sum(one == other for one, other in found)
        guesses[kind] = [one for one, _ in found]
    return hits, guesses


@pytest.mark.slow
def test_classes_are_put_into_a_dual_encoder(tiny, encoder, data, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("red fox\nlynx\n")
    export(capsys, encoder, "--out", tmp_path / "a", "--class-names", tmp_path / "names.txt", "--texts", "templates")
    labels = json.loads((tmp_path / "a" / "labels.json").read_text())
    assert labels == {
        "id2label": {"0": "red fox", "1": "lynx"},
        "train_images": None,
        "shot": None,
        "shot_rule": None,
    }
    said = export(
        capsys, encoder, "--out", tmp_path / "b", "--int8", "--data", data, "int8.kind=dynamic", "latency.runs=1"
    )
    record = json.loads((tmp_path / "b" / "export.json").read_text())
    assert record["kind"] == "zero-shot classifier"
    assert record["int8"]["kind"] == "dynamic"
    assert list(record["parity"]["model.onnx"]) == ["logits", "image_features"]
    assert any(line.startswith(" all texts int8") for line in said)
    assert json.loads((tmp_path / "b" / "labels.json").read_text())["train_images"] == [4, 3, 2, 5, 1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--int8"], "convolutions is calibrated on training images: add --data SOURCE"),
        (["--int8", "int8.kind=static"], "convolutions is calibrated on training images: add --data SOURCE"),
        (["--class-names", "names.txt", "--data", "shapes-lt"], "without --data, which has classes of its own"),
        (["--texts", "templates"], "texts of which classes"),
        (["int8.size=3"], "there is no setting int8.size"),
    ],
)
def test_nothing_is_left_where_something_is_wrong(recogniser, tmp_path, capsys, monkeypatch, words, said):
    # and nothing is written before it is said
    monkeypatch.setattr(exporting, "write_image_graph", None)
    with pytest.raises(UserError, match=said):
        export(capsys, recogniser, "--out", tmp_path / "served", *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names.txt has no class names; give two or more"),
        ("\n \n", "names.txt has no class names; give two or more"),
        ("lynx\n\n", "names.txt has one class name; give two or more"),
        ("lynx\nwolf\nlynx \n", "names.txt names 'lynx' more than once"),
    ],
)
def test_names_that_make_no_classifier(encoder, tmp_path, capsys, text, said):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(UserError, match=said):
        export(capsys, encoder, "--out", tmp_path / "served", "--class-names", tmp_path / "names.txt")
    assert not (tmp_path / "served").exists()


def test_a_recogniser_takes_no_names(recogniser, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("lynx\nwolf\n")
    with pytest.raises(UserError, match="--class-names is for a dual encoder; the recogniser model has classes"):
        export(capsys, recogniser, "--out", tmp_path / "served", "--class-names", tmp_path / "names.txt")


def test_options_of_the_runs_source_are_not_anothers(recogniser, data, tmp_path, capsys):
    (tmp_path / "model" / "recipe.yaml").write_text(
        "task: recognition\ndata:\n  source: shapes-lt\n  options:\n    classes: 12\n"
    )
    export(capsys, recogniser, "--out", tmp_path / "a", "--data", data)
    assert (tmp_path / "a" / "model.onnx").is_file()
    # those that are given for it are
    with pytest.raises(UserError, match="unknown data option"):
        export(capsys, recogniser, "--out", tmp_path / "b", "--int8", "--data", data, "data.options.classes=5")
    # and those of the same kind are kept
    for source, kept in (("shapes-lt", {"classes": 12}), (data, {}), (f"{data}x", {})):
        assert recipe_of(str(recogniser), [f"data.source={source}"]).data.options == kept


def test_an_empty_out_is_named(recogniser, capsys):
    with pytest.raises(UserError, match="--out is empty: name a new folder"):
        export(capsys, recogniser, "--out", "")


@pytest.mark.parametrize("name", ["classes", "features", "texts"])
def test_the_programs_say_how_they_are_called(name):
    from hf_vlr.export.writing import EXAMPLES

    template = str(EXAMPLES / f"{name}.py.template")
    done = subprocess.run([sys.executable, template], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("usage: python example") and "\n" not in done.stderr[:-1]


def test_the_program_refuses_what_is_no_picture(recogniser, tmp_path, capsys):
    export(capsys, recogniser, "--out", tmp_path / "served")
    (tmp_path / "text.txt").write_text("no picture")
    for name in ("text.txt", "missing.png"):
        words = [sys.executable, str(tmp_path / "served" / "example.py"), str(tmp_path / name)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
        assert f"{name} cannot be read as a picture" in done.stderr


def test_a_folder_in_use_is_not_touched(recogniser, tmp_path, capsys):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="served already exists; name a new folder"):
        export(capsys, recogniser, "--out", tmp_path / "served")
    assert [path.name for path in (tmp_path / "served").iterdir()] == ["mine.txt"]


def test_a_crash_leaves_no_folder(recogniser, tmp_path, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "write_examples", crash)
    with pytest.raises(KeyboardInterrupt):
        exporting.export_model(str(recogniser), tmp_path / "served")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_model_of_another_kind_is_told_the_way(tmp_path, capsys):
    from transformers import CLIPConfig

    CLIPConfig().save_pretrained(tmp_path / "clip")
    with pytest.raises(UserError, match=r"\(clip\) cannot be exported.*hf-vlr convert --from hf-clip"):
        export(capsys, tmp_path / "clip", "--out", tmp_path / "served")


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    how = r"not installed: in the package's repository, pip install -e \"\.\[export\]\""
    for packages, said in (
        (("onnx", "not_there"), f"^not_there is {how}"),
        (("not_there", "nor_this"), f"^not_there and nor_this are {how}"),
    ):
        monkeypatch.setattr(extra, "PACKAGES", packages)
        with pytest.raises(UserError, match=said):
            exporting.export_model("anything", tmp_path / "served")
