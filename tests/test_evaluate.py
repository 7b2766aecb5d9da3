"""`evaluate_checkpoint` on folders that training wrote, on anybody's models, and the quickstart as a whole."""

import importlib.util
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoTokenizer,
)

from hf_vlr.errors import UserError
from hf_vlr.evaluate import evaluate_checkpoint, recipe_of
from hf_vlr.evaluation.class_texts import class_texts
from hf_vlr.evaluation.encoders import open_encoder
from hf_vlr.evaluation.predictions import read_predictions
from hf_vlr.evaluation.subjects import open_subject
from hf_vlr.protocols.inputs import Inputs
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import override_recipe, recipe_to_yaml
from hf_vlr.training.run import train_recipe
from hf_vlr.training.run_data import load_split

FAST = ["eval.report=false", "eval.resamples=0"]
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
    # the same images go by the same names
    again, first = read_predictions(tmp_path / "again" / "eval" / "test"), read_predictions(runs["two"])
    assert again.rows.tolist() == first.rows.tolist()
    assert len(set(again.rows.tolist())) == 18
    assert {**again.protocol, "training": {}}.items() >= {**first.protocol, "training": {}}.items()


def test_a_dual_encoder_is_measured_by_its_texts_also_on_unseen_classes(runs):
    seen, unseen = evaluate_checkpoint(str(runs["one"]), ["eval.splits=[test,unseen]"])
    assert set(seen["predictors"]) == set(unseen["predictors"]) == {"all texts"}
    assert seen["predictors"]["all texts"]["num_classes"] == 6
    assert unseen["predictors"]["all texts"]["num_classes"] == 2
    assert (runs["one"] / "eval" / "unseen" / "per_class.csv").is_file()


def test_other_classes_than_the_model_knows_are_refused(runs):
    with pytest.raises(UserError, match=r"no output for . of the dataset's 7 classes"):
        evaluate_checkpoint(str(runs["two"]), ["data.options.classes=7"])
    with pytest.raises(UserError, match="knows 6 classes and the dataset has 7"):
        evaluate_checkpoint(str(runs["two"]), ["data.options.classes=7"], same_order=True)


def test_classes_in_another_order_are_found_by_their_names(runs, tmp_path):
    """A model whose outputs 0 and 1 change places, with their names, is the same model."""
    folder = shutil.copytree(runs["two"], tmp_path / "reordered")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"]["0"], config["id2label"]["1"] = config["id2label"]["1"], config["id2label"]["0"]
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    swapped = [1, 0, *range(2, 6)]
    for name, tensor in tensors.items():
        if name.startswith("head.") and tensor.ndim and len(tensor) == 6:
            tensors[name] = tensor[swapped].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    after = evaluate_checkpoint(str(folder), ["eval.report=false"])[0]["predictors"]
    for name, before in metrics(runs["two"]).items():
        assert after[name]["nll"] == pytest.approx(before["nll"], rel=1e-5)
        assert after[name]["groups"] == before["groups"]


def test_a_part_of_the_models_classes_can_be_asked_for(runs, capsys):
    document = evaluate_checkpoint(str(runs["two"]), ["data.options.classes=5", "eval.report=false"])[0]
    assert document["protocol"]["classes"] == "5 of the model's 6"
    assert "15 images, classes 5 of the model's 6" in capsys.readouterr().out


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


def load_foreign() -> ModuleType:
    spec = importlib.util.spec_from_file_location("foreign", Path(__file__).with_name("foreign.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


foreign = load_foreign()
QUIET = [*foreign.SMALL_DATA, "eval.report=false", "eval.resamples=0", "eval.batch_size=5"]


def class_names() -> list[str]:
    return load_split(recipe_of("nowhere", QUIET), "test").class_names


def pixels_of(folder: Path) -> torch.Tensor:
    source = load_split(recipe_of("nowhere", QUIET), "test")
    pictures = [source.images[index] for index in range(len(source))]
    return AutoImageProcessor.from_pretrained(folder)(images=pictures, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("name", ["clip", "siglip"])
@pytest.mark.parametrize("templates", ["clip-templates:1", "clip-templates:7"])
@torch.no_grad()
def test_zero_shot_scores_are_transformers_own(name, templates, tmp_path):
    """The ensemble of CLIP: normalised sentences, their mean, normalised, in the plain computation."""
    if templates == "clip-templates:7":
        pytest.importorskip("open_clip")
    folder = getattr(foreign, f"save_{name}")(tmp_path / name)
    document = evaluate_checkpoint(str(folder), [*QUIET, f"data.texts={templates}"])[0]
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    images = model.get_image_features(pixels_of(folder)).pooler_output
    images = images / images.norm(dim=-1, keepdim=True)
    if templates == "clip-templates:1":
        templates = ["a photo of a {c}."]
    else:
        from open_clip.zero_shot_metadata import SIMPLE_IMAGENET_TEMPLATES

        templates = [template("{c}") for template in SIMPLE_IMAGENET_TEMPLATES]
    vectors = []
    for title in class_names():
        sentences = [template.replace("{c}", title) for template in templates]
        full = {"padding": "max_length"} if name == "siglip" else {"padding": True}
        batch = tokenizer(sentences, truncation=True, max_length=24, return_tensors="pt", **full)
        given = {"input_ids": batch["input_ids"]} if name == "siglip" else batch
        texts = model.get_text_features(**given).pooler_output
        mean = (texts / texts.norm(dim=-1, keepdim=True)).mean(0)
        vectors.append(mean / mean.norm())
    expected = model.logit_scale.exp() * images @ torch.stack(vectors).T + getattr(model, "logit_bias", 0)
    found = read_predictions(folder / "eval" / "test")
    np.testing.assert_allclose(found.scores["all texts"], expected, atol=1e-4, rtol=1e-5)
    assert document["protocol"]["pretraining"] == str(folder)
    assert document["protocol"]["texts"].startswith("clip-templates:")
    assert document["protocol"]["seed"] is None
    assert found.train_counts.tolist() == load_split(recipe_of("nowhere", QUIET), "train").class_counts().tolist()


@pytest.mark.parametrize("name", ["vit", "resnet", "timm"])
@torch.no_grad()
def test_classifiers_of_others_give_their_own_logits_by_name(name, tmp_path):
    names = class_names()
    theirs = [f"{title.upper()}, no such thing" for title in reversed(names)] + ["something else"]
    folder = getattr(foreign, f"save_{name}")(tmp_path / name, theirs)
    document = evaluate_checkpoint(str(folder), QUIET)[0]
    logits = AutoModelForImageClassification.from_pretrained(folder).eval()(pixel_values=pixels_of(folder)).logits
    found = read_predictions(folder / "eval" / "test").scores["visual"]
    np.testing.assert_allclose(found, logits.flip(1)[:, 1:], atol=1e-5, rtol=1e-4)
    assert document["protocol"]["classes"] == "6 of the model's 7"
    assert document["protocol"]["resolution"] == 32
    assert document["protocol"]["task"] == "image classification"


def test_a_classifier_with_other_classes_needs_their_order(tmp_path):
    folder = foreign.save_vit(tmp_path, [f"LABEL_{index}" for index in range(6)])
    with pytest.raises(UserError, match=r"no output for 6 of the dataset's 6 classes.*--class-order"):
        evaluate_checkpoint(str(folder), QUIET)
    evaluate_checkpoint(str(folder), QUIET, same_order=True)
    assert (folder / "eval" / "test" / "metrics.json").is_file()


def test_a_classifier_without_its_last_layer_is_refused(tmp_path):
    folder = foreign.save_vit(tmp_path, class_names())
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "bare")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config))
    AutoImageProcessor.from_pretrained(folder).save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="lacks 2 weights, such as classifier"):
        evaluate_checkpoint(str(tmp_path / "bare"), QUIET)
    # without a classifier it names nothing
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config | {"architectures": ["ViTModel"]}))
    with pytest.raises(UserError, match="names nothing"):
        evaluate_checkpoint(str(tmp_path / "bare"), QUIET)


def test_a_second_evaluation_does_not_run_the_tower(tmp_path):
    folder = foreign.save_vit(tmp_path / "vit", class_names())
    recipe = recipe_of(str(folder), [*QUIET, f"data.cache_dir={tmp_path / 'states'}"])
    source, ran = load_split(recipe, "test"), []
    for _ in range(2):
        subject = open_subject(str(folder), recipe)
        subject.prepare(source, lambda: None)
        subject.model.register_forward_hook(lambda *_: ran.append(1))
        scores = subject.scores(source, subject.transform)
    assert len(ran) == 4  # 18 images by 5, once
    # crops are kept view by view, and their centre is the view that is there
    evaluate_checkpoint(str(folder), [*QUIET, f"data.cache_dir={tmp_path / 'states'}"])
    assert len(list((tmp_path / "states").iterdir())) == 1
    assert scores["visual"].shape == (18, 6)


@pytest.mark.parametrize("kind", ["one", "two", "resnet"])
def test_five_crops_are_the_mean_of_five_evaluations(kind, runs, tmp_path):
    if kind == "resnet":
        location, words = foreign.save_resnet(tmp_path / "resnet", class_names()), QUIET
    else:
        location, words = runs[kind], ["eval.report=false", "eval.resamples=0"]
    words = [*words, f"data.cache_dir={tmp_path / 'states'}"]
    one = evaluate_checkpoint(str(location), words, str(tmp_path / "one"))[0]
    kept = len(list((tmp_path / "states").glob("*")))
    five = evaluate_checkpoint(str(location), [*words, "eval.crops=five"], str(tmp_path / "five"))[0]
    assert one["protocol"]["test_time_augmentation"] is None
    assert five["protocol"]["test_time_augmentation"].startswith("five crops, 5 forward passes")
    # the ResNet's own view is its centre crop; ours sees the whole picture, so that all five are new
    assert len(list((tmp_path / "states").iterdir())) == kept + (4 if kind == "resnet" else 5)
    before, after = (read_predictions(tmp_path / name / "eval" / "test") for name in ("one", "five"))
    assert list(before.scores) == list(after.scores)
    for name in after.scores:
        assert not np.allclose(before.scores[name], after.scores[name])
        np.testing.assert_allclose(np.exp(after.scores[name]).sum(1), 1, rtol=1e-5)
    assert before.rows.tolist() == after.rows.tolist()


def test_examples_of_a_recogniser_show_what_it_attends_to(runs):
    recipe = recipe_of(str(runs["two"]), [])
    subject, source = open_subject(str(runs["two"]), recipe), load_split(recipe, "test")
    subject.prepare(source, lambda: None)
    model = AutoModelForImageClassification.from_pretrained(runs["two"])
    predicted = [model.predict(source.images[row], top_k=1, num_sentences=3)[0] for row in range(4)]
    found = subject.sentences(source.subset(range(4)), [one["index"] for one in predicted])
    for mine, one in zip(found, predicted, strict=True):
        expected = [(sentence["weight"], sentence["text"]) for sentence in one["classes"][0]["sentences"]]
        assert [text for _, text in mine] == [text for _, text in expected]
        assert [weight for weight, _ in mine] == pytest.approx([weight for weight, _ in expected], abs=1e-4)


def test_examples_of_a_dual_encoder_show_its_closest_sentences(runs):
    recipe = recipe_of(str(runs["one"]), [])
    subject, source = open_subject(str(runs["one"]), recipe), load_split(recipe, "test")
    subject.prepare(source, lambda: load_split(recipe, "train"))
    for sentences in subject.sentences(source.subset([0, 5]), [2, 4]):
        weights = [weight for weight, _ in sentences]
        assert weights == sorted(weights, reverse=True)
        assert len(sentences) == 3
        assert 0 < sum(weights) <= 1 + 1e-6
    own = subject.corpus.of(4)
    assert all(text in own for _, text in sentences)


def test_a_run_has_a_report_and_one_with_a_reference_shows_the_gain(runs, tmp_path):
    assert (runs["two"] / "report.html").is_file()
    evaluate_checkpoint(str(runs["two"]), ["eval.resamples=0"], str(tmp_path), reference=str(runs["one"]))
    assert "data:image/" in (tmp_path / "eval" / "test" / "report.html").read_text()
    with pytest.raises(UserError, match="a reference is of one split"):
        evaluate_checkpoint(str(runs["two"]), ["eval.splits=[test,validation]"], reference=str(runs["one"]))


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


def reordered(source, order: list[int]):
    """The same images where the classes `order` are all there are, in that order."""
    rows = np.flatnonzero(np.isin(source.labels, order))
    labels = np.array([order.index(label) for label in source.labels[rows]], dtype=np.int64)
    return replace(source.subset(rows), labels=labels, class_names=[source.class_names[at] for at in order])


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("order", [[5, 3, 1, 0, 2, 4], [4, 1]])
def test_texts_beside_a_model_are_found_by_the_names_of_their_classes(named, order, runs, tmp_path):
    folder = shutil.copytree(runs["one"], tmp_path / "copy")
    lines = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
    train = load_split(recipe_of(str(folder), []), "train")
    assert all(train.class_names[line["label"]] == line["class_name"] for line in lines)
    if not named:
        # as earlier versions wrote it
        older = [{name: value for name, value in line.items() if name != "class_name"} for line in lines]
        (folder / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in older))
    whole, _ = class_texts(str(folder), None, train)
    found, said = class_texts(str(folder), None, reordered(train, order))
    assert said == "texts.jsonl beside the model"
    assert [found.of(label) for label in range(len(order))] == [whole.of(label) for label in order]


def test_texts_beside_a_model_are_left_where_its_classes_are_others(runs, tmp_path):
    train = load_split(recipe_of(str(runs["one"]), []), "train")
    other = replace(train, name="other", class_names=[*train.class_names[:-1], "yellow submarine"])
    found, said = class_texts(str(runs["one"]), None, other)
    assert said == "templates, because texts.jsonl beside the model are for other classes"
    assert "submarine" in found.of(5)[0]
    # without a run to ask, a file without names is only for the data the run was made of
    for name in ("texts.jsonl", "recipe.yaml"):
        shutil.copy(runs["one"] / name, tmp_path)
    text = (tmp_path / "texts.jsonl").read_text()
    (tmp_path / "texts.jsonl").write_text(re.sub(r' "class_name": "[^"]*",', "", text))
    assert class_texts(str(tmp_path), None, train)[1] == "texts.jsonl beside the model"
    assert class_texts(str(tmp_path), None, replace(train, name="imagefolder:x"))[1].startswith("templates, because")


def test_a_model_of_a_run_says_how_it_was_trained(runs, tmp_path):
    """What the run's own numbers say also holds for those of `hf-vlr eval`."""
    stated = {}
    for name, folder in runs.items():
        first = json.loads((folder / "metrics.json").read_text())["protocol"]
        stated[name] = evaluate_checkpoint(str(folder), FAST, str(tmp_path / name))[0]["protocol"]
        assert stated[name]["training"] == first["training"]
        assert stated[name]["sampler"] == first["sampler"] == recipe_of(str(folder), []).data.sampler
        assert (first["logit_adjustment"], first["reweight"]) == (0.0, "none")
    assert stated["one"]["task"] == "zero-shot by class texts"
    assert stated["one"]["texts"] == "texts.jsonl beside the model"
    assert stated["two"]["task"] == "recognition"
    assert "interpolation" not in stated["two"]


def test_an_interpolated_model_says_so_and_keeps_its_fusion_weight(runs, tmp_path):
    folder = shutil.copytree(runs["two"], tmp_path / "mixed")
    (folder / "metrics.json").unlink()
    told = {"zero_shot": "a", "fine_tuned": "b", "weight": 0.25, "tuned": None}
    (folder / "interpolation.json").write_text(json.dumps(told))
    stated = evaluate_checkpoint(str(folder), FAST)[0]["protocol"]
    assert stated["interpolation"] == {"zero_shot": "a", "fine_tuned": "b", "weight": 0.25}
    before = json.loads((runs["two"] / "metrics.json").read_text())["protocol"]["training"]
    assert stated["training"] == {"fusion_weight": before["fusion_weight"]}


def test_nothing_is_claimed_of_a_model_from_elsewhere(tmp_path):
    folder = foreign.save_vit(tmp_path / "vit", class_names())
    stated = evaluate_checkpoint(str(folder), QUIET)[0]["protocol"]
    assert [stated[name] for name in ("texts", "seed", "sampler", "logit_adjustment", "reweight")] == [None] * 5
    assert (stated["training"], stated["pretraining"]) == ({}, str(folder))
    # and nothing by a protocol either
    recipe = recipe_of(str(folder), QUIET)
    inputs = Inputs(open_encoder(str(folder), recipe), recipe)
    stated = inputs.stated(inputs.source("test"), None)
    assert (stated["seed"], stated["task"], stated["sampler"], stated["pretraining"]) == (None, None, None, str(folder))


def test_settings_of_the_trained_source_are_not_those_of_another(tmp_path):
    own = override_recipe(Recipe(task="cvlp"), ["data.source=shapes-lt", "data.options={classes: 8}"])
    (tmp_path / "recipe.yaml").write_text(recipe_to_yaml(own), encoding="utf-8")
    assert recipe_of(str(tmp_path), ["eval.rule=vl-ltr"]).data.options == {"classes": 8}
    assert recipe_of(str(tmp_path), ["data.source=shapes-lt"]).data.options == {"classes": 8}
    other = recipe_of(str(tmp_path), ["data.source=imagefolder:photos"])
    assert (other.data.source, other.data.options) == ("imagefolder:photos", {})
    named = recipe_of(str(tmp_path), ["data.source=imagefolder:photos", "data.options.image=picture"])
    assert named.data.options == {"image": "picture"}
