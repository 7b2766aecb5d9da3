# SPDX-License-Identifier: MIT
"""Language-guided recognition against recorded numbers, its definition, and what must always hold."""

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_vlr.modeling.recognition import (
    anchor_gram,
    anchor_rstd,
    fuse_logits,
    language_guided_logits,
    language_guided_logits_reference,
)


def _neighbour(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


heads = _neighbour("recognition_heads")
TOLERANCE = heads.TOLERANCE
TRAINED = heads.TRAINED
cast = heads.cast
random_head = heads.random_head
relative_error = heads.relative_error
value_and_gradients = heads.value_and_gradients

GOLDEN = np.load(Path(__file__).parent / "golden" / "vlltr_testvectors.npz")
STORED_TOLERANCE = 1e-4  # the records are float32
SIZES = [(1, 1, 1, 8), (5, 1, 6, 12), (1, 7, 4, 16), (6, 9, 1, 8), (8, 11, 5, 24), (3, 30, 8, 32)]


def golden_head() -> dict[str, Tensor]:
    names = {
        "query_weight": "attn.wq.weight",
        "key_weight": "attn.wk.weight",
        "norm_query_weight": "attn.norm1q.weight",
        "norm_query_bias": "attn.norm1q.bias",
        "norm_key_weight": "attn.norm1k.weight",
        "norm_key_bias": "attn.norm1k.bias",
    }
    head = {key: torch.tensor(GOLDEN[f"lgr/param/{name}"]) for key, name in names.items()}
    anchors = torch.tensor(GOLDEN["lgr/txt"])
    head["x"], head["anchors"] = torch.tensor(GOLDEN["lgr/img"]), anchors
    head["anchor_mask"] = torch.arange(anchors.shape[1]) < torch.tensor(GOLDEN["lgr/n_sent"])[:, None]
    head["logit_scale"] = torch.tensor(GOLDEN["lgr/logit_scale"]).exp()
    return head


def golden_visual_logits(x: Tensor) -> Tensor:
    first, first_bias, second, second_bias = (
        torch.tensor(GOLDEN[f"lgr/param/visual_fc.{name}"]) for name in ("0.weight", "0.bias", "2.weight", "2.bias")
    )
    return F.linear(F.linear(x, first, first_bias).relu(), second, second_bias)


FUNCTIONS = pytest.mark.parametrize("function", [language_guided_logits, language_guided_logits_reference])


@FUNCTIONS
@pytest.mark.parametrize("detach_norm", [False, True])
def test_recorded_head(function, detach_norm: bool) -> None:
    head, target = golden_head(), torch.tensor(GOLDEN["lgr/y"])
    head["x"].requires_grad_()
    head["query_weight"].requires_grad_()
    logits, attention = function(**head, detach_norm=detach_norm, return_attention=True)
    visual = golden_visual_logits(head["x"])
    loss = F.cross_entropy(visual, target) + F.cross_entropy(logits, target)
    gradients = torch.autograd.grad(loss, (head["x"], head["query_weight"]))
    suffix = f"v_detach{int(detach_norm)}"
    results = {
        "attn": attention,
        "logits_T": logits,
        "logits_I": visual,
        f"loss_{suffix}": loss,
        f"grad_img_{suffix}": gradients[0],
        f"grad_wq_{suffix}": gradients[1],
    }
    for key, result in results.items():
        assert relative_error(result.detach(), torch.tensor(GOLDEN[f"lgr/{key}"])) < STORED_TOLERANCE, key


def test_recorded_fusion() -> None:
    visual, language = (torch.tensor(GOLDEN[f"lgr/logits_{branch}"]) for branch in "IT")
    for share, expected in zip((0.2, 0.7), GOLDEN["lgr/ensemble_0.2_0.7"]):
        fused = fuse_logits(visual, language, share).softmax(-1)
        assert relative_error(fused, torch.tensor(expected)) < STORED_TOLERANCE


@pytest.mark.parametrize("detach_norm", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chunk_size", [1, 4, None])
def test_logits_and_gradients_agree_with_the_reference(size, detach_norm: bool, chunk_size: int | None) -> None:
    head = random_head(sum(size), *size)
    results = value_and_gradients(language_guided_logits, head, detach_norm=detach_norm, chunk_size=chunk_size)
    exact = cast(head, torch.float64)
    expected = value_and_gradients(language_guided_logits_reference, exact, detach_norm=detach_norm)
    for key in ("logits", "logit_scale"):
        assert relative_error(results[key], expected[key]) < TOLERANCE, key
    # With one sentence a class nothing depends on the attention: those gradients are zero, not merely close.
    attends = size[2] > 1
    for key in TRAINED[1:6]:
        if attends:
            assert relative_error(results[key], expected[key]) < TOLERANCE, key
        else:
            torch.testing.assert_close(results[key], torch.zeros_like(results[key]), atol=1e-5, rtol=0)
    assert relative_error(results["x"], expected["x"]) < TOLERANCE
    assert torch.equal(results["norm_key_bias"], torch.zeros(size[3]))
    assert expected["norm_key_bias"].norm() < 1e-10


@pytest.mark.parametrize("detach_norm", [False, True])
def test_gradcheck(detach_norm: bool) -> None:
    head = cast(random_head(1, 3, 4, 3, 4), torch.float64)
    head["anchor_mask"][2] = False
    if detach_norm:  # not the derivative of its value: compare with the reference in float64 instead
        results = value_and_gradients(language_guided_logits, head, detach_norm=True, chunk_size=3)
        expected = value_and_gradients(language_guided_logits_reference, head, detach_norm=True)
        torch.testing.assert_close(results, expected, rtol=1e-9, atol=1e-12)
        return
    leaves = [head[key].requires_grad_() for key in TRAINED]
    frozen = {key: head[key] for key in ("anchors", "anchor_mask")}
    assert torch.autograd.gradcheck(
        lambda *x: language_guided_logits(**frozen, **dict(zip(TRAINED, x)), chunk_size=3), leaves
    )


def test_detaching_the_norm_changes_the_gradient_and_not_the_value() -> None:
    head = random_head(2, 4, 5, 6, 8)
    free, detached = (value_and_gradients(language_guided_logits, head, detach_norm=choice) for choice in (False, True))
    assert torch.equal(free["logits"], detached["logits"])
    assert relative_error(free["query_weight"], detached["query_weight"]) > 0.01


def test_given_constants_change_nothing() -> None:
    head = random_head(3, 4, 5, 6, 8)
    given = {"gram": anchor_gram(head["anchors"]), "rstd": anchor_rstd(head["anchors"])}
    assert torch.equal(language_guided_logits(**head, **given), language_guided_logits(**head))
    expected = torch.einsum("cmd,cnd->cmn", head["anchors"], head["anchors"])
    torch.testing.assert_close(given["gram"], expected)
    torch.testing.assert_close(given["rstd"], (head["anchors"].var(-1, correction=0) + 1e-5).rsqrt())


@FUNCTIONS
def test_masked_anchors_play_no_part(function) -> None:
    head = random_head(4, 3, 5, 6, 8)
    logits, attention = function(**head, return_attention=True)
    assert torch.equal(attention > 0, head["anchor_mask"].expand_as(attention))
    torch.testing.assert_close(attention.sum(-1), torch.ones(3, 5))
    disturbed = head["anchors"].masked_fill(~head["anchor_mask"][:, :, None], 7.0)
    torch.testing.assert_close(function(**(head | {"anchors": disturbed})), logits)


@FUNCTIONS
def test_a_class_without_anchors_has_the_lowest_cosine(function) -> None:
    head = random_head(5, 3, 5, 6, 8)
    others = function(**head)
    head["anchor_mask"] = head["anchor_mask"].clone()
    head["anchor_mask"][1] = False
    results = value_and_gradients(function, head)
    logits, attention = function(**head, return_attention=True)
    assert torch.equal(logits[:, 1], -head["logit_scale"].expand(3))
    assert torch.equal(attention[:, 1], torch.zeros(3, 6))
    torch.testing.assert_close(logits[:, [0, 2, 3, 4]], others[:, [0, 2, 3, 4]])
    assert all(result.isfinite().all() for result in results.values())
    head["anchor_mask"][:] = False
    assert torch.equal(function(**head), -head["logit_scale"].expand(3, 5))


@FUNCTIONS
def test_a_zero_image_feature_stays_finite(function) -> None:
    head = random_head(6, 3, 5, 6, 8)
    head["x"][1] = 0.0
    results = value_and_gradients(function, head)
    assert torch.equal(results["logits"][1], torch.zeros(5))
    assert all(result.isfinite().all() for result in results.values())


@FUNCTIONS
def test_anchors_that_cancel_stay_finite(function) -> None:
    """Equal scores on anchors that sum to zero attend to rounding errors; a cosine stays a cosine."""
    head = random_head(7, 64, 9, 5, 8)
    head["anchors"] = head["anchors"] - head["anchors"].mean(1, keepdim=True)
    head["norm_key_weight"] = torch.full((8,), 1e-8)
    head["anchor_mask"] = torch.ones(9, 5, dtype=torch.bool)
    results = value_and_gradients(function, head)
    assert results["logits"].abs().max() <= head["logit_scale"] * (1 + 1e-6)
    assert all(result.isfinite().all() for result in results.values())


def test_order_of_anchors_and_of_classes() -> None:
    head = random_head(8, 4, 6, 5, 8)
    generator = torch.Generator().manual_seed(0)
    sentences, classes = (torch.randperm(n, generator=generator) for n in (5, 6))
    logits, attention = language_guided_logits(**head, return_attention=True)
    moved = {key: head[key][classes][:, sentences] for key in ("anchors", "anchor_mask")}
    moved_logits, moved_attention = language_guided_logits(**(head | moved), return_attention=True)
    torch.testing.assert_close(moved_logits, logits[:, classes])
    torch.testing.assert_close(moved_attention, attention[:, classes][:, :, sentences])


def test_scales() -> None:
    head = random_head(9, 4, 6, 5, 16)
    logits = language_guided_logits(**head)
    assert logits.abs().max() <= head["logit_scale"] * (1 + 1e-6)
    doubled = head | {"logit_scale": 2 * head["logit_scale"]}
    torch.testing.assert_close(language_guided_logits(**doubled), 2 * logits)
    # Both branches normalise: longer images and longer anchors change nothing but the eps of the layer norms.
    longer = head | {"x": 8 * head["x"], "anchors": 8 * head["anchors"]}
    torch.testing.assert_close(language_guided_logits(**longer, eps=64e-5), language_guided_logits(**head, eps=1e-5))


def test_equal_sentences_make_a_cosine_classifier() -> None:
    head = random_head(10, 4, 6, 5, 8)
    head["anchors"] = head["anchors"][:, :1].expand(6, 5, 8)
    expected = head["logit_scale"] * F.cosine_similarity(head["x"][:, None], head["anchors"][:, 0], dim=-1)
    torch.testing.assert_close(language_guided_logits(**head), expected)


def test_low_precision_inputs_are_computed_in_float32_under_autocast() -> None:
    head = cast(random_head(11, 4, 6, 5, 8), torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = value_and_gradients(language_guided_logits, head)
    expected = value_and_gradients(language_guided_logits_reference, cast(head, torch.float32))
    assert results["logits"].dtype == torch.float32
    assert relative_error(results["logits"], expected["logits"]) < TOLERANCE
    for key in TRAINED[:-2]:
        assert results[key].dtype == torch.bfloat16
        assert relative_error(results[key], expected[key]) < 2**-8  # the gradient's own rounding


def test_kept_memory() -> None:
    """Neither keys [C, M, D], nor attended texts [B, C, D], nor scores [B, C, M] outlive the forward pass."""
    images, classes, sentences, width = 16, 20, 6, 32
    head = random_head(12, images, classes, sentences, width)
    head = {key: x.requires_grad_() if key in TRAINED else x for key, x in head.items()}
    given = {tensor.untyped_storage().data_ptr() for tensor in head.values()}
    kept: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        logits = language_guided_logits(**head, chunk_size=4)
    logits.sum().backward()
    largest = max(classes * sentences * sentences, 2 * images * width, width * width)
    assert largest < images * classes * sentences  # the bound below would notice the scores
    assert 0 < max(kept.values()) <= largest
    assert head["norm_key_bias"].grad is not None


def test_anchors_get_no_gradient() -> None:
    head = random_head(13, 2, 3, 4, 8)
    head["anchors"].requires_grad_()
    head["x"].requires_grad_()
    logits, attention = language_guided_logits(**head, return_attention=True)
    logits.sum().backward()
    assert head["anchors"].grad is None
    assert not attention.requires_grad


def test_repeats_bit_for_bit() -> None:
    head = random_head(14, 4, 6, 5, 8)
    first, second = (value_and_gradients(language_guided_logits, head) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_compiles() -> None:
    head = random_head(15, 4, 6, 5, 8)
    compiled = torch.compile(language_guided_logits, backend="eager")
    torch.testing.assert_close(value_and_gradients(compiled, head), value_and_gradients(language_guided_logits, head))


def test_descent_learns_to_attend() -> None:
    """One telling sentence among noise in each class: training the two weights finds it."""
    generator = torch.Generator().manual_seed(0)
    classes, sentences, width = 6, 5, 16
    head = random_head(16, classes, classes, sentences, width)
    prototypes = torch.randn(classes, width, generator=generator)
    head["anchors"] = torch.randn(classes, sentences, width, generator=generator)
    head["anchors"][:, 2] = prototypes
    head["anchor_mask"] = torch.ones(classes, sentences, dtype=torch.bool)
    head["x"] = prototypes + 0.3 * torch.randn(classes, width, generator=generator)
    weights = [head[key].requires_grad_() for key in ("query_weight", "key_weight")]
    optimizer = torch.optim.Adam(weights, lr=0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(language_guided_logits(**head), torch.arange(classes)))
        losses[-1].backward()
        optimizer.step()
    _, attention = language_guided_logits(**head, return_attention=True)
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(attention.diagonal().argmax(0), torch.full((classes,), 2))


@pytest.mark.parametrize("share", [0.0, 1e-6, 0.2, 0.7, 1.0])
def test_fused_softmax_is_the_mixture(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    visual, language = 20 * torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    fused = fuse_logits(visual, language, share)
    expected = share * visual.softmax(-1) + (1 - share) * language.softmax(-1)
    torch.testing.assert_close(fused.exp(), expected)
    torch.testing.assert_close(fused.softmax(-1), expected)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_fusion_is_finite_at_its_ends(share: float) -> None:
    """Also where a branch is certain of a class that the other excludes."""
    visual = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    language = torch.tensor([[-200.0, 0.0, 200.0]], requires_grad=True)
    fused = fuse_logits(visual, language, share)
    F.cross_entropy(fused, torch.tensor([1])).backward()
    gradients = [x.grad for x in (visual, language) if x.grad is not None]
    assert fused.isfinite().all()
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    if share in (0.0, 1.0):
        assert torch.equal(fused, (visual if share else language).log_softmax(-1))


def test_fusion_of_low_precision_logits_is_float32() -> None:
    visual, language = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    fused = fuse_logits(visual, language, 0.3)
    assert fused.dtype == torch.float32
    assert torch.equal(fused, fuse_logits(visual.float(), language.float(), 0.3))


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_outside_the_unit_interval_is_named(share: float) -> None:
    with pytest.raises(ValueError, match="fusion_weight"):
        fuse_logits(torch.zeros(1, 2), torch.zeros(1, 2), share)


def test_fused_logits_must_have_one_shape() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        fuse_logits(torch.zeros(1, 2), torch.zeros(1, 3), 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(2, 7)}, "x must be"),
        ({"anchors": torch.ones(4, 8)}, "x must be"),
        ({"anchor_mask": torch.ones(3, 5, dtype=torch.bool)}, "anchor_mask must be bool"),
        ({"anchor_mask": torch.ones(3, 4)}, "anchor_mask must be bool"),
        ({"key_weight": torch.ones(8, 7)}, "key_weight"),
        ({"chunk_size": 0}, "chunk_size"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        language_guided_logits(**(random_head(17, 2, 3, 4, 8) | change))
