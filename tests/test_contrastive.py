# SPDX-License-Identifier: MIT
"""Image-text-label contrast against recorded numbers, its definition, and what must hold for every batch."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_vlr.modeling import log_sums
from hf_vlr.modeling.contrastive import (
    DIRECTIONS,
    clip_loss,
    distillation_loss,
    distillation_loss_reference,
    image_text_label_loss,
    image_text_label_loss_reference,
)
from hf_vlr.modeling.log_sums import SHARED_SHIFT_SPAN, two_sided_log_sum_exp

GOLDEN = Path(__file__).parent / "golden"
UNICL = np.load(GOLDEN / "unicl_testvectors.npz")
UNICL_NUMBERS = json.loads((GOLDEN / "unicl_testvectors.json").read_text())
VLLTR = np.load(GOLDEN / "vlltr_testvectors.npz")
TOLERANCE = 1e-5
BATCHES = ("mixed", "captions_only", "labels_only", "one_class")


def relative_error(value: Tensor, expected: Tensor) -> float:
    return ((value.double() - expected.double()).norm() / expected.double().norm()).item()


def value_and_gradients(loss, *inputs: Tensor, **options) -> list[Tensor]:
    """The loss and its gradient by every input."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    value = loss(*leaves, **options)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def contrast(images: Tensor, texts: Tensor, scale: Tensor, *, labels: Tensor, **options) -> Tensor:
    return image_text_label_loss(images, texts, labels, scale, **options)


def contrast_reference(images: Tensor, texts: Tensor, scale: Tensor, *, labels: Tensor, **options) -> Tensor:
    return image_text_label_loss_reference(images, texts, labels, scale, **options)


def random_batch(seed: int) -> dict[str, Tensor | None]:
    """Pairs of random sizes, with repeated and unused texts, texts under several labels, and -1 labels."""
    generator = torch.Generator().manual_seed(seed)
    pairs, width, classes = (int(torch.randint(2, high, (), generator=generator)) for high in (60, 24, 12))
    texts, text_index = pairs, None
    if seed % 3:
        texts = int(torch.randint(1, pairs + 1, (), generator=generator))
        text_index = torch.randint(0, texts, (pairs,), generator=generator)
    return {
        "images": torch.randn(pairs, width, generator=generator) * 3,
        "texts": torch.randn(texts, width, generator=generator) - 0.3,
        "scale": torch.tensor([5.0, 14.3, 40.0, 100.0])[seed % 4],
        "labels": torch.randint(-1, classes, (pairs,), generator=generator),
        "text_index": text_index,
        "chunk_size": [1, 7, pairs, None][seed // 2 % 4],
    }


@pytest.mark.parametrize("name", BATCHES)
def test_recorded_unicl_losses(name: str) -> None:
    expected = UNICL_NUMBERS[name]
    images, texts = torch.tensor(UNICL["U"]), torch.tensor(UNICL["V"])
    labels = torch.tensor(expected["labels"])
    labels = torch.where(labels == 0, -1, labels)  # these records mark an image-text pair by 0
    log_scale = torch.tensor(UNICL_NUMBERS["logit_scale"], dtype=torch.float64)
    value, *gradients = value_and_gradients(
        lambda u, v, s: image_text_label_loss(u, v, labels, s.exp()), images, texts, log_scale
    )
    assert value.item() == pytest.approx(expected["loss"], rel=1e-12)
    for gradient, key in zip(gradients, ("grad_img", "grad_txt")):
        assert relative_error(gradient, torch.tensor(UNICL[f"{name}.{key}"])) < 1e-12
    assert gradients[2].item() == pytest.approx(expected["grad_logit_scale"], rel=1e-12)
    for direction, key in (("image_to_text", "i2t"), ("text_to_image", "t2i")):
        value = image_text_label_loss(images, texts, labels, log_scale.exp(), direction=direction)
        assert value.item() == pytest.approx(expected[key], rel=1e-12)
        assert value.item() == pytest.approx(UNICL[f"{name}.{key}"].mean(), rel=1e-12)


def test_recorded_vlltr_losses() -> None:
    images, texts, teacher_images, teacher_texts = (
        torch.tensor(VLLTR[f"ccl/{key}"]) for key in ("img_feat", "txt_feat", "t_img_feat", "t_txt_feat")
    )
    labels, scale = torch.tensor(VLLTR["ccl/labels"]), torch.tensor(VLLTR["ccl/scale"])
    smoothed = image_text_label_loss(images, texts, labels, scale, label_smoothing=0.1)
    plain = image_text_label_loss(images, texts, labels, scale)
    distilled = distillation_loss(
        images, texts, scale, teacher_images, teacher_texts, torch.tensor(VLLTR["ccl/t_scale"])
    )
    assert smoothed.item() == pytest.approx(VLLTR["ccl/L_ccl_smooth0.1"].item(), rel=TOLERANCE)
    assert plain.item() == pytest.approx(VLLTR["ccl/L_ccl_smooth0"].item(), rel=TOLERANCE)
    assert distilled.item() == pytest.approx(VLLTR["ccl/L_dis"].item(), rel=TOLERANCE)
    total = 0.5 * smoothed + 0.5 * distilled
    assert total.item() == pytest.approx(VLLTR["ccl/total_beta0.5"].item(), rel=TOLERANCE)


@pytest.mark.parametrize("seed", range(48))
def test_loss_and_gradients_agree_with_the_reference(seed: int) -> None:
    batch = random_batch(seed)
    inputs = [batch[key] for key in ("images", "texts", "scale")]
    options = {key: batch[key] for key in ("labels", "text_index")}
    options["direction"] = list(DIRECTIONS)[seed % 3]
    options["label_smoothing"] = [0.0, 0.1, 0.7][seed // 3 % 3]
    results = value_and_gradients(contrast, *inputs, chunk_size=batch["chunk_size"], **options)
    expected = value_and_gradients(contrast_reference, *(x.double() for x in inputs), **options)
    for result, truth in zip(results, expected):
        assert result.dtype == torch.float32
        assert relative_error(result, truth) < TOLERANCE


@pytest.mark.parametrize("seed", range(24))
def test_blocks_of_texts_agree_with_the_reference(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16 numbers: parts of the images and blocks of the texts, some of which no pair uses."""
    monkeypatch.setattr(log_sums, "TILE_BYTES_CPU", 64)
    batch = random_batch(seed)
    inputs = [batch[key] for key in ("images", "texts", "scale")]
    options = {key: batch[key] for key in ("labels", "text_index")} | {"direction": list(DIRECTIONS)[seed % 3]}
    results = value_and_gradients(contrast, *inputs, **options)
    expected = value_and_gradients(contrast_reference, *(x.double() for x in inputs), **options)
    for result, truth in zip(results, expected):
        assert relative_error(result, truth) < TOLERANCE


def test_tiles_cover_every_logit_once(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys = torch.randn(23, 3), torch.randn(31, 3)
    for size, tile_bytes in ((None, 8 << 20), (None, 400), (5, 400), (1, 4), (23, 4)):
        monkeypatch.setattr(log_sums, "TILE_BYTES_CPU", tile_bytes)
        seen, logits = torch.zeros(23, 31), torch.zeros(23, 31)
        for part, block, tile, shift in log_sums._tiles(queries, keys, size):
            assert tile.nbytes <= max(tile_bytes, 4) or size
            seen[part, block] += 1
            logits[part, block] = tile + shift
        assert (seen == 1).all()
        torch.testing.assert_close(logits, queries @ keys.T)


@pytest.mark.parametrize("seed", range(16))
def test_distillation_agrees_with_the_reference(seed: int) -> None:
    batch, teacher = random_batch(seed), torch.Generator().manual_seed(seed)
    inputs = [batch[key] for key in ("images", "texts", "scale")]
    frozen = [torch.randn(len(x), 9, generator=teacher, requires_grad=True) for x in inputs[:2]]
    frozen.append(torch.tensor(100.0, requires_grad=True))

    def student(function, *trained: Tensor, **options) -> Tensor:
        given = [x.to(trained[0].dtype) for x in frozen]
        return function(*trained, *given, text_index=batch["text_index"], **options)

    results = value_and_gradients(lambda *x: student(distillation_loss, *x, chunk_size=batch["chunk_size"]), *inputs)
    expected = value_and_gradients(lambda *x: student(distillation_loss_reference, *x), *(x.double() for x in inputs))
    for result, truth in zip(results, expected):
        assert relative_error(result, truth) < TOLERANCE
    student(distillation_loss, *(x.clone().requires_grad_() for x in inputs)).backward()
    assert all(tensor.grad is None for tensor in frozen)


def test_a_pair_order_does_not_matter() -> None:
    batch = random_batch(4)
    order = torch.randperm(len(batch["labels"]), generator=torch.Generator().manual_seed(0))
    inputs = [batch[key].double() for key in ("images", "texts", "scale")]
    value, images_gradient, *rest = value_and_gradients(
        contrast, *inputs, labels=batch["labels"], text_index=batch["text_index"]
    )
    inputs[0] = inputs[0][order]
    moved, moved_gradient, *moved_rest = value_and_gradients(
        contrast, *inputs, labels=batch["labels"][order], text_index=batch["text_index"][order]
    )
    torch.testing.assert_close(moved, value)
    torch.testing.assert_close(moved_gradient, images_gradient[order])
    torch.testing.assert_close(moved_rest, rest)


def test_a_shared_text_equals_its_copies() -> None:
    images, texts = torch.randn(2, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels, text_index = (
        torch.tensor([0, 0, 1, -1, 2, 2, 2, -1, 3]),
        torch.tensor([3, 3, 0, 1, 3, 2, 4, 2, 0]),
    )
    scale = torch.tensor(20.0, dtype=torch.float64)
    shared = image_text_label_loss(images, texts[:6], labels, scale, text_index=text_index)
    copied = image_text_label_loss(images, texts[text_index], labels, scale)
    torch.testing.assert_close(shared, copied)


def test_unique_labels_are_clip() -> None:
    images, texts = torch.randn(2, 12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    scale, target = torch.tensor(30.0, dtype=torch.float64), torch.arange(12)
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    expected = 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
    torch.testing.assert_close(clip_loss(images, texts, scale), expected)
    torch.testing.assert_close(image_text_label_loss(images, texts, target.flip(0) * 5, scale), expected)


def test_one_text_a_class_is_balanced_softmax() -> None:
    """-log softmax(z + log n)_y + log n_y, n the class counts of the batch (UniCL and logit adjustment)."""
    counts = torch.tensor([7, 3, 1])
    labels = torch.arange(3).repeat_interleave(counts)
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(len(labels), 8, dtype=torch.float64, generator=generator)
    texts = torch.randn(3, 8, dtype=torch.float64, generator=generator)
    scale = torch.tensor(14.0, dtype=torch.float64)
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    expected = F.cross_entropy(logits + counts.log(), labels) + counts.log()[labels].double().mean()
    value = image_text_label_loss(images, texts, labels, scale, text_index=labels, direction="image_to_text")
    torch.testing.assert_close(value, expected)


def test_one_pair_has_loss_zero() -> None:
    results = value_and_gradients(
        contrast, torch.randn(1, 4), torch.randn(1, 4), torch.tensor(100.0), labels=torch.tensor([0])
    )
    for result in results:
        torch.testing.assert_close(result, torch.zeros_like(result), atol=3e-5, rtol=0)  # 100 * 2**-22


def test_one_class_pulls_every_text() -> None:
    """Equal images and equal texts in one class: every softmax is uniform and the loss is log N."""
    images, texts = torch.randn(1, 4).expand(6, 4), torch.randn(1, 4).expand(6, 4)
    value = image_text_label_loss(images, texts, torch.zeros(6, dtype=torch.int64), torch.tensor(50.0))
    assert value.item() == pytest.approx(math.log(6), rel=TOLERANCE)


@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_all_cosines_minus_one_at_scale_one_hundred(chunk_size: int | None) -> None:
    """Every logit is -tau, where a constant shift underflows in float32: uniform softmaxes, loss log N."""
    texts = torch.randn(1, 16, generator=torch.Generator().manual_seed(5)).expand(8, 16)
    labels = torch.tensor([0, 0, 1, 1, -1, -1, 2, 2])
    value, *gradients = value_and_gradients(
        contrast, -texts, texts, torch.tensor(100.0), labels=labels, chunk_size=chunk_size
    )
    assert value.item() == pytest.approx(math.log(8), rel=TOLERANCE)
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk_size", [1, 3, None])
@pytest.mark.parametrize("kind", ["opposite", "mixed", "far_tiles"])
def test_safe_at_scale_one_hundred(kind: str, chunk_size: int | None) -> None:
    """Logits near -tau, and logits from -tau to tau, where one shift cannot serve a tile in float32."""
    generator = torch.Generator().manual_seed(5)
    texts, noise = torch.randn(2, 8, 16, generator=generator)
    texts = texts[:1] + 0.2 * texts
    sign = torch.ones(8)
    if kind == "opposite":
        sign = -sign
    elif kind == "mixed":
        sign[::2] = -1.0
    else:
        sign[:3] = -1.0  # in chunks of three the first tile lies 200 nats below the others
    images = sign[:, None] * texts[0] + 0.2 * noise
    options = {"labels": torch.tensor([0, 0, 1, 1, -1, -1, 2, 2]), "label_smoothing": 0.1}
    inputs = (images, texts, torch.tensor(100.0))
    exact_inputs = [x.double() for x in inputs]
    expected = value_and_gradients(contrast_reference, *exact_inputs, **options)
    # In float32 all but the derivative by the scale: a difference of cosines near -1, it is left to float64.
    results = value_and_gradients(contrast, *inputs, chunk_size=chunk_size, **options)
    for result, truth in zip(results[:3], expected):
        assert relative_error(result, truth) < TOLERANCE
    results = value_and_gradients(contrast, *exact_inputs, chunk_size=chunk_size, **options)
    for result, truth in zip(results, expected):
        assert relative_error(result, truth) < 1e-11


@pytest.mark.parametrize("scale", [49.9, 50.1, 100.0])
def test_a_batch_at_a_large_scale_agrees_with_float64(scale: float) -> None:
    """On either side of the scale from which on logits are looked at before their exponentials are taken."""
    generator = torch.Generator().manual_seed(8)
    images, texts = torch.randn(2, 257, 32, generator=generator)
    images[1], texts[1], texts[2] = texts[0], texts[0], -texts[0]  # cosines 1 and -1
    images[0] = -texts[0]
    labels = torch.randint(-1, 40, (257,), generator=generator)
    inputs = (images, texts, torch.tensor(scale))
    results = value_and_gradients(contrast, *inputs, labels=labels)
    expected = value_and_gradients(contrast_reference, *(x.double() for x in inputs), labels=labels)
    for result, truth in zip(results, expected):
        assert relative_error(result, truth) < TOLERANCE


def test_a_vector_of_zeros_is_no_direction() -> None:
    """As in the reference: cosines 0 with everything, and a gradient that is large but finite."""
    images, texts = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    images[2], texts[3] = 0.0, 0.0
    inputs, labels = (images, texts, torch.tensor(20.0, dtype=torch.float64)), torch.tensor([0, 0, 1, 1, -1, -1])
    results = value_and_gradients(contrast, *inputs, labels=labels)
    torch.testing.assert_close(results, value_and_gradients(contrast_reference, *inputs, labels=labels))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_stays_visible(broken: float) -> None:
    images, texts = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(10))
    images[3, 1] = broken
    assert image_text_label_loss(images, texts, torch.arange(5), torch.tensor(10.0)).isnan()


@pytest.mark.parametrize("spread", [0.4, 0.6, 0.9, 1.1])
def test_log_sums_on_either_side_of_the_shared_shift(spread: float) -> None:
    """All ways to a log-sum-exp, over logits that span a little less and a little more than the limits."""
    height = spread * SHARED_SHIFT_SPAN[torch.float64]
    queries = torch.tensor([[0.0], [0.3], [1.0]], dtype=torch.float64).mul_(height).requires_grad_()
    keys = torch.tensor([[1.0], [0.0], [0.7]], dtype=torch.float64, requires_grad=True)
    multiplicity = torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64)
    rows, columns = two_sided_log_sum_exp(queries, keys, multiplicity, 2)
    logits = queries @ keys.T
    torch.testing.assert_close(rows, (logits + multiplicity.log()).logsumexp(1))
    torch.testing.assert_close(columns, logits.logsumexp(0))
    assert torch.autograd.gradcheck(lambda q, k: two_sided_log_sum_exp(q, k, multiplicity, 2), (queries, keys))


def test_gradcheck() -> None:
    batch = random_batch(7)
    images, texts = batch["images"][:7, :3].double(), batch["texts"][:4, :3].double()
    labels, text_index = torch.tensor([0, -1, 1, 1, 0, -1, 2]), torch.tensor([0, 1, 1, 3, 0, 3, 3])
    leaves = [x.requires_grad_() for x in (images, texts, torch.tensor(9.0, dtype=torch.float64))]
    teacher = (images.detach() + 1, texts.detach() - 1, torch.tensor(5.0, dtype=torch.float64))
    options = {"text_index": text_index, "chunk_size": 3}
    assert torch.autograd.gradcheck(
        lambda u, v, s: image_text_label_loss(u, v, labels, s, label_smoothing=0.2, **options), leaves
    )
    assert torch.autograd.gradcheck(lambda u, v, s: distillation_loss(u, v, s, *teacher, **options), leaves)


@pytest.mark.parametrize("loss", ["contrast", "distillation"])
def test_nothing_quadratic_is_kept_for_the_backward_pass(loss: str) -> None:
    pairs, width = 256, 4
    images, texts = (torch.randn(pairs, width, requires_grad=True) for _ in range(2))
    scale, labels = torch.tensor(20.0, requires_grad=True), torch.arange(pairs) // 3
    kept: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        if loss == "contrast":
            value = image_text_label_loss(images, texts, labels, scale, label_smoothing=0.1)
        else:
            value = distillation_loss(images, texts, scale, images.detach() * 2, texts.detach() + 1, scale)
    value.backward()
    assert 0 < sum(kept.values()) < 20 * pairs * (width + 1) * images.element_size()
    assert max(kept.values()) <= pairs * max(width, 2) * images.element_size()


def test_frozen_towers_get_no_gradient() -> None:
    images, texts = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    labels = torch.tensor([0, 0, 1, 1, 2])
    (alone,) = torch.autograd.grad(image_text_label_loss(images, texts, labels, torch.tensor(10.0)), images)
    _, together, _, _ = value_and_gradients(contrast, images, texts, torch.tensor(10.0), labels=labels)
    torch.testing.assert_close(alone, together)


def test_low_precision_features_are_computed_in_float32_under_autocast() -> None:
    batch = random_batch(3)
    images, texts, scale = (batch[key].bfloat16() for key in ("images", "texts", "scale"))
    leaves = [x.requires_grad_() for x in (images, texts, scale)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = image_text_label_loss(images, texts, batch["labels"], scale)
        value.backward()
    expected = image_text_label_loss(images.float(), texts.float(), batch["labels"], scale.float())
    assert value.dtype == torch.float32
    assert value.item() == expected.item()
    assert all(x.grad.dtype == torch.bfloat16 and x.grad.isfinite().all() for x in leaves)


def test_repeats_bit_for_bit() -> None:
    batch = random_batch(10)
    inputs = [batch[key] for key in ("images", "texts", "scale")]
    options = {key: batch[key] for key in ("labels", "text_index")}
    first, second = (value_and_gradients(contrast, *inputs, **options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_compiles() -> None:
    batch = random_batch(5)
    inputs = [batch[key] for key in ("images", "texts", "scale")]
    options = {key: batch[key] for key in ("labels", "text_index", "chunk_size")}
    compiled = torch.compile(contrast, backend="eager")
    torch.testing.assert_close(
        value_and_gradients(compiled, *inputs, **options), value_and_gradients(contrast, *inputs, **options)
    )


def test_descent_aligns_the_classes() -> None:
    """Gradient descent on random features ends with each image nearest to a text of its class."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(24, 8, generator=generator).requires_grad_()
    texts = torch.randn(6, 8, generator=generator).requires_grad_()
    labels = torch.arange(24) % 6
    optimizer = torch.optim.Adam([images, texts], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        image_text_label_loss(images, texts, labels, torch.tensor(14.0), text_index=labels).backward()
        optimizer.step()
    nearest = (F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T).argmax(1)
    assert torch.equal(nearest, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, -2, 1])}, "labels must be -1"),
        ({"labels": torch.tensor([0, 1])}, "labels must hold 3"),
        ({"labels": torch.tensor([0.0, 1.0, 2.0])}, "labels must hold 3 integers"),
        ({"direction": "sideways"}, "direction must be one of"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"text_features": torch.ones(2, 4)}, "need a text_index"),
        ({"text_features": torch.ones(3, 5)}, "features must be"),
        ({"text_index": torch.tensor([0, 1, 3])}, "text_index must lie in"),
        ({"text_index": torch.tensor([0, 1])}, "text_index must hold 3"),
        ({"logit_scale": torch.ones(2)}, "logit_scale"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"image_features": torch.ones(0, 4), "text_features": torch.ones(0, 4)}, "not empty"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    arguments = {
        "image_features": torch.ones(3, 4),
        "text_features": torch.ones(3, 4),
        "labels": torch.tensor([0, 1, -1]),
        "logit_scale": torch.tensor(10.0),
    }
    with pytest.raises(ValueError, match=message):
        image_text_label_loss(**(arguments | change))


def test_a_teacher_must_see_the_same_batch() -> None:
    ones, scale = torch.ones(3, 4), torch.tensor(1.0)
    with pytest.raises(ValueError, match="teacher and student"):
        distillation_loss(ones, ones, scale, torch.ones(2, 4), torch.ones(2, 4), scale)
