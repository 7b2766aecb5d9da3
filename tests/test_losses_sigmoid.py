"""The unified sigmoid loss against a recorded number, its definition, SigLIP, and what must hold of every batch."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_vlr.losses.sigmoid import unified_sigmoid_loss, unified_sigmoid_loss_reference

GOLDEN = Path(__file__).parent / "golden"


def relative_error(value: Tensor, expected: Tensor) -> float:
    return ((value.double() - expected.double()).norm() / expected.double().norm()).item()


def value_and_gradients(loss, *inputs: Tensor, **options) -> list[Tensor]:
    """The loss and its gradient by every input."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    value = loss(*leaves, **options)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def sigmoid(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, *, labels: Tensor, **options) -> Tensor:
    return unified_sigmoid_loss(images, texts, labels, scale, bias, **options)


def reference(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, *, labels: Tensor, **options) -> Tensor:
    return unified_sigmoid_loss_reference(images, texts, labels, scale, bias, **options)


def random_batch(seed: int, dtype: torch.dtype = torch.float32) -> dict:
    """Pairs of random sizes, with repeated and unused texts, texts under several labels, and -1 labels."""
    generator = torch.Generator().manual_seed(seed)
    pairs, width, classes = (int(torch.randint(2, high, (), generator=generator)) for high in (60, 24, 12))
    texts, text_index = pairs, None
    if seed % 3:
        texts = int(torch.randint(1, pairs + 1, (), generator=generator))
        text_index = torch.randint(0, texts, (pairs,), generator=generator)
    inputs = [
        torch.randn(pairs, width, generator=generator) * 3,
        torch.randn(texts, width, generator=generator) - 0.3,
        torch.tensor([5.0, 10.0, 40.0, 100.0])[seed % 4],
        torch.tensor([-10.0, -1.0, 3.0])[seed % 3],
    ]
    return {
        "inputs": [tensor.to(dtype) for tensor in inputs],
        "options": {"labels": torch.randint(-1, classes, (pairs,), generator=generator), "text_index": text_index},
        "chunk_size": [1, 7, pairs, None][seed // 2 % 4],
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("seed", range(24))
def test_loss_and_gradients_agree_with_the_reference(seed: int, dtype: torch.dtype, tolerance: float) -> None:
    batch = random_batch(seed, dtype)
    results = value_and_gradients(sigmoid, *batch["inputs"], chunk_size=batch["chunk_size"], **batch["options"])
    expected = value_and_gradients(reference, *(x.double() for x in batch["inputs"]), **batch["options"])
    for result, truth in zip(results, expected):
        assert result.dtype == dtype
        assert relative_error(result, truth) < tolerance


def test_recorded_loss() -> None:
    vectors, numbers = (
        np.load(GOLDEN / "unicl_testvectors.npz"),
        json.loads((GOLDEN / "unicl_testvectors.json").read_text()),
    )
    labels = torch.tensor(numbers["mixed"]["labels"])
    labels = torch.where(labels == 0, -1, labels)  # the record marks an image-text pair by 0
    recorded = numbers["sigmoid_mixed"]
    scale, bias = (torch.tensor(recorded[key], dtype=torch.float64) for key in ("t", "b"))
    value = unified_sigmoid_loss(torch.tensor(vectors["U"]), torch.tensor(vectors["V"]), labels, scale, bias)
    assert value.item() == pytest.approx(recorded["loss"], rel=1e-12)


def test_pairs_without_classes_are_siglip() -> None:
    peer = pytest.importorskip("open_clip.loss").SigLipLoss()
    inputs = random_batch(3, torch.float64)["inputs"]  # one text a pair

    def siglip(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return peer(F.normalize(images, dim=-1), F.normalize(texts, dim=-1), scale, bias)

    results = value_and_gradients(sigmoid, *inputs, labels=torch.full((len(inputs[0]),), -1))
    for result, truth in zip(results, value_and_gradients(siglip, *inputs)):
        assert relative_error(result, truth) < 1e-10


def test_the_order_of_pairs_does_not_matter() -> None:
    batch = random_batch(4, torch.float64)
    order = torch.randperm(len(batch["inputs"][0]), generator=torch.Generator().manual_seed(0))
    value, images_gradient, *rest = value_and_gradients(sigmoid, *batch["inputs"], **batch["options"])
    images, *others = batch["inputs"]
    moved = {key: tensor[order] for key, tensor in batch["options"].items()}
    again, moved_gradient, *moved_rest = value_and_gradients(sigmoid, images[order], *others, **moved)
    torch.testing.assert_close(again, value)
    torch.testing.assert_close(moved_gradient, images_gradient[order])
    torch.testing.assert_close(moved_rest, rest)


def test_a_shared_text_equals_its_copies() -> None:
    images, texts, scale, bias = random_batch(9, torch.float64)["inputs"]
    labels, text_index = torch.tensor([0, 0, 1, -1, 2, 2, -1, -1, 3]), torch.tensor([3, 3, 0, 1, 3, 2, 2, 2, 0])
    shared = unified_sigmoid_loss(images[:9], texts[:6], labels, scale, bias, text_index=text_index)
    copied = unified_sigmoid_loss(images[:9], texts[text_index], labels, scale, bias)
    torch.testing.assert_close(shared, copied)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_the_shares_of_processes_add_up(seed: int) -> None:
    """Each takes some of the images, one of them none, and all texts: values and gradients are those of the batch."""
    batch = random_batch(seed, torch.float64)
    images, texts, *numbers = batch["inputs"]
    whole = value_and_gradients(sigmoid, *batch["inputs"], **batch["options"])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    shares = [order[:2], order[2:2], order[2:]]
    parts = [
        value_and_gradients(sigmoid, images[rows], texts, *numbers, rows=rows, **batch["options"]) for rows in shares
    ]
    values, image_gradients, *rest = zip(*parts)
    torch.testing.assert_close(sum(values), whole[0])
    torch.testing.assert_close(torch.cat(image_gradients), whole[1][order])
    for part, truth in zip(rest, whole[2:]):
        torch.testing.assert_close(sum(part), truth)


@pytest.mark.parametrize("chunk_size", [1, 3, None])
@pytest.mark.parametrize("labels", [[0] * 8, [-1] * 8, [0, 0, 1, 1, -1, -1, 2, 2]])
def test_all_cosines_minus_one_at_scale_one_hundred(labels: list[int], chunk_size: int | None) -> None:
    """Every logit is -110: a negative costs e^-110, a positive 110."""
    texts = torch.randn(1, 16, generator=torch.Generator().manual_seed(5)).expand(8, 16)
    inputs = (-texts, texts, torch.tensor(100.0), torch.tensor(-10.0))
    options = {"labels": torch.tensor(labels)}
    value, *gradients = value_and_gradients(sigmoid, *inputs, chunk_size=chunk_size, **options)
    classes = torch.tensor([c for c in labels if c >= 0], dtype=torch.int64).bincount()
    positives = int((classes**2).sum()) + labels.count(-1)
    assert value.item() == pytest.approx(110 * positives / 8, rel=1e-5)
    torch.testing.assert_close(gradients[2:], [torch.tensor(positives / 8), torch.tensor(-positives / 8)])
    # opposite unit vectors only turn: the gradients along them vanish but for rounding
    for gradient in gradients[:2]:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_logits_from_minus_to_plus_one_hundred(chunk_size: int | None) -> None:
    """At random: positives far below and negatives far above zero, both linear; float32 loses nothing."""
    generator = torch.Generator().manual_seed(5)
    texts, noise = torch.randn(2, 8, 16, generator=generator)
    images = torch.tensor([1.0, -1.0]).repeat(4)[:, None] * texts[0] + 0.2 * noise
    inputs = (images, texts[:1] + 0.2 * texts, torch.tensor(100.0), torch.tensor(0.0))
    options = {"labels": torch.tensor([0, 0, 1, 1, -1, -1, 2, 2])}
    results = value_and_gradients(sigmoid, *inputs, chunk_size=chunk_size, **options)
    for result, truth in zip(results, value_and_gradients(reference, *(x.double() for x in inputs), **options)):
        assert relative_error(result, truth) < 1e-5


def test_one_class_of_certain_pairs_costs_nothing() -> None:
    """Equal images and texts: every answer is yes at logit 90. The rounding that is left is that of 6 x 90."""
    images = torch.randn(1, 4, generator=torch.Generator().manual_seed(1)).expand(6, 4)
    inputs = (images, images, torch.tensor(100.0), torch.tensor(-10.0))
    for result in value_and_gradients(sigmoid, *inputs, labels=torch.zeros(6, dtype=torch.int64)):
        torch.testing.assert_close(result, torch.zeros_like(result), atol=540 * 2**-22, rtol=0)


def test_one_pair() -> None:
    images, texts = torch.randn(2, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    scale, bias = torch.tensor(10.0, dtype=torch.float64), torch.tensor(-10.0, dtype=torch.float64)
    expected = math.log1p(math.exp(10 - 10 * F.cosine_similarity(images, texts).item()))
    for label in (-1, 5):
        value = unified_sigmoid_loss(images, texts, torch.tensor([label]), scale, bias)
        assert value.item() == pytest.approx(expected, rel=1e-12)
    certain = unified_sigmoid_loss(images, images, torch.tensor([-1]), scale + 21, bias)
    assert certain.item() == pytest.approx(math.exp(-21), rel=1e-4)  # what float64 keeps of 21 - 21


def test_gradcheck() -> None:
    images, texts, *_ = random_batch(7, torch.float64)["inputs"]
    labels, text_index = torch.tensor([0, -1, 1, 1, 0, -1, 2]), torch.tensor([0, 1, 1, 3, 0, 3, 3])
    scale, bias = torch.tensor(4.0, dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (images[:7, :3].clone(), texts[:4, :3].clone(), scale, bias)]
    assert torch.autograd.gradcheck(
        lambda u, v, t, b: unified_sigmoid_loss(u, v, labels, t, b, text_index=text_index, chunk_size=3), leaves
    )


def test_nothing_quadratic_is_kept_for_the_backward_pass() -> None:
    pairs, width = 256, 4
    images, texts = (torch.randn(pairs, width, requires_grad=True) for _ in range(2))
    scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    kept: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        value = unified_sigmoid_loss(images, texts, torch.arange(pairs) // 3, scale, bias)
    value.backward()
    assert 0 < sum(kept.values()) < 20 * pairs * (width + 1) * images.element_size()


def test_frozen_towers_get_no_gradient() -> None:
    images, texts, scale, bias = random_batch(3)["inputs"]
    labels = torch.arange(len(images)) % 3
    together = value_and_gradients(sigmoid, images, texts, scale, bias, labels=labels)[1:]
    for place, truth in enumerate(together):
        inputs = [images.clone(), texts.clone(), scale.clone(), bias.clone()]
        inputs[place].requires_grad_()
        (alone,) = torch.autograd.grad(sigmoid(*inputs, labels=labels), inputs[place])
        torch.testing.assert_close(alone, truth)


def test_low_precision_features_are_computed_in_float32_under_autocast() -> None:
    batch = random_batch(6, torch.bfloat16)
    leaves = [x.clone().requires_grad_() for x in batch["inputs"]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = sigmoid(*leaves, **batch["options"])
        value.backward()
    expected = sigmoid(*(x.float() for x in batch["inputs"]), **batch["options"])
    assert value.dtype == torch.float32
    assert value.item() == expected.item()
    assert all(x.grad.dtype == torch.bfloat16 and x.grad.isfinite().all() for x in leaves)


def test_repeats_bit_for_bit_and_compiles() -> None:
    batch = random_batch(10)
    first, second = (value_and_gradients(sigmoid, *batch["inputs"], **batch["options"]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    compiled = torch.compile(sigmoid, backend="eager")
    torch.testing.assert_close(value_and_gradients(compiled, *batch["inputs"], **batch["options"]), first)


def test_descent_aligns_the_classes() -> None:
    """Gradient descent on random features ends with each image nearest to a text of its class."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(24, 8, generator=generator).requires_grad_()
    texts = torch.randn(6, 8, generator=generator).requires_grad_()
    bias, labels = torch.tensor(-10.0, requires_grad=True), torch.arange(24) % 6
    optimizer = torch.optim.Adam([images, texts, bias], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        unified_sigmoid_loss(images, texts, labels, torch.tensor(10.0), bias, text_index=labels).backward()
        optimizer.step()
    nearest = (F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T).argmax(1)
    assert torch.equal(nearest, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, -2, 1])}, "labels must be -1"),
        ({"labels": torch.tensor([0, 1])}, "3 images do not fit 2 labels"),
        ({"labels": torch.tensor([0.0, 1.0, 2.0])}, "labels must be"),
        ({"labels": torch.tensor([], dtype=torch.int64)}, "labels must be"),
        ({"text_features": torch.ones(2, 4)}, "need a text_index"),
        ({"text_features": torch.ones(3, 5)}, "features must be"),
        ({"text_index": torch.tensor([0, 1, 3])}, "text_index must lie in"),
        ({"text_index": torch.tensor([0, 1])}, "text_index must hold 3"),
        ({"text_index": torch.tensor([0.0, 1.0, 2.0])}, "text_index must be integers"),
        ({"rows": torch.tensor([0, 1])}, "3 images do not fit"),
        ({"rows": torch.tensor([0, 1, 3])}, "rows must lie in"),
        ({"logit_scale": torch.ones(2)}, "logit_scale"),
        ({"logit_bias": torch.ones(2)}, "logit_bias"),
        ({"chunk_size": 0}, "chunk_size"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    arguments = {
        "image_features": torch.ones(3, 4),
        "text_features": torch.ones(3, 4),
        "labels": torch.tensor([0, 1, -1]),
        "logit_scale": torch.tensor(10.0),
        "logit_bias": torch.tensor(-10.0),
    }
    with pytest.raises(ValueError, match=message):
        unified_sigmoid_loss(**(arguments | change))
