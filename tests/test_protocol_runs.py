"""Every protocol from the command line, on shapes and an untrained encoder."""

import json
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from datasets import Dataset, Features, Value
from PIL import Image
from torch.nn.functional import normalize

from hf_vlr.cli.protocol import COMMANDS, command
from hf_vlr.data.corpus import build_corpus
from hf_vlr.data.source import load_source
from hf_vlr.errors import UserError
from hf_vlr.evaluation.encoders import open_encoder
from hf_vlr.evaluation.predictions import read_predictions
from hf_vlr.evaluation.predictors import class_vectors
from hf_vlr.protocols import neighbours
from hf_vlr.protocols.linear_probe import LinearProbeOptions, fit_chosen
from hf_vlr.protocols.probe import ProbeData
from hf_vlr.protocols.running import PROTOCOLS, run_protocol
from hf_vlr.training.options import Recipe

OPTIONS = {"classes": 6, "unseen": 3, "max_count": 30, "imbalance": 10, "validation": 2, "test": 4}
SHAPES = ["data.source=shapes-lt", *(f"data.options.{key}={value}" for key, value in OPTIONS.items())]
FAST = ["eval.resamples=0", "eval.report=false", "data.max_text_length=40"]


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory) -> Path:
    """An untrained dual encoder with its processor."""
    folder = tmp_path_factory.mktemp("model")
    tiny.model().save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    return folder


@pytest.fixture
def run(model, tmp_path):
    """Run a protocol on shapes; returns its document."""

    def call(name: str, *words: str) -> dict:
        return run_protocol(name, str(model), [*SHAPES, *FAST, *words], tmp_path / "out")

    return call


def invoke(*words: str) -> Result:
    return CliRunner().invoke(command, list(words))


def source(split: str = "test"):
    return load_source("shapes-lt", split, options=OPTIONS)


@pytest.fixture(scope="module")
def encoder(model):
    return open_encoder(str(model), Recipe(task="recognition"))


@pytest.fixture(scope="module")
def cosines(encoder) -> np.ndarray:
    """Of the test images with the class texts, computed step by step."""
    corpus = build_corpus("shapes", source("train"))
    vectors = class_vectors(encoder.text_features(corpus.texts), corpus.labels, 6)
    return (normalize(encoder.image_features(source()), dim=1) @ vectors.t()).numpy()


def test_there_is_a_command_for_every_protocol():
    assert set(PROTOCOLS) <= set(COMMANDS)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_help_teaches(name):
    shown = invoke(name, "--help").output
    assert f"hf-vlr protocol {name} " in shown
    from hf_vlr.training.keys import leaves

    assert all(f"  {key} " in shown for key, _ in leaves(PROTOCOLS[name][0]))


def test_a_misspelt_key_is_told_before_the_model_is_looked_for():
    with pytest.raises(UserError, match="unknown key tempratur; did you mean temperature"):
        run_protocol("knn", "no-such-model", ["tempratur=1"])
    with pytest.raises(UserError, match="unknown protocol nearest"):
        run_protocol("nearest", "no-such-model")


def test_zero_shot(run, cosines, tmp_path):
    document = run("zero-shot", "rows=templates,corpus,no-such-file.jsonl")
    numbers = document["numbers"]
    assert numbers["predictors"]["class texts"]["accuracy"] == (cosines.argmax(axis=1) == source().labels).mean()
    assert set(numbers["predictors"]) == {"templates", "class texts"}
    assert "no-such-file.jsonl" in numbers["not_run"]["no-such-file.jsonl"]
    assert document["stated"]["texts"] == "templates | shapes"
    stored = json.loads((tmp_path / "out" / "protocol.json").read_text())
    assert stored == document
    read = read_predictions(tmp_path / "out")
    assert list(read.scores) == ["templates", "class texts"]
    assert read.train_counts.tolist() == source("train").class_counts().tolist()
    assert read.rows is not None


def test_zero_shot_of_unseen_classes(run):
    document = run("zero-shot", "rows=corpus", "eval.splits=unseen")
    assert document["stated"]["split"] == "unseen"
    assert document["numbers"]["predictors"]["class texts"]["groups"]["many"] is None


def test_linear_probe_is_the_one_fitted_by_hand(run, encoder, tmp_path):
    document = run("linear-probe")
    parts = [
        ProbeData(encoder.image_features(part).numpy(), part.labels) for part in map(source, ("train", "validation"))
    ]
    fitted = fit_chosen(*parts, 6, LinearProbeOptions())
    found = fitted.probe.log_probabilities(encoder.image_features(source()).numpy())
    accuracy = (found.argmax(axis=1) == source().labels).mean()
    assert document["numbers"]["predictors"]["linear probe"]["accuracy"] == accuracy
    assert document["numbers"]["fits"]["linear probe"]["C"] == fitted.C
    assert document["numbers"]["fits"]["linear probe"]["images"] == len(source("train"))
    assert set(read_predictions(tmp_path / "out").scores) == {"linear probe", "zero-shot"}


def test_linear_probe_by_shots(run, capsys):
    words = ("shots=[2,0]", "seeds=[0,1]", "zero_shot=false", "max_iter=50")
    document = run("linear-probe", *words)
    fits = document["numbers"]["fits"]
    assert list(fits) == ["2-shot, seed 0", "2-shot, seed 1", "linear probe"]
    assert fits["2-shot, seed 0"]["images"] == 12
    assert len(document["numbers"]["shots"]["2-shot"]["accuracy"]) == 2
    assert "2-shot" in capsys.readouterr().out
    assert run("linear-probe", *words) == document


def test_knn_is_chosen_on_validation_images_and_reported_on_others(run, encoder, tmp_path):
    document = run("knn", "k=1,3,200")
    assert json.loads((tmp_path / "out" / "protocol.json").read_text()) == document
    scores = document["numbers"]["validation"]["weighted"]
    chosen = document["numbers"]["chosen"]["weighted"]
    images = len(source("train"))
    assert list(scores) == ["1", "3", str(images)]
    assert images < 200
    assert scores[str(chosen)] == max(scores.values())
    given = run("knn", f"k={chosen}")
    name = f"weighted, k={chosen}"
    assert given["numbers"]["predictors"][name] == document["numbers"]["predictors"][name]
    assert given["numbers"]["validation"] == {}
    train = source("train")
    features = [normalize(encoder.image_features(part), dim=1) for part in (train, source())]
    nearest = train.labels[(features[1] @ features[0].t()).argmax(dim=1).numpy()]
    found = run("knn", "k=1")["numbers"]["predictors"]["majority, k=1"]
    assert found["accuracy"] == (nearest == source().labels).mean()


def test_more_neighbours_than_images_are_named_by_what_they_are(run, capsys):
    images = len(source("train"))
    document = run("knn", "k=100000")
    assert list(document["numbers"]["predictors"]) == [f"weighted, k={images}", f"majority, k={images}"]
    assert document["stated"]["knn"]["chosen"] == {"weighted": images, "majority": images}
    assert f"k=100000 is k={images}: there are no more training images" in capsys.readouterr().out


def test_a_model_without_texts_has_a_probe_and_no_zero_shot(tiny, tmp_path):
    folder = tmp_path / "vision"
    tiny.model(text=None).save_pretrained(folder)
    tiny.processor().image_processor.save_pretrained(folder)
    document = run_protocol("linear-probe", str(folder), [*SHAPES, *FAST, "C=1"])
    assert set(document["numbers"]["predictors"]) == {"linear probe"}
    for name in ("zero-shot", "gallery", "retrieval", "queries", "concepts"):
        with pytest.raises(UserError, match="vision has no text tower"):
            run_protocol(name, str(folder), [*SHAPES, *FAST])


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("knn", ["eval.splits=validation"], "eval.splits=validation is what k is chosen on"),
        ("knn", ["eval.splits=train", "k=1"], "eval.splits=train is what neighbours are searched on"),
        ("linear-probe", ["eval.splits=validation"], "eval.splits=validation is what C is chosen"),
        ("linear-probe", ["eval.splits=train", "C=1"], "eval.splits=train is what the probe is fitted on"),
        ("linear-probe", ["eval.splits=unseen"], "classes without training images"),
        ("knn", ["eval.splits=unseen"], "classes without training images"),
        ("retrieval", ["kind=pairs"], "no image of the split test has a caption"),
        ("zero-shot", ["rows=nothing.jsonl"], "no row can be run: nothing.jsonl"),
        ("concepts", ["candidates=nothing.txt"], "candidates=nothing.txt is neither"),
        ("projection", ["classes=fox"], "classes=fox is the name of 0 classes"),
    ],
)
def test_what_cannot_be_measured_is_told_and_writes_nothing(run, tmp_path, name, words, said):
    with pytest.raises(UserError) as caught:
        run(name, *words)
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_gallery(run, encoder):
    document = run("gallery", "neighbours=3")
    corpus = build_corpus("shapes", source("train"))
    texts = normalize(encoder.text_features(corpus.texts), dim=1)
    images = normalize(encoder.image_features(source()), dim=1)
    found = corpus.labels[(images @ texts.t()).argmax(dim=1).numpy()]
    numbers = document["numbers"]
    assert numbers["predictors"]["nearest sentence"]["accuracy"] == (found == source().labels).mean()
    found = source().labels[(texts @ images.t()).argmax(dim=1).numpy()]
    assert numbers["sentences"]["nearest image"]["accuracy"] == (found == corpus.labels).mean()
    assert set(numbers["predictors"]) == {"nearest sentence", "3 nearest sentences", "class mean"}


def test_more_neighbours_than_sentences_are_named_by_what_they_are(run):
    sentences = len(build_corpus("shapes", source("train")))
    assert f"{sentences} nearest sentences" in run("gallery", "neighbours=100000")["numbers"]["predictors"]


def test_retrieval_of_classes(run, cosines):
    from sklearn.metrics import average_precision_score

    document = run("retrieval")
    labels = source().labels
    wanted = np.mean([average_precision_score(labels == label, cosines[:, label]) for label in range(6)])
    assert document["numbers"]["text to image, mean AP"]["all"] == pytest.approx(wanted)
    recall = document["numbers"]["image to text"]["recall@1"]
    assert recall == pytest.approx((cosines.argmax(axis=1) == labels).mean())


@pytest.fixture
def pairs(tmp_path, monkeypatch) -> str:
    """Three pictures; the first has two captions, and two pictures share one."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pictures = []
    for colour in ("red", "green", "blue"):
        file = BytesIO()
        Image.new("RGB", (32, 32), colour).save(file, format="PNG")
        pictures.append({"bytes": file.getvalue(), "path": None})
    columns = {
        "image": [pictures[0], pictures[0], pictures[1], pictures[2]],
        "text": ["red", "warm", "a colour", "a colour"],
        "group": [7, 7, 8, 9],
    }
    kinds = {"image": datasets.Image(), "text": Value("string"), "group": Value("int64")}
    folder = tmp_path / "pairs"
    folder.mkdir()
    for split in ("train", "test"):
        Dataset.from_dict(columns, features=Features(kinds)).to_parquet(folder / f"{split}.parquet")
    return str(folder)


def test_retrieval_of_pairs(model, pairs, encoder, tmp_path):
    document = run_protocol("retrieval", str(model), [f"data.source={pairs}", *FAST, "ranks=1,2"], tmp_path / "out")
    numbers = document["numbers"]
    assert (numbers["images"], numbers["texts"], numbers["pairs"]) == (3, 3, 4)
    whole = load_source(pairs, "test")
    images = normalize(encoder.image_features(whole.subset([0, 2, 3])), dim=1)
    texts = normalize(encoder.text_features(["red", "warm", "a colour"]), dim=1)
    cosines, own = (images @ texts.t()).numpy(), [{0, 1}, {2}, {2}]
    hits = [int(row.argmax()) in mine for row, mine in zip(cosines, own)]
    assert numbers["image to text"]["recall@1"] == pytest.approx(np.mean(hits))
    hits = [int(cosines[:, text].argmax()) in mine for text, mine in enumerate([{0}, {0}, {1, 2}])]
    assert numbers["text to image"]["recall@1"] == pytest.approx(np.mean(hits))


def test_concepts_of_unseen_classes_and_of_others(run, tmp_path):
    document = run("concepts", "top=2")
    assert document["numbers"]["candidates"] == {"kind": "unseen", "number": 3}
    unseen = set(source("unseen").class_names)
    for found in document["numbers"]["nearest"].values():
        assert len(found) == 2
        assert {one["name"] for one in found} <= unseen
        assert found[0]["cosine"] >= found[1]["cosine"]
    assert set(document["numbers"]["shared_attributes"]) == {"nearest", "nearest 2", "by chance"}
    for words in (("candidates=classes",), ("query=images", "against=images", "candidates=classes")):
        nearest = run("concepts", *words)["numbers"]["nearest"]
        assert all(name != one["name"] for name, found in nearest.items() for one in found)
    assert run("concepts", "against=images")["numbers"]["candidates"]["kind"] == "unseen"
    names = tmp_path / "names.txt"
    names.write_text("oak\nelm\nash\n")
    document = run("concepts", f"candidates={names}", "query=images")
    assert {one["name"] for found in document["numbers"]["nearest"].values() for one in found} == {"oak", "elm", "ash"}


def test_queries(run, cosines, tmp_path):
    document = run("queries", "top=4", "group=all", "show=3", "eval.rule=custom:20,5")
    best = np.argsort(-cosines, axis=0, kind="stable")[:4]
    wanted = [(source().labels[best[:, label]] == label).mean() for label in range(6)]
    assert document["numbers"]["per_class"]["precision"] == pytest.approx(wanted)
    counts, names = source("train").class_counts(), source().class_names
    assert document["numbers"]["shown"] == [names[label] for label in np.argsort(counts, kind="stable")[:3]]
    assert Image.open(tmp_path / "out" / "queries.png").size[1] > 3 * 80
    assert (tmp_path / "out" / "queries.html").read_text().count("<img ") == 12


def test_projection(run, tmp_path):
    document = run("projection", "most=4", "images=12")
    lines = (tmp_path / "out" / "projection.csv").read_text().splitlines()
    assert (document["numbers"]["images"], len(document["numbers"]["classes"])) == (12, 4)
    assert len(lines) == 1 + 12 + 4
    assert (tmp_path / "out" / "projection.png").is_file()
    assert run("projection", "most=4", "images=12") == document
    assert "texts_among_their_images" not in run("projection", "texts=false", "colour=shot")["numbers"]


@pytest.fixture
def listing(tmp_path) -> Path:
    options = "{" + ", ".join(f"{key}: {value}" for key, value in OPTIONS.items()) + "}"
    file = tmp_path / "list.yaml"
    file.write_text(
        f"datasets:\n- {{name: shapes, source: shapes-lt, texts: shapes, classes: 6, options: {options}}}\n"
        f"- {{name: wrong, source: shapes-lt, texts: shapes, classes: 7, options: {options}}}\n"
        "- {name: absent}\n- {name: voc, source: shapes-lt, metric: 11-point-map}\n"
    )
    return file


def test_downstream_keeps_what_is_done(model, listing, tmp_path, capsys, monkeypatch):
    words = [f"data.source={listing}", *FAST, "max_iter=50"]
    document = run_protocol("downstream", str(model), words, tmp_path / "out")
    rows, means = document["numbers"]["datasets"], document["numbers"]["mean"]
    assert means["zero-shot"] == {"value": rows["shapes"]["zero-shot"], "run": 1, "of": 4}
    assert "not the 7 of wrong" in rows["wrong"]["not run"]["zero-shot"]
    assert rows["absent"]["not run"]["linear-probe"] == "no source is named"
    assert "several classes each" in rows["voc"]["not run"]["zero-shot"]
    assert [path.name for path in (tmp_path / "out" / "datasets").iterdir()] == ["shapes.json"]
    assert "of 1 of 4" in capsys.readouterr().out
    # what is kept is not computed again
    monkeypatch.setattr(torch.nn.Module, "__call__", None)
    assert run_protocol("downstream", str(model), words, tmp_path / "out")["numbers"]["mean"] == means
    with pytest.raises(UserError, match="was measured with other weights or settings"):
        run_protocol("downstream", str(model), [*words, "features=raw"], tmp_path / "out")


@pytest.mark.parametrize("text", ["{", "[]", '{"how": {}}', "\xff"])
def test_a_damaged_kept_dataset_is_named(model, listing, tmp_path, text):
    words = [f"data.source={listing}", *FAST, "protocols=zero-shot"]
    run_protocol("downstream", str(model), words, tmp_path / "out")
    kept = tmp_path / "out" / "datasets" / "shapes.json"
    kept.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"shapes\.json is damaged .*; remove it"):
        run_protocol("downstream", str(model), words, tmp_path / "out")


def test_a_kept_row_without_its_numbers_is_damaged(model, listing, tmp_path):
    words = [f"data.source={listing}", *FAST, "protocols=zero-shot"]
    run_protocol("downstream", str(model), words, tmp_path / "out")
    kept = tmp_path / "out" / "datasets" / "shapes.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"row": {"metric": "accuracy", "classes": 6}}))
    with pytest.raises(UserError, match=r"shapes\.json is damaged"):
        run_protocol("downstream", str(model), words, tmp_path / "out")


def test_several_labels_are_the_reason_even_without_a_source(model, tmp_path, capsys):
    file = tmp_path / "list.yaml"
    file.write_text("datasets:\n- {name: voc2007, metric: 11-point-map}\n- {name: other}\n")
    run_protocol("downstream", str(model), [f"data.source={file}", *FAST], tmp_path / "out")
    after_table = capsys.readouterr().out.partition("mean")[2]
    assert "not run: voc2007 (11-point-map: its images have several classes each" in after_table
    assert "not run: other (no source is named)" in after_table


def test_downstream_gives_the_numbers_of_the_single_protocols(model, listing, run, tmp_path):
    words = [f"data.source={listing}", *FAST]
    rows = run_protocol("downstream", str(model), words, tmp_path / "down")["numbers"]["datasets"]
    probe = run("linear-probe", "choose_by=accuracy", "data.texts=shapes")["numbers"]
    assert rows["shapes"]["linear-probe"] == probe["predictors"]["linear probe"]["accuracy"]
    assert rows["shapes"]["zero-shot"] == probe["predictors"]["zero-shot"]["accuracy"]


def test_results_lie_in_the_models_folder_unless_named(model):
    shown = CliRunner().invoke(command, ["knn", str(model), "--data", "shapes-lt", *SHAPES[1:], *FAST, "k=1"])
    assert shown.exit_code == 0, shown.output
    assert f"written to {model / 'protocol' / 'knn'}" in shown.output
    assert json.loads((model / "protocol" / "knn" / "protocol.json").read_text())["settings"]["k"] == [1]


def test_pieces_of_any_size_give_the_same_numbers(run, monkeypatch):
    whole = run("gallery")
    monkeypatch.setattr(neighbours, "MOST_NUMBERS", 200)
    assert run("gallery") == whole
