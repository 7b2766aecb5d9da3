"""What a run writes down is what it did: keys, norms, speed, losses on validation data."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoModelForImageClassification

from hf_vlr.data.batches import Collator, EpochBatches, TrainingSet
from hf_vlr.errors import UserError
from hf_vlr.training.checkpoints import read_checkpoint
from hf_vlr.training.model_builder import load_dual_encoder
from hf_vlr.training.options import Recipe
from hf_vlr.training.progress import Progress
from hf_vlr.training.recipe import override_recipe
from hf_vlr.training.run import run
from hf_vlr.training.run_data import load_run_data, transforms

TINY = (
    "data.options={classes: 8, unseen: 2, max_count: 8, imbalance: 2, size: 16, validation: 3, test: 1}",
    "data.texts=templates",
    "data.image_size=16",
    "data.max_text_length=16",
    "vision=scratch:vit",
    "model.projection_dim=16",
    "model.num_anchors=4",
    "train.batch_size=10",
    "train.steps=5",
    "train.log_every=2",
)
RECOGNITION = ("task=recognition", "model.language=false")
# as hf_vlr.training.log has it, beside the parts of the task
TRAINING = {"step", "epoch", "grad_norm", "update_norm", "parameter_norm", "lr", "seconds", "rows_per_second"}
TRAINING |= {"peak_memory_mib"}
PARTS = {"unicl": {"loss", "contrast", "logit_scale"}, "recognition": {"loss", "visual"}}


def tiny(output: Path, *words: str) -> Recipe:
    return override_recipe(Recipe(task="unicl"), [*TINY, *words, f"output={output}"])


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("words", [(), ("optim.clip_norm=0",), RECOGNITION])
def test_every_line_has_the_documented_keys(words, tmp_path):
    recipe = tiny(tmp_path / "run", "train.validate_every=3", *words)
    lines, parts = lines_of(run(recipe)), PARTS[recipe.task]
    training = [line for line in lines if "loss" in line]
    validation = [line for line in lines if "loss" not in line]
    # the last step is logged and validated whatever the intervals
    assert [line["step"] for line in training] == [2, 4, 5]
    assert [line["step"] for line in validation] == [3, 5]
    assert all(line.keys() == TRAINING | parts for line in training)
    assert all(line.keys() == {"step", "epoch"} | {f"validation_{part}" for part in parts} for line in validation)


@pytest.mark.parametrize("bound", [0.0, 1.0])
def test_norms_are_those_of_the_step(bound, tmp_path):
    # with no memory and so large an epsilon Adam's step is lr/eps times the gradient
    words = ("optim.betas=[0.0, 0.0]", "optim.eps=1e6", "optim.lr=2e4", "optim.min_lr_ratio=1", "optim.weight_decay=0")
    words += ("optim.warmup_fraction=0", f"optim.clip_norm={bound}", "train.log_every=1", "train.save_every=1")
    folder = run(tiny(tmp_path / "run", *words, "train.keep=9"))
    for line in lines_of(folder):
        assert line["grad_norm"] > 1  # of the gradient before it is clipped
        assert line["lr"] == 2e4
        assert line["update_norm"] == pytest.approx(0.02 * (bound or line["grad_norm"]), rel=1e-3)
        weights = read_checkpoint(folder / "checkpoints" / f"step-{line['step']:08d}.pt")["task"]
        trained = [value.flatten().double() for value in weights.values() if value.is_floating_point()]
        assert line["parameter_norm"] == pytest.approx(torch.cat(trained).norm().item(), rel=1e-6)


def test_speed_is_rows_over_seconds(tmp_path):
    (line,) = lines_of(run(tiny(tmp_path / "run", "train.log_every=9")))
    rows = 4 * 10 + 3  # an epoch of 43 images is five batches
    speed, seconds = line["rows_per_second"], line["seconds"]
    assert abs(speed * seconds - rows) <= 0.005 * speed + 0.05 * seconds + 0.01  # one and two decimals are written
    progress = Progress()
    for seconds, batch in ((2.0, 12), (1.0, 12), (0.5, 7)):
        progress.seconds += seconds
        progress.advance(4, batch)
    assert progress.take_speed() == 31 / 3.5
    progress.seconds += 4.0
    progress.advance(4, 12)
    assert progress.take_speed() == 3.0
    assert (progress.epoch, progress.batch, progress.rows) == (1, 0, 43)


def test_the_validation_loss_of_recognition_is_the_models_cross_entropy(tmp_path):
    recipe = tiny(tmp_path / "run", "train.validate_every=0", *RECOGNITION)
    folder = run(recipe)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    source = load_run_data(recipe).validation
    evaluation, _ = transforms(recipe.data, load_dual_encoder(str(folder), "vlltr").image_processor)
    images = torch.stack([evaluation(image) for image in source.images])
    with torch.no_grad():
        expected = cross_entropy(model(images).logits, torch.from_numpy(source.labels))
    assert len(source) == 24  # in batches of 10, 10 and 4
    assert lines_of(folder)[-1]["validation_loss"] == pytest.approx(expected.item(), abs=2e-6)


def test_the_validation_loss_of_a_contrast_is_that_of_its_formula(tmp_path):
    """UniCL's equation, pair by pair, for the images and the sentences of one batch."""
    recipe = tiny(tmp_path / "run", "train.validate_every=0", "train.batch_size=24")
    folder = run(recipe)
    data, encoder = load_run_data(recipe), load_dual_encoder(str(folder), "unicl")
    evaluation, _ = transforms(recipe.data, encoder.image_processor)
    keys = next(iter(EpochBatches(data.validation.labels, 24, "instance", recipe.seed)))
    samples = [TrainingSet(data.validation, data.corpus, evaluation, recipe.seed)[key] for key in keys]
    labels = torch.tensor([sample["label"] for sample in samples])
    tokens = Collator(encoder.processor.tokenizer, 16).tokenize([sample["text"] for sample in samples])
    with torch.no_grad():
        images = normalize(encoder.model.get_image_features(torch.stack([sample["image"] for sample in samples])))
        texts = normalize(encoder.model.get_text_features(**tokens))
        logits = encoder.model.logit_scale.exp() * images @ texts.t()
    positive = labels[:, None] == labels
    total = 0.0
    for matrix in (logits, logits.t()):
        for row, same in zip(matrix.log_softmax(1), positive, strict=True):
            total -= row[same].mean() / (2 * len(labels))
    assert lines_of(folder)[-1]["validation_loss"] == pytest.approx(total.item(), abs=5e-6)


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "train.mixed_precision"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "train.accumulation"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "model.compile"),
    ],
)
def test_a_launcher_that_contradicts_the_recipe_is_told(name, value, key, tmp_path, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"the launcher asks for {name}={value.lower()}, which {key} of the recipe"):
        run(tiny(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_what_a_launcher_says_by_default_is_no_contradiction(tmp_path, monkeypatch):
    for name, value in (("MIXED_PRECISION", "no"), ("GRADIENT_ACCUMULATION_STEPS", "1"), ("DYNAMO_BACKEND", "NO")):
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    assert (run(tiny(tmp_path / "run", "train.steps=1")) / "config.json").exists()
