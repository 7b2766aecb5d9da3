"""Whole runs: the same recipe gives the same bits, frozen parts stay, a diverging run leaves nothing behind."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification, AutoTokenizer

from hf_vlr.errors import UserError
from hf_vlr.evaluation.predictors import image_vectors, recognise
from hf_vlr.training.checkpoints import read_checkpoint
from hf_vlr.training.contrastive_task import ContrastiveTask
from hf_vlr.training.model_builder import build_dual_encoder, load_dual_encoder
from hf_vlr.training.options import PARTS, Recipe
from hf_vlr.training.recipe import override_recipe
from hf_vlr.training.run import run, train_recipe
from hf_vlr.training.run_data import load_run_data, load_split, transforms
from hf_vlr.training.trainer import Trainer

TINY = (
    "data.options={classes: 8, unseen: 2, max_count: 8, imbalance: 2, size: 16, validation: 1, test: 1}",
    "data.image_size=16",
    "data.max_text_length=24",
    "vision=scratch:resnet",
    "model.projection_dim=16",
    "model.num_anchors=4",
    "train.batch_size=12",
    "train.steps=4",
    "train.log_every=1",
)
# a step linear in the gradient (see AdamW's formula), so that steps can be compared as gradients are
LINEAR = ("optim.eps=1000", "optim.lr=30", "optim.weight_decay=0", "optim.clip_norm=0", "optim.warmup_fraction=0")


def tiny(output: Path, *words: str) -> Recipe:
    return override_recipe(Recipe(task="cvlp"), [*TINY, *words, f"output={output}"])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [key for key in one if not torch.equal(one[key], other[key])]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def stage1(tmp_path_factory) -> Path:
    return run(tiny(tmp_path_factory.mktemp("stage1") / "run"))


@pytest.fixture(scope="module")
def stage2(stage1, tmp_path_factory) -> Path:
    words = ("task=recognition", f"model.init={stage1}", "model.fusion_weight=null")
    return run(tiny(tmp_path_factory.mktemp("stage2") / "run", *words))


def test_the_same_recipe_gives_the_same_bits(stage1, tmp_path):
    again = run(tiny(tmp_path / "again"))
    assert differing(weights(stage1), weights(again)) == []
    assert losses(stage1) == losses(again)
    other = run(tiny(tmp_path / "other", "seed=1"))
    assert set(losses(other)).isdisjoint(losses(stage1))
    # what is neither drawn nor learned stays the same
    assert {key for key in weights(other) if key not in differing(weights(stage1), weights(other))} <= {
        key for key in weights(other) if key.endswith(("position_ids", "num_batches_tracked"))
    }


def test_loader_processes_change_nothing(stage1, tmp_path):
    assert differing(weights(stage1), weights(run(tiny(tmp_path / "run", "data.workers=2")))) == []


def test_recognition_in_parts_is_recognition_at_once(tmp_path):
    # 43 images: the last step of an epoch has 7 of them, in one part of 4 and one of 3
    words = (*LINEAR, "vision=scratch:vit", "task=recognition", "train.steps=5")
    once = run(tiny(tmp_path / "once", *words))
    parts = run(tiny(tmp_path / "parts", *words, "train.accumulation=3"))
    one, other = weights(once), weights(parts)
    for key in one:
        torch.testing.assert_close(other[key], one[key], rtol=1e-5, atol=1e-6)
    assert losses(parts) == pytest.approx(losses(once), rel=1e-5)


def test_the_batch_is_that_of_a_step_whatever_its_parts(tmp_path):
    whole = run(tiny(tmp_path / "whole", "train.steps=null", "train.epochs=2"))
    parts = run(tiny(tmp_path / "parts", "train.steps=null", "train.epochs=2", "train.accumulation=3"))
    assert len(losses(whole)) == len(losses(parts)) == 2 * 4


def test_the_folder_is_complete(stage1, stage2):
    for folder in (stage1, stage2):
        names = {path.name for path in folder.iterdir()}
        written = {"config.json", "model.safetensors", "recipe.yaml", "log.jsonl", "metrics.json", "per_class.csv"}
        assert written | {"predictions.npz", "texts.jsonl", "checkpoints", "tokenizer.json"} <= names
        assert not [name for name in names if "partial" in name]
    assert json.loads((stage2 / "metrics.json").read_text())["predictors"].keys() == {"fused", "visual", "language"}


def test_the_loaded_model_predicts_what_was_measured(stage2):
    recipe = tiny(stage2, "task=recognition")
    model = AutoModelForImageClassification.from_pretrained(stage2).eval()
    encoder = load_dual_encoder(str(stage2), "vlltr")
    evaluation, _ = transforms(recipe.data, encoder.image_processor)
    test = load_split(recipe, "test")
    found = recognise(model, image_vectors(model.vlltr, test, evaluation))
    stored = np.load(stage2 / "predictions.npz")
    assert stored["labels"].tolist() == test.labels.tolist()
    for name, scores in found.items():
        np.testing.assert_allclose(scores, stored[name], atol=1e-5)
        np.testing.assert_allclose(np.exp(scores).sum(1), 1, atol=1e-5)
    alpha = model.config.fusion_weight
    assert json.loads((stage2 / "metrics.json").read_text())["protocol"]["training"]["fusion_weight"] == alpha
    mixture = alpha * np.exp(found["visual"]) + (1 - alpha) * np.exp(found["language"])
    np.testing.assert_allclose(np.exp(found["fused"]), mixture, atol=1e-6)


def test_frozen_parts_stay_bit_equal(stage1, tmp_path):
    frozen = ("vision_model", "text_projection", "logit_scale")
    words = (f"model.init={stage1}", f"model.freeze={','.join(frozen)}")
    after, before = weights(run(tiny(tmp_path / "run", *words))), weights(stage1)
    assert any("running_mean" in key for key in before)
    moved = {key.partition(".")[0] for key in differing(before, after)}
    assert moved == set(PARTS) - set(frozen)


def test_recognition_leaves_the_text_tower_as_it_was(stage1, stage2):
    before, after = weights(stage1), weights(stage2)
    moved = {key for key in before if not torch.equal(before[key], after[f"vlltr.{key}"])}
    assert {key.partition(".")[0] for key in moved} == {"vision_model", "visual_projection", "logit_scale"}


@pytest.mark.parametrize("words", [("model.freeze=vision_model",), ()])
def test_dropout_and_batch_statistics_are_off_in_frozen_towers_only(words, stage1, tmp_path):
    recipe = tiny(tmp_path, *words)
    model = build_dual_encoder(recipe, "vlltr", ["a text"]).model
    task = ContrastiveTask(model, recipe.model, recipe.loss).train()
    assert model.vision_model.training is not bool(words)
    assert model.text_model.training
    assert not task.eval().model.text_model.training


def test_a_teacher_pulls_the_student_and_is_not_kept(stage1, tmp_path):
    pulled = run(tiny(tmp_path / "pulled", f"model.init={stage1}", "loss.distillation=1"))
    free = run(tiny(tmp_path / "free", f"model.init={stage1}"))
    state = read_checkpoint(next((pulled / "checkpoints").glob("*.pt")))
    assert {key.removeprefix("model.") for key in state["task"]} == weights(stage1).keys()
    line = json.loads((pulled / "log.jsonl").read_text().splitlines()[0])
    # β = 1: only the teacher counts
    assert line["loss"] == line["distillation"] != line["contrast"]
    assert "distillation" not in json.loads((free / "log.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize("task", ["cvlp", "recognition"])
def test_a_run_that_diverges_leaves_nothing_half_written(task, tmp_path, stage1):
    words = (f"task={task}", "optim.lr=1e30", "optim.warmup_fraction=0")
    with pytest.raises(UserError) as caught:
        run(tiny(tmp_path / "run", *words))
    message = str(caught.value)
    assert "first at epoch 0, batch 1 (training rows 34, 32, 19" in message
    assert "lower optim.lr (now 1e+30)" in message
    assert "\n" not in message
    assert not (tmp_path / "run").exists()


def test_the_checkpoint_before_a_divergence_stays(tmp_path, monkeypatch):
    words = ("train.steps=8", "train.save_every=1", "train.log_every=8", "train.keep=1")
    whole = Trainer._batch

    def poisoned(self, batch):
        if self.progress.step == 3:
            batch["pixel_values"] = torch.full_like(batch["pixel_values"], torch.inf, dtype=torch.float32)
        return whole(self, batch)

    monkeypatch.setattr(Trainer, "_batch", poisoned)
    said = r"first at epoch 0, batch 3 \(training rows .*lower optim\.lr .*step-00000003\.pt is kept"
    with pytest.raises(UserError, match=said):
        run(tiny(tmp_path / "run", *words))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003.pt"]
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"checkpoints", "recipe.yaml", "log.jsonl"}


def test_bfloat16_trains_and_keeps_float32_weights(tmp_path):
    AcceleratorState._reset_state(True)  # the number format is chosen once per process
    try:
        folder = run(tiny(tmp_path / "run", "train.mixed_precision=bf16", "data.image_size=32"))
    finally:
        AcceleratorState._reset_state(True)
    assert all(np.isfinite(losses(folder)))
    assert {tensor.dtype for key, tensor in weights(folder).items() if key.endswith("weight")} == {torch.float32}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has no such fault")
def test_bfloat16_on_a_cpu_is_refused_where_its_gradient_is_uninitialised(tmp_path):
    AcceleratorState._reset_state(True)
    try:
        with pytest.raises(UserError, match=r"train\.mixed_precision=bf16 on a CPU needs data\.image_size above 16"):
            run(tiny(tmp_path / "run", "train.mixed_precision=bf16"))
    finally:
        AcceleratorState._reset_state(True)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has float16")
def test_float16_on_a_cpu_is_refused(tmp_path):
    AcceleratorState._reset_state(True)
    try:
        with pytest.raises(UserError, match=r"train\.mixed_precision=fp16 needs a GPU; use bf16 or no"):
            run(tiny(tmp_path / "run", "train.mixed_precision=fp16"))
    finally:
        AcceleratorState._reset_state(True)
    assert not (tmp_path / "run").exists()


def test_validation_images_are_read_only_where_something_is_chosen_on_them(tmp_path):
    assert load_run_data(tiny(tmp_path, "task=recognition")).validation is None
    assert (
        load_run_data(tiny(tmp_path, "task=recognition", "model.fusion_weight=null")).validation.split == "validation"
    )
    assert load_run_data(tiny(tmp_path, "anchors.split=validation")).validation.split == "validation"


def test_image_settings_hold_for_a_loaded_model_too(stage1, tmp_path):
    same = build_dual_encoder(tiny(tmp_path, f"model.init={stage1}", "data.image_size=null"), "vlltr", [])
    assert same.image_size == 16
    words = (f"model.init={stage1}", "data.image_size=24", "data.image_mean=0.1,0.2,0.3")
    other = build_dual_encoder(tiny(tmp_path, *words), "vlltr", [])
    assert (other.image_size, other.image_processor.image_mean) == (24, [0.1, 0.2, 0.3])
    assert other.image_processor.image_std == same.image_processor.image_std
    vit = run(tiny(tmp_path / "vit", "vision=scratch:vit", "train.steps=1"))
    with pytest.raises(
        UserError, match=r"data\.image_size=24 does not fit model\.init=.*, which sees 16; leave it out"
    ):
        build_dual_encoder(tiny(tmp_path, f"model.init={vit}", "data.image_size=24"), "vlltr", [])


def test_the_dual_encoder_of_either_stage_can_be_started_from(stage1, stage2):
    one, two = load_dual_encoder(str(stage1), "unicl").model, load_dual_encoder(str(stage2), "vlltr").model
    assert type(one).__name__ == "UniCLModel"
    assert one.state_dict().keys() == two.state_dict().keys() == AutoModel.from_pretrained(stage2).state_dict().keys()


@pytest.mark.slow
def test_both_stages_learn(tmp_path):
    options = "{classes: 12, unseen: 2, max_count: 60, imbalance: 10, size: 32, validation: 4, test: 10}"
    words = (f"data.options={options}", "data.image_size=32", "data.flip=false", "data.min_scale=0.6")
    words += ("model.projection_dim=64", "train.batch_size=64", "train.log_every=50", "optim.lr=2e-3")
    first = run(tiny(tmp_path / "one", *words, "train.steps=250"))
    before = run(tiny(tmp_path / "none", *words, "train.steps=1", "optim.lr=1e-9"))
    stage2 = ("task=recognition", f"model.init={first}", "model.fusion_weight=null", "train.steps=60")
    second = run(tiny(tmp_path / "two", *words, *stage2, "model.freeze=vision_model,text_model", "data.cache_views=4"))

    def accuracy(folder: Path, predictor: str) -> float:
        return json.loads((folder / "metrics.json").read_text())["predictors"][predictor]["accuracy"]

    assert accuracy(before, "language") < 0.3
    assert accuracy(first, "language") > 0.7
    assert accuracy(second, "fused") > 0.75


def test_image_text_pairs_train_beside_classes(tmp_path):
    """UniCL's mix: rows of label -1 are positive with themselves alone, speak their captions and are never tested."""
    rows = []
    generator = np.random.default_rng(0)
    for index in range(40):
        pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        label = None if index % 4 == 0 else index % 3
        rows.append({"image": Image.fromarray(pixels), "label": label, "text": f"picture number {index}"})
    data = tmp_path / "data"
    data.mkdir()
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("int64"), "text": datasets.Value("string")}
    )
    for split in ("train", "test"):
        datasets.Dataset.from_list(rows, features=features).to_parquet(data / f"{split}-00000.parquet")
    words = [
        f"data.source={data}",
        "vision=scratch:resnet",
        "train.steps=2",
        "train.batch_size=8",
        "data.image_size=16",
    ]
    folder = train_recipe("unicl", words, str(tmp_path / "run"))
    measured = json.loads((folder / "metrics.json").read_text())["predictors"]["language"]
    assert measured["num_images"] == 30 and measured["num_classes"] == 3
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer("number")["input_ids"]) == 3
