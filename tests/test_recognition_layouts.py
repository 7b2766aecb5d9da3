# SPDX-License-Identifier: MIT
"""Language-guided recognition in every layout and precision that it is computed in, against its definition."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from hf_vlr.modeling import products
from hf_vlr.modeling.products import inner_products
from hf_vlr.modeling.recognition import language_guided_logits, language_guided_logits_reference
from hf_vlr.timing import torch_threads


def _neighbour(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


heads = _neighbour("recognition_heads")
TOLERANCE = heads.TOLERANCE
cast = heads.cast
random_head = heads.random_head
relative_error = heads.relative_error
value_and_gradients = heads.value_and_gradients


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("detach_norm", [False, True])
def test_few_images_with_masked_anchors_and_an_empty_class(images: int, detach_norm: bool) -> None:
    head = random_head(17, images, 9, 6, 16)
    head["anchor_mask"] = head["anchor_mask"].clone()
    head["anchor_mask"][3] = False
    exact = cast(head, torch.float64)
    results = value_and_gradients(language_guided_logits, head, detach_norm=detach_norm, chunk_size=4)
    expected = value_and_gradients(language_guided_logits_reference, exact, detach_norm=detach_norm)
    for key in results.keys() - {"norm_key_bias"}:
        assert relative_error(results[key], expected[key]) < TOLERANCE, key
    with torch.inference_mode():
        logits, attention = language_guided_logits(**head, return_attention=True)
        wanted, wanted_attention = language_guided_logits_reference(**exact, return_attention=True)
    assert relative_error(logits, wanted) < TOLERANCE
    assert relative_error(attention, wanted_attention) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("vectors", [1, 2, 7, 8, 33])
def test_inner_products(dtype: torch.dtype, vectors: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, others = (torch.randn(count, 24, generator=generator).to(dtype) for count in (50, vectors))
    found = inner_products(rows, others)
    assert found.dtype == dtype
    expected = torch.einsum("rd,vd->rv", rows.double(), others.double())
    assert relative_error(found, expected) < {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2**-8}[dtype]


@pytest.mark.parametrize("detach_norm", [False, True])
def test_convolved_products_change_nothing(detach_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    head = random_head(18, 12, 9, 6, 32)
    plain = value_and_gradients(language_guided_logits, head, detach_norm=detach_norm)
    monkeypatch.setattr(products, "LARGE_PRODUCT", 1)
    monkeypatch.setattr(products, "_convolving_pays", torch.backends.mkldnn.is_available)
    with torch_threads(2):
        results = value_and_gradients(language_guided_logits, head, detach_norm=detach_norm)
    for key in results.keys() - {"norm_key_bias"}:
        assert relative_error(results[key], plain[key]) < TOLERANCE, key


def separable_head(images: int, classes: int, sentences: int, width: int) -> dict[str, Tensor]:
    """A head whose images lie near the sentences of one class each."""
    head = random_head(19, images, classes, sentences, width)
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(classes, width, generator=generator)
    head["anchors"] = head["anchors"] + 2.0 * centres[:, None]
    head["x"] = centres[torch.arange(images) % classes] + 0.5 * torch.randn(images, width, generator=generator)
    return head


@pytest.mark.parametrize("images", [1, 3, 40])
def test_bfloat16_anchors_are_multiplied_as_they_are_where_no_gradient_is_asked_for(images: int) -> None:
    head = cast(separable_head(images, 20, 8, 64), torch.bfloat16)
    exact = language_guided_logits_reference(**cast(head, torch.float64))
    with torch.inference_mode():
        logits = language_guided_logits(**head)
    assert logits.dtype == torch.float32
    # Products carry eight bits, of each anchor anew; what comes after them is float32.
    assert 1e-6 < relative_error(logits, exact) < 2**-8
    assert (logits.double() - exact).abs().max() < 2**-7 * head["logit_scale"]
    assert torch.equal(logits.argmax(1), exact.argmax(1))
    trained = head | {"x": head["x"].requires_grad_()}
    assert relative_error(language_guided_logits(**trained).detach(), exact) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_image(dtype: torch.dtype) -> None:
    head = cast(random_head(20, 0, 3, 2, 8), dtype)
    results = value_and_gradients(language_guided_logits, head)
    assert results["logits"].shape == (0, 3)
    assert not results["query_weight"].any()
    with torch.inference_mode():
        assert language_guided_logits(**head).shape == (0, 3)
