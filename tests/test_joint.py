"""Runs of one stage: anchors follow the towers, and a resumed run is the uninterrupted one."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from hf_vlr.data.batches import Collator
from hf_vlr.errors import UserError
from hf_vlr.features import StateCache
from hf_vlr.modeling import VLLTRForImageClassification
from hf_vlr.training.anchor_choice import AnchorChoice
from hf_vlr.training.checkpoints import read_checkpoint
from hf_vlr.training.context import Context
from hf_vlr.training.model_builder import DualEncoder, build_dual_encoder
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import load_recipe, override_recipe
from hf_vlr.training.recognition import build_recogniser, give_anchors
from hf_vlr.training.run import run
from hf_vlr.training.run_data import RunData, load_run_data, spoken_texts, transforms
from hf_vlr.training.trainer import Trainer

TINY = (
    # 43 images: 4 batches an epoch
    "data.options={classes: 8, unseen: 2, max_count: 8, imbalance: 2, size: 16, validation: 1, test: 1}",
    "data.image_size=16",
    "data.max_text_length=24",
    "vision=scratch:resnet",
    "model.projection_dim=16",
    "model.num_anchors=4",
    "model.fusion_weight=null",
    "anchors.images_per_class=3",
    "train.batch_size=12",
    "train.steps=9",
    "train.save_every=1",
    "train.keep=99",
    "train.log_every=3",
)
# a step linear in the gradient (see AdamW's formula), so that rounding stays rounding
LINEAR = ("optim.eps=1000", "optim.lr=30", "optim.weight_decay=0", "optim.clip_norm=0", "optim.warmup_fraction=0")
FROZEN = "model.freeze=vision_model,text_model"
# what a log line says of the machine, not of the run
MEASURED = ("seconds", "rows_per_second", "peak_memory_mib", "anchor_seconds")
# no anchors yet, of 8 classes
NOTHING = torch.full((8, 4), -1)


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def tiny(output: Path, *words: str) -> Recipe:
    return override_recipe(Recipe(task="joint"), [*TINY, *words, f"output={output}"])


def prepared(recipe: Recipe) -> tuple[Context, RunData, DualEncoder, VLLTRForImageClassification, AnchorChoice]:
    """What `fit_joint` has before it trains."""
    data = load_run_data(recipe)
    context = Context(recipe, Path(recipe.output), Accelerator(), StateCache(None), resume=False)
    context.folder.mkdir(parents=True, exist_ok=True)
    encoder = build_dual_encoder(recipe, "vlltr", spoken_texts(data))
    model = build_recogniser(context, data, encoder)
    evaluation, _ = transforms(recipe.data, encoder.image_processor)
    collator = Collator(encoder.processor.tokenizer, recipe.data.max_text_length)
    return context, data, encoder, model, AnchorChoice(context, data, model, collator, evaluation, 4)


@pytest.mark.parametrize("words", [(), (FROZEN,), ("anchors.selection=first",), ("anchors.split=validation",)])
def test_a_choice_is_that_of_the_second_stage(words, tmp_path):
    context, data, encoder, model, choose = prepared(tiny(tmp_path, *words))
    index = choose(0, NOTHING)
    choose.note(index)
    found, note = {key: value.clone() for key, value in model.head.named_buffers()}, model.config.anchor_selection
    size = model.config.num_sentence_bytes
    give_anchors(context, data, model, encoder, choose.evaluation)
    assert all(torch.equal(found[key], value) for key, value in model.head.named_buffers())
    assert (model.config.anchor_selection, model.config.num_sentence_bytes) == (note, size)
    assert [data.corpus.texts[i] for i in index[1]] == [model.head.sentence(1, place) for place in range(4)]


@pytest.mark.parametrize("frozen", [True, False])
def test_anchors_follow_what_is_trained(frozen, tmp_path):
    _, _, _, model, choose = prepared(tiny(tmp_path, FROZEN if frozen else "model.freeze="))
    first = choose(0, NOTHING)
    anchors, scored = model.head.anchors.clone(), first.clone()
    # the same towers, the same anchors
    assert torch.equal(choose(1, first), first) and torch.equal(model.head.anchors, anchors)
    with torch.no_grad():
        model.vlltr.text_model.get_input_embeddings().weight.normal_()
    choose(2, first)
    assert torch.equal(model.head.anchors, anchors) is frozen  # its states were kept
    with torch.no_grad():
        model.vlltr.text_projection.weight.mul_(2.0)
        model.vlltr.visual_projection.weight.normal_()
    last = choose(3, first)
    assert not torch.equal(last, scored)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["epoch"]) for line in lines] == [(1, 0), (5, 1), (9, 2), (13, 3)]
    assert [line["new_anchors"] for line in lines[:2]] == [1.0, 0.0] and lines[3]["new_anchors"] > 0
    kept = {"text_model", "vision_model"} if frozen else set()
    assert choose._kept.keys() == kept


def log_of(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def assert_same_run(first: Path, second: Path) -> None:
    one, other = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
    assert log_of(first) == log_of(second)
    assert (first / "config.json").read_text() == (second / "config.json").read_text()
    scores = [json.loads((folder / "metrics.json").read_text())["predictors"] for folder in (first, second)]
    assert scores[0] == scores[1]


def interrupted(monkeypatch, recipe: Recipe, batches: int) -> None:
    """A run that dies in the middle of a batch, as a lost process would, after so many whole ones."""
    taken = iter(range(batches))
    whole = Trainer._batch

    def part(self, batch):
        if next(taken, None) is None:
            raise Interrupted
        return whole(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_batch", part)
        with pytest.raises(Interrupted):
            run(recipe)


def weights_after(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "checkpoints" / f"step-{step:08d}.pt")["task"]


RUNS = {
    "from scratch": ("loss.distillation=0.5",),
    "on states": (FROZEN, "data.cache_views=2", "anchors.refresh_every=2"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_uninterrupted_one(name, tmp_path, monkeypatch):
    """Killed where an epoch ends (the anchors are chosen anew), and within one (they come from the checkpoint)."""
    words = RUNS[name]
    whole = run(tiny(tmp_path / "whole", *words))
    refreshed = [line["epoch"] for line in log_of(whole) if "new_anchors" in line]
    assert refreshed == ([0, 1, 2] if name == "from scratch" else [0, 2])
    sizes = [len(weights_after(whole, step)["model.head.sentence_bytes"]) for step in (1, 4, 5, 9)]
    assert sizes[0] == sizes[1] and (sizes[2] != sizes[1]) is (name == "from scratch") and sizes[3] != sizes[0]
    for batches in (4, 6):
        parts = tiny(tmp_path / f"parts{batches}", *words)
        interrupted(monkeypatch, parts, batches)
        assert_same_run(whole, run(parts, resume=True))


def test_the_written_model_is_what_was_measured(tmp_path):
    folder = run(tiny(tmp_path / "run"))
    measured = json.loads((folder / "metrics.json").read_text())
    assert measured["predictors"].keys() == {"fused", "visual", "language", "anchors"}
    assert measured["protocol"]["task"] == "joint"
    model = AutoModelForImageClassification.from_pretrained(folder)
    last = weights_after(folder, 9)
    assert torch.equal(model.head.anchors, last["model.head.anchors"])
    corpus = [json.loads(line)["text"] for line in (folder / "texts.jsonl").read_text().splitlines()]
    places = last["chosen"]
    assert [model.head.sentence(5, place) for place in range(4)] == [corpus[i] for i in places[5].tolist()]
    assert model.config.fusion_weight == measured["protocol"]["training"]["fusion_weight"]
    moved = [
        torch.equal(weights_after(folder, 4)["model.head.anchors"], weights_after(folder, step)["model.head.anchors"])
        for step in (1, 5)
    ]
    assert moved == [True, False]


def test_states_train_as_pictures_that_are_not_augmented(tmp_path):
    """With one sentence a class, because the two loaders draw sentences differently."""
    rows = {row.label: row.text for row in load_run_data(tiny(tmp_path)).corpus.rows()}
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"label": label, "text": text}) + "\n" for label, text in rows.items()))
    words = (FROZEN, "data.augment=none", "train.steps=6", f"data.texts={texts}", *LINEAR)
    pictures = run(tiny(tmp_path / "pictures", *words))
    states = run(tiny(tmp_path / "states", *words, "data.cache_views=1"))
    start, expected, found = weights_after(states, 1), weights_after(pictures, 6), weights_after(states, 6)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)
    for part in ("vlltr.text_projection.weight", "vlltr.visual_projection.weight", "head.visual.0.weight"):
        assert (found[f"model.{part}"] - start[f"model.{part}"]).norm() > 1e-4, part
    assert not torch.equal(found["model.head.anchors"], start["model.head.anchors"])


def test_image_text_pairs_train_beside_classes(tmp_path):
    generator = np.random.default_rng(0)
    rows = [
        {
            "image": Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)),
            "label": None if index % 4 == 0 else index % 3,
            "text": f"picture number {index}",
        }
        for index in range(40)
    ]
    kinds = {"image": datasets.Image(), "label": datasets.Value("int64"), "text": datasets.Value("string")}
    (tmp_path / "data").mkdir()
    for split in ("train", "validation", "test"):
        dataset = datasets.Dataset.from_list(rows, features=datasets.Features(kinds))
        dataset.to_parquet(tmp_path / "data" / f"{split}-00000.parquet")
    words = (f"data.source={tmp_path / 'data'}", "data.options={}", "train.steps=5", "train.batch_size=8")
    folder = run(tiny(tmp_path / "run", *words, "model.fusion_weight=0.5"))
    assert json.loads((folder / "metrics.json").read_text())["predictors"]["fused"]["num_images"] == 30
    counts = load_file(folder / "model.safetensors")["head.class_counts"]
    assert counts.tolist() == [10, 10, 10]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("loss.objective=siglip",), "task=joint contrasts with loss.objective=unicl or clip, not siglip"),
        (("model.language=false", "model.fusion_weight=0.5"), "task=joint needs language"),
        (
            ("data.mix=[shapes-lt]",),
            r"task=joint recognises the classes of data.source: let data.mix add pairs:SOURCE alone",
        ),
    ],
)
def test_what_cannot_be_one_stage_is_named(words, said, tmp_path):
    with pytest.raises(UserError, match=said):
        run(tiny(tmp_path / "run", *words))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["shapes", "openclipart-pretrained"])
def test_the_recipes_compare_at_equal_budget(name):
    joint_stage, *stages = (load_recipe(f"{name}-{stage}") for stage in ("joint", "stage1", "stage2"))
    baseline = load_recipe(f"{name}-baseline")
    assert joint_stage.train.steps == sum(stage.train.steps for stage in stages) == baseline.train.steps
    assert {recipe.train.batch_size for recipe in (joint_stage, baseline, *stages)} == {joint_stage.train.batch_size}
    for stage in stages:
        assert stage.data.sampler == joint_stage.data.sampler
    assert stages[1].model.num_anchors == joint_stage.model.num_anchors
    # what differs from stage 1 is what the task asks for
    assert joint_stage.data.max_text_length == stages[0].data.max_text_length
    assert (joint_stage.model.vision, joint_stage.model.text) == (stages[0].model.vision, stages[0].model.text)


@pytest.mark.slow
def test_both_parts_are_learned(tmp_path):
    words = ("train.steps=60", "train.log_every=20", "train.save_every=60", "optim.lr=3e-3", "data.augment=none")
    lines = [line for line in log_of(run(tiny(tmp_path / "run", *words))) if "loss" in line]
    for part in ("contrast", "visual", "language"):
        assert lines[-1][part] < 0.8 * lines[0][part], part
