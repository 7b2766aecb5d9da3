"""A recogniser's last layer made anew: the formulas, and whole runs whose models are loaded again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoModelForImageClassification

from hf_vlr.errors import UserError
from hf_vlr.evaluation.metrics import evaluate_predictions
from hf_vlr.evaluation.predictors import image_vectors, recognise
from hf_vlr.rebalancing import (
    SCALES,
    TAUS,
    ScaledClassifier,
    balanced_accuracy,
    balanced_weights,
    choose_scale,
    choose_tau,
    ncm_classifier,
    tau_classifier,
    tau_normalise,
)
from hf_vlr.training.checkpoints import last_checkpoint, read_checkpoint
from hf_vlr.training.model_builder import load_dual_encoder
from hf_vlr.training.options import Recipe
from hf_vlr.training.rebalance import before_last, chooses
from hf_vlr.training.recipe import override_recipe
from hf_vlr.training.run import run
from hf_vlr.training.run_data import load_split, transforms
from hf_vlr.training.trainer import Trainer

TINY = (
    "data.options={classes: 6, unseen: 2, max_count: 12, imbalance: 4, size: 16, validation: 3, test: 2}",
    "data.image_size=16",
    "data.max_text_length=24",
    "vision=scratch:resnet",
    "model.projection_dim=16",
    "model.num_anchors=4",
    "train.batch_size=12",
    "train.steps=6",
    "train.log_every=3",
    "train.save_every=2",
    "optim.lr=0.01",
)
HEADS = {
    "mlp": ("model.language=false",),
    "linear": ("model.visual_head=linear", "model.fusion_weight=null"),
    "cosine": ("model.language=false", "model.visual_head=cosine"),
}
LAST = {
    "mlp": {"head.visual.2.weight", "head.visual.2.bias"},
    "linear": {"head.visual.weight", "head.visual.bias"},
    "cosine": {"head.visual.weight"},
}
RUNS = [("mlp", "tau-norm"), ("mlp", "crt"), ("mlp", "lws"), ("mlp", "ncm")]
RUNS += [("linear", "tau-norm"), ("linear", "ncm"), ("cosine", "crt"), ("cosine", "ncm")]


def tiny(output: Path, *words: str) -> Recipe:
    return override_recipe(Recipe(task="recognition"), [*TINY, *words, f"output={output}"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """Recognisers by their heads."""
    root = tmp_path_factory.mktemp("recognisers")
    return {head: run(tiny(root / head, *words)) for head, words in HEADS.items()}


def rebalance(trained: dict[str, Path], output: Path, head: str, method: str, *words: str) -> Path:
    base = ("task=rebalance", f"model.init={trained[head]}", f"rebalance.method={method}")
    return run(tiny(output, *HEADS[head], *base, "data.sampler=class-balanced", *words))


@pytest.fixture(scope="module")
def rebalanced(trained, tmp_path_factory) -> dict[tuple[str, str], Path]:
    root = tmp_path_factory.mktemp("rebalanced")
    return {(head, method): rebalance(trained, root / f"{head}-{method}", head, method) for head, method in RUNS}


def features(model, folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """What the last layer of a recogniser sees of a split, and the labels."""
    recipe = tiny(folder)
    evaluation, _ = transforms(recipe.data, load_dual_encoder(str(folder), "vlltr").image_processor)
    source = load_split(recipe, split)
    with torch.no_grad():
        return before_last(model)(image_vectors(model.vlltr, source, evaluation)), torch.from_numpy(source.labels)


def last_layer(model) -> nn.Linear:
    visual = model.head.visual
    return visual[-1] if isinstance(visual, nn.Sequential) else visual


def training_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())["protocol"]["training"]


def random_weight(classes: int = 5, width: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(classes, width, generator=generator) * torch.logspace(0.5, -0.5, classes)[:, None]


def test_tau_goes_from_no_change_to_unit_length() -> None:
    weight = random_weight()
    assert torch.equal(tau_normalise(weight, 0.0), weight)
    torch.testing.assert_close(tau_normalise(weight, 1.0).norm(dim=1), torch.ones(5))
    for tau in (0.3, 0.7, 2.0):
        for row, made in zip(weight, tau_normalise(weight, tau), strict=True):
            torch.testing.assert_close(made, row / (row**2).sum().sqrt() ** tau)


def test_a_zero_row_stays_and_harms_no_other() -> None:
    weight = random_weight()
    weight[2] = 0
    made = tau_classifier(weight, 0.5)
    assert made.isfinite().all() and not made[2].any()


@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0, 2.0])
def test_the_classifier_keeps_the_scale_and_the_predictions_of_the_normalised_weights(tau: float) -> None:
    weight = random_weight()
    made, plain = tau_classifier(weight, tau), tau_normalise(weight, tau)
    torch.testing.assert_close(made.norm(dim=1).log().mean(), weight.norm(dim=1).log().mean())
    torch.testing.assert_close(normalize(made.flatten(), dim=0), normalize(plain.flatten(), dim=0))


def test_tau_is_the_best_of_the_grid_on_balanced_accuracy() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = random_weight()
    labels = torch.tensor([0] * 60 + [1] * 20 + [2] * 10 + [4] * 4)
    seen = normalize(weight, dim=1)[labels] + 0.3 * torch.randn(len(labels), 7, generator=generator)
    found = {}
    for tau in TAUS:
        logits = seen @ tau_normalise(weight, tau).t()
        by_class = [(logits.argmax(1) == labels)[labels == label].double().mean() for label in (0, 1, 2, 4)]
        found[tau] = float(sum(by_class) / 4)
        assert balanced_accuracy(logits, labels) == pytest.approx(found[tau])
        counts = np.array([60, 20, 10, 0, 4])
        measured = evaluate_predictions(logits.numpy(), labels.numpy(), counts)["balanced_accuracy"]
        assert measured == pytest.approx(found[tau])
    best = max(found.values())
    chosen = choose_tau(seen @ weight.t(), weight, labels)
    assert chosen == min(tau for tau, value in found.items() if value == pytest.approx(best))
    assert found[chosen] > found[0.0]


def test_weights_give_every_class_the_same() -> None:
    labels = torch.tensor([3, 0, 0, 3, 3, 1])
    weights = balanced_weights(labels)
    assert [float(weights[labels == label].sum()) for label in (0, 1, 3)] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("chunk", [1, 16, 100])
def test_class_means_are_those_of_the_nearest_centroid(chunk: int) -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(100) % 5
    seen = random_weight()[labels] + torch.randn(100, 7, generator=generator)
    lengths = 10 * torch.rand(100, 1, generator=generator) + 0.1
    batches = zip((seen * lengths).split(chunk), labels.split(chunk), strict=True)
    weight = ncm_classifier(batches, 6)
    unit = normalize(seen, dim=1)
    centroids = NearestCentroid().fit(unit.numpy(), labels.numpy()).centroids_
    torch.testing.assert_close(weight[:5], normalize(torch.from_numpy(centroids).float(), dim=1))
    assert not weight[5].any()
    # among unit vectors the nearest is the one of the largest cosine
    nearest = KNeighborsClassifier(1).fit(weight[:5].numpy(), np.arange(5))
    fresh = torch.randn(50, 7, generator=generator)
    assert (3 * fresh @ weight.t()).argmax(1).tolist() == nearest.predict(normalize(fresh, dim=1).numpy()).tolist()


def test_the_scale_is_the_most_likely_one() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4000, 4, generator=generator)
    true = 8.0
    labels = torch.multinomial((true * logits).softmax(1), 1, generator=generator)[:, 0]
    assert true in SCALES
    assert choose_scale(logits, labels) == true


def test_scales_are_trained_and_folded_into_the_layer() -> None:
    torch.manual_seed(0)
    layer, seen = nn.Linear(7, 5), torch.randn(9, 7)
    layer.requires_grad_(False)
    classifier = ScaledClassifier(layer)
    assert torch.equal(classifier(seen), layer(seen))
    assert [name for name, _ in classifier.named_parameters()] == ["scales"]
    assert classifier.state_dict().keys() == {"scales"}
    with torch.no_grad():
        classifier.scales.copy_(torch.tensor([2.0, 0.5, 1.0, -1.0, 0.0]))
    before = classifier(seen)
    assert torch.equal(before, classifier.scales * layer(seen))
    classifier.fold()
    torch.testing.assert_close(layer(seen), before)


@pytest.mark.parametrize(("head", "method"), RUNS)
def test_only_the_last_layer_changes_and_the_loaded_model_predicts_what_was_measured(
    head: str, method: str, trained, rebalanced
) -> None:
    folder = rebalanced[head, method]
    before, after = (load_file(place / "model.safetensors") for place in (trained[head], folder))
    # τ = 0 leaves the weights as they are and drops the bias
    untouched = "weight" if training_of(folder).get("tau") == 0.0 else None
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in LAST[head] if key.rpartition(".")[2] != untouched}
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    recipe = tiny(folder)
    evaluation, _ = transforms(recipe.data, load_dual_encoder(str(folder), "vlltr").image_processor)
    test = load_split(recipe, "test")
    found, stored = recognise(model, image_vectors(model.vlltr, test, evaluation)), np.load(folder / "predictions.npz")
    assert stored["labels"].tolist() == test.labels.tolist()
    assert set(found) == ({"fused", "visual", "language"} if head == "linear" else {"visual"})
    for name, scores in found.items():
        np.testing.assert_allclose(scores, stored[name], atol=1e-5)
    assert training_of(folder)["method"] == method
    if head == "linear":
        assert training_of(folder)["fusion_weight"] == model.config.fusion_weight


@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_tau_is_chosen_on_validation_images_alone(head: str, trained, rebalanced) -> None:
    folder = rebalanced[head, "tau-norm"]
    said = training_of(folder)
    assert said["chosen_on"] == "validation"
    before = AutoModelForImageClassification.from_pretrained(trained[head]).eval()
    weight = last_layer(before).weight.detach()
    seen, labels = features(before, trained[head], "validation")
    scores = [balanced_accuracy(seen @ tau_normalise(weight, tau).t(), labels) for tau in TAUS]
    assert said["tau"] == TAUS[int(np.argmax(np.round(scores, 9)))]
    after = last_layer(AutoModelForImageClassification.from_pretrained(folder))
    torch.testing.assert_close(after.weight.detach(), tau_classifier(weight, said["tau"]))
    assert not after.bias.any()


def test_a_given_tau_needs_no_validation_images(trained, tmp_path) -> None:
    model = AutoModelForImageClassification.from_pretrained(trained["mlp"])
    asked = tiny(tmp_path, "task=rebalance", "model.language=false")
    given = override_recipe(asked, ["rebalance.tau=0.35"])
    assert (chooses(asked, model), chooses(given, model)) == (True, False)
    folder = rebalance(trained, tmp_path / "run", "mlp", "tau-norm", "rebalance.tau=0.35")
    assert training_of(folder) == {"method": "tau-norm", "tau": 0.35, "chosen_on": None}


@pytest.mark.parametrize("head", HEADS)
def test_class_means_predict_by_cosine(head: str, trained, rebalanced) -> None:
    model = AutoModelForImageClassification.from_pretrained(rebalanced[head, "ncm"]).eval()
    (seen, labels), (fresh, _) = (features(model, trained[head], split) for split in ("train", "test"))
    unit = normalize(seen, dim=1)
    means = normalize(torch.stack([unit[labels == label].mean(0) for label in range(6)]), dim=1)
    nearest = KNeighborsClassifier(1).fit(means.numpy(), np.arange(6)).predict(normalize(fresh, dim=1).numpy())
    with torch.no_grad():
        logits = last_layer(model)(fresh)
    assert logits.argmax(1).tolist() == nearest.tolist()
    scale = training_of(rebalanced[head, "ncm"])["scale"]
    if head == "cosine":
        torch.testing.assert_close(logits, scale * normalize(fresh, dim=1) @ means.t(), rtol=1e-4, atol=1e-4)
        assert model.config.visual_scale == scale
    else:
        validation, _ = features(model, trained[head], "validation")
        expected = scale / validation.norm(dim=1).mean() * fresh @ means.t()
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_weight_scaling_changes_lengths_and_no_direction(trained, rebalanced) -> None:
    before, after = (
        last_layer(AutoModelForImageClassification.from_pretrained(place))
        for place in (trained["mlp"], rebalanced["mlp", "lws"])
    )
    factors = after.bias.detach() / before.bias.detach()
    assert (factors - 1).abs().min() > 1e-3
    torch.testing.assert_close(after.weight.detach(), factors[:, None] * before.weight.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["crt", "lws"])
def test_checkpoints_hold_the_classifier_alone(method: str, rebalanced) -> None:
    def tensors(tree) -> int:
        if isinstance(tree, dict):
            return sum(map(tensors, tree.values()))
        return tree.numel() if isinstance(tree, Tensor) else 0

    state = read_checkpoint(last_checkpoint(rebalanced["mlp", method] / "checkpoints"))
    size = 6 if method == "lws" else 6 * (64 + 1)
    # the weights, and twice as much (and step counters) of the optimiser
    assert 3 * size <= tensors(state) <= 3 * size + 40


class Interrupted(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("words", [("lws",), ("crt", "data.sampler=over", "data.synthesis=transfer")])
def test_a_resumed_run_is_the_uninterrupted_one(words: tuple[str, ...], trained, tmp_path, monkeypatch) -> None:
    whole = rebalance(trained, tmp_path / "whole", "mlp", *words)
    taken, full = iter(range(5)), Trainer._batch

    def part(self, batch):
        if next(taken, None) is None:
            raise Interrupted
        return full(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_batch", part)
        with pytest.raises(Interrupted):
            rebalance(trained, tmp_path / "parts", "mlp", *words)
    assert last_checkpoint(tmp_path / "parts" / "checkpoints").name == "step-00000004.pt"
    base = ("task=rebalance", f"model.init={trained['mlp']}", f"rebalance.method={words[0]}")
    recipe = tiny(tmp_path / "parts", *HEADS["mlp"], *base, "data.sampler=class-balanced", *words[1:])
    parts = run(recipe, resume=True)
    found, expected = (load_file(folder / "model.safetensors") for folder in (parts, whole))
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_synthetic_states_need_repeated_draws_and_cached_ones(trained, tmp_path) -> None:
    with pytest.raises(UserError, match=r"data\.synthesis=smote replaces .*: set data\.sampler=over"):
        rebalance(trained, tmp_path / "run", "mlp", "crt", "data.synthesis=smote")
    with pytest.raises(UserError, match=r"data\.synthesis=smote makes states, .*: set data\.cache_views=1 or more"):
        run(tiny(tmp_path / "run", "model.language=false", "data.synthesis=smote", "data.sampler=over"))
    assert not (tmp_path / "run").exists()
    words = ("model.language=false", "model.freeze=vision_model", "data.cache_views=2", "data.sampler=over")
    plain = run(tiny(tmp_path / "plain", *words))
    for kind in ("smote", "transfer"):
        made = run(tiny(tmp_path / kind, *words, f"data.synthesis={kind}"))
        assert (made / "config.json").is_file()
        assert (made / "log.jsonl").read_text() != (plain / "log.jsonl").read_text()


def test_what_cannot_be_rebalanced_is_named(trained, tmp_path) -> None:
    stage1 = run(tiny(tmp_path / "stage1", "task=cvlp", "train.steps=1"))
    cases = [
        (
            ("mlp", "crt", "data.sampler=sqrt"),
            r"rebalance\.method=crt trains on balanced classes, not on ",
        ),
        (("mlp", "crt", "model.init=null"), "task=rebalance needs a trained recogniser: set model.init"),
        (("mlp", "ncm", f"model.init={stage1}"), "is no recogniser; task=rebalance needs what task=recognition wrote"),
        (("mlp", "ncm", "data.options.classes=7"), r"has other classes \(6\) than the training data \(7\)"),
        (("mlp", "ncm", "model.language=true"), "is visual only: set model.language=false"),
        (("linear", "ncm", "model.language=false"), "has a language branch: set model.language=true"),
        (("cosine", "tau-norm"), "which a cosine head has not"),
        (("cosine", "lws"), "which a cosine head has not"),
    ]
    for words, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            rebalance(trained, tmp_path / "run", *words)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()


def test_balance_is_learned_on_a_layer_that_was_not(trained, tmp_path) -> None:
    """A head that knows the largest class alone: re-training it on frozen features lowers its loss."""
    words = ("train.steps=200", "train.log_every=50", "train.save_every=200", "optim.lr=0.05")
    folder = rebalance(trained, tmp_path / "run", "mlp", "crt", *words, "train.validate_every=100")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert len([line["validation_loss"] for line in lines if "validation_loss" in line]) == 2
