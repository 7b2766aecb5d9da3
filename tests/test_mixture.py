"""Several sources in one image-text-label space: whose class is whose, who is drawn how often, a whole run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModel

from hf_vlr.cli.main import main
from hf_vlr.data.mixture import as_pairs, mix
from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.samplers import epoch_order
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import override_recipe
from hf_vlr.training.run import run
from hf_vlr.training.run_data import load_run_data


def source(name: str, labels: list[int], names: list[str], captions: list[str | None] | None = None) -> ImageSource:
    images = [Image.new("RGB", (8, 8), (len(name), 10 * row, 0)) for row in range(len(labels))]
    return ImageSource(name, "train", images, np.array(labels), captions or [None] * len(labels), names)


def test_classes_of_one_name_are_one_concept_and_the_first_keep_their_numbers():
    first = source("a", [0, 1, 1], ["red_fox", "owl"])
    second = source("b", [0, 1, 2, -1], ["Owl", "lynx", "red fox"], [None, None, None, "a pair"])
    mixed = mix(first, [second, source("ccc", [0], ["lynx"])])
    assert mixed.class_names == ["red_fox", "owl", "lynx"]
    assert mixed.labels.tolist() == [0, 1, 1, 1, 2, 0, -1, 2]
    assert mixed.parts.tolist() == [0, 0, 0, 1, 1, 1, 1, 2]
    assert mixed.captions[6] == "a pair"
    assert [mixed.images[row].getpixel((0, 0))[:2] for row in (0, 2, 3, 6, 7)] == [
        (1, 0), (1, 20), (1, 0), (1, 30), (3, 0),
    ]  # fmt: skip
    assert mixed.subset([7, 0]).parts.tolist() == [2, 0]


def test_a_name_that_repeats_is_never_guessed():
    mixed = mix(source("a", [0, 1], ["missile", "missile"]), [source("b", [0], ["missile"])])
    assert mixed.class_names == ["missile", "missile", "missile"]
    assert mixed.labels.tolist() == [0, 1, 2]


def test_pairs_have_texts_and_no_classes():
    pairs = as_pairs(source("a", [0, 1, 0], ["x", "y"], ["one", "", "two"]))
    assert (pairs.labels.tolist(), pairs.captions, pairs.class_names) == ([-1, -1], ["one", "two"], [])
    mixed = mix(source("b", [0], ["x"]), [pairs])
    assert (mixed.labels.tolist(), mixed.class_names) == ([0, -1, -1], ["x"])
    with pytest.raises(UserError, match="pairs:a: no row has a text"):
        as_pairs(source("a", [0], ["x"]))


def test_a_balanced_draw_sees_every_source_equally_often():
    labels, parts = np.zeros(1010, dtype=np.int64), np.repeat([0, 1], [1000, 10])
    order = epoch_order(labels, "source-balanced", 0, 0, num_samples=40000, parts=parts)
    assert abs(np.mean(parts[order]) - 0.5) < 0.01
    drawn = np.bincount(order, minlength=1010)
    assert drawn[1000:].min() > 1700  # each of the ten about 2000 times
    alone = epoch_order(labels, "source-balanced", 0, 0, num_samples=40000)
    assert abs(np.mean(alone < 505) - 0.5) < 0.02


def photographs(folder: Path, classes: dict[str, int], captions: bool) -> str:
    for split in ("train", "test"):
        lines = []
        for shade, (name, count) in enumerate(classes.items()):
            for index in range(count):
                file = folder / split / name / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16), (60 * shade, 5 * index, 100)).save(file)
                lines.append(json.dumps({"file_name": f"{name}/{index}.png", "text": f"a small {name} number {index}"}))
        if captions:
            (folder / split / "metadata.jsonl").write_text("\n".join(lines))
    return f"imagefolder:{folder}"


def recipe(tmp_path: Path, *words: str) -> Recipe:
    return override_recipe(
        Recipe(task="unicl"),
        [
            f"data.source={photographs(tmp_path / 'first', {'owl': 6, 'fox': 4}, False)}",
            f"data.mix=[{photographs(tmp_path / 'second', {'fox': 3, 'lynx': 3}, False)},"
            f"pairs:{photographs(tmp_path / 'third', {'elk': 2, 'hare': 2}, True)}]",
            *("data.texts=templates", "data.image_size=16", "data.max_text_length=24", "data.sampler=source-balanced"),
            *("vision=scratch:vit", "model.projection_dim=16", "model.num_anchors=4"),
            *("train.batch_size=8", "train.steps=3", "train.log_every=1", f"output={tmp_path / 'run'}"),
            *words,
        ],
    )


def test_a_mixture_trains_and_is_measured_on_its_first_source(tmp_path):
    folder = run(recipe(tmp_path))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["protocol"]["split"] == "test"
    scores = np.load(folder / "predictions.npz")
    assert scores["language"].shape == (10, 2)  # owl and fox, though lynx was taught too
    assert scores["train_counts"].tolist() == [6, 5]  # fox of both sources, less what is held out
    assert list(AutoModel.from_pretrained(folder).config.id2label.values()) == ["fox", "owl", "lynx"]


def test_what_a_mixture_reads(tmp_path):
    train = load_run_data(recipe(tmp_path)).train
    assert np.bincount(train.parts).tolist() == [8, 6, 4]
    assert np.bincount(train.labels[train.labels >= 0]).tolist() == [6, 5, 3]
    assert train.captions[-1].startswith("a small ")


def test_a_recogniser_takes_no_mixture(tmp_path):
    with pytest.raises(UserError, match=r"data\.mix is for task=unicl and task=cvlp"):
        load_run_data(recipe(tmp_path, "task=recognition"))


def test_the_table_of_a_mixture(tmp_path, capsys):
    words = [photographs(tmp_path / "first", {"owl": 6, "fox": 4}, False)]
    second = photographs(tmp_path / "second", {"fox": 3, "lynx": 3}, False)
    third = photographs(tmp_path / "third", {"elk": 2, "hare": 2}, True)
    with pytest.raises(SystemExit) as caught:
        main(["data", "stats", *words, f"data.mix=[{second},pairs:{third}]", "data.texts=templates"])
    out = capsys.readouterr().out
    assert caught.value.code == 0, out
    rows = [re.split(r"  +", line) for line in out.splitlines()]
    assert ["source", "images", "pairs", "concepts", "vocabulary", "images per concept"] in rows
    assert [second, "6", "0", "2", "2", "3.0 (3 … 3)"] in rows
    assert [f"pairs:{third}", "4", "4", "0", "7", "-"] in rows
    assert ["all", "18", "4", "3", "10", "4.7 (3 … 6)"] in rows
