"""The recognition kernels against the plain functions and the definition, in float64.

On a GPU where there is one; else in Triton's interpreter, in the process that `test_kernels_interpreter` starts.
"""

import os

import pytest
import torch
from torch import Tensor

from hf_vlr.modeling.backend import use_backend
from hf_vlr.modeling.recognition import (
    anchor_gram,
    anchor_rstd,
    language_guided_logits,
    language_guided_logits_reference,
)

# B, C, M, D, classes a tile of the gradient: below, at and above the edges of tiles
SIZES = [
    (1, 1, 1, 1, None),
    (1, 5, 7, 24, None),
    (5, 3, 1, 24, 2),
    (64, 2, 64, 32, None),
    (70, 3, 65, 40, 1),
    (33, 2, 128, 24, None),
    (17, 20, 16, 16, 7),
]
SQUARE = ("query_weight", "key_weight")
VECTORS = ("norm_query_weight", "norm_query_bias", "norm_key_weight", "norm_key_bias")
TRAINED = ("x", *SQUARE, *VECTORS, "logit_scale")
# On a GPU three TF32 products keep 21 bits; the interpreter multiplies in float32.
TOLERANCE = {"cpu": 1e-5, "cuda": 3e-5}


@pytest.fixture
def device() -> str:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "cpu"
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no GPU of compute capability 8.0: test_kernels_interpreter runs this in Triton's interpreter")
    return "cuda"


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Relative to what is expected, or to 1 where that is less: some gradients of a single sentence are zero."""
    return ((value.double() - expected.double()).norm() / expected.double().norm().clamp(min=1.0)).item()


def head(device: str, images: int, classes: int, sentences: int, width: int) -> dict[str, Tensor]:
    """All tensors of a head; classes have uneven numbers of sentences, and the last of several has none."""
    generator = torch.Generator().manual_seed(images + classes + sentences + width)
    made = {
        "x": 2 * torch.randn(images, width, generator=generator),
        "anchors": torch.randn(classes, sentences, width, generator=generator) + 0.5,
        "anchor_mask": torch.arange(sentences) < torch.randint(1, sentences + 1, (classes, 1), generator=generator),
        "logit_scale": torch.tensor(14.3),
    }
    if classes > 1:
        made["anchor_mask"][-1] = False
    made |= {name: torch.eye(width) + 0.1 * torch.randn(width, width, generator=generator) for name in SQUARE}
    made |= {name: 1.0 + 0.3 * torch.randn(width, generator=generator) for name in VECTORS}
    return {name: tensor.to(device) for name, tensor in made.items()}


def value_and_gradients(function, made: dict[str, Tensor], backend: str = "torch", **options) -> dict[str, Tensor]:
    """The logits and the gradients of a fixed weighting of them by every trained tensor."""
    leaves = {name: made[name].detach().clone().requires_grad_() for name in TRAINED}
    with use_backend(backend):
        logits = function(**(made | leaves), **options)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
    gradients = torch.autograd.grad((logits * weights).sum(), list(leaves.values()))
    return {"logits": logits.detach(), **dict(zip(TRAINED, gradients, strict=True))}


def wide(made: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in made.items()}


@pytest.mark.parametrize("detach_norm", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_logits_and_gradients(device: str, size: tuple, detach_norm: bool) -> None:
    made = head(device, *size[:4])
    options = {"detach_norm": detach_norm, "chunk_size": size[-1]}
    found = value_and_gradients(language_guided_logits, made, "triton", **options)
    plain = value_and_gradients(language_guided_logits, made, **options)
    truth = value_and_gradients(language_guided_logits_reference, wide(made), detach_norm=detach_norm)
    for name, value in found.items():
        assert value.dtype == plain[name].dtype and value.shape == plain[name].shape
        assert relative_error(value, truth[name]) < TOLERANCE[device], name
        assert relative_error(value, plain[name]) < TOLERANCE[device], name


def test_low_precision_anchors_are_computed_in_float32(device: str) -> None:
    made = head(device, 40, 3, 20, 40)
    for dtype in (torch.bfloat16, torch.float16):
        made["anchors"] = made["anchors"].to(dtype)
        found = value_and_gradients(language_guided_logits, made, "triton")
        truth = value_and_gradients(language_guided_logits_reference, wide(made))
        for name, value in found.items():
            assert value.dtype == torch.float32 and relative_error(value, truth[name]) < TOLERANCE[device], name


def test_bfloat16_vectors_and_anchors_are_multiplied_as_they_are(device: str) -> None:
    kernels = pytest.importorskip("hf_vlr.kernels")
    made = head(device, 20, 3, 20, 40)
    anchors, stacked = made["anchors"].bfloat16(), torch.randn(40, 40, generator=torch.Generator().manual_seed(1))
    stacked[20:] = torch.nn.functional.normalize(stacked[20:], dim=-1)
    stacked = stacked.to(device, torch.bfloat16)
    frozen = anchor_rstd(anchors), torch.zeros(3, 20, device=device), anchor_gram(anchors)
    found = kernels.attended_cosines(stacked, anchors, *frozen)
    exact = kernels.attended_cosines(stacked.float(), anchors.float(), *frozen)
    assert found.dtype == torch.float32 and relative_error(found, exact) < TOLERANCE[device]


def test_masked_anchors_play_no_part(device: str) -> None:
    made = head(device, 6, 4, 9, 24)
    before = value_and_gradients(language_guided_logits, made, "triton")
    made["anchors"][~made["anchor_mask"]] = 1e3
    after = value_and_gradients(language_guided_logits, made, "triton")
    assert (before["logits"][:, -1] == -14.3).all()
    for name in before:
        assert relative_error(after[name], before[name]) < TOLERANCE[device], name


@pytest.mark.parametrize("detach_norm", [False, True])
def test_anchors_that_cancel_and_a_zero_image_stay_finite(device: str, detach_norm: bool) -> None:
    made = head(device, 4, 2, 2, 24)
    made["anchor_mask"][:] = True
    made["anchors"][:, 1] = -made["anchors"][:, 0]
    made["key_weight"].zero_()
    made["x"][0] = 0
    found = value_and_gradients(language_guided_logits, made, "triton", detach_norm=detach_norm)
    assert all(value.isfinite().all() for value in found.values())
    assert (found["logits"].abs() <= 14.3 * (1 + 1e-6)).all()


def test_attention_and_many_sentences_are_left_to_torch(device: str) -> None:
    made = head(device, 2, 3, 130, 8)
    for options in ({}, {"return_attention": True}):
        with use_backend("triton"):
            found = language_guided_logits(**made, **options)
        with use_backend("torch"):
            plain = language_guided_logits(**made, **options)
        pairs = zip(found, plain, strict=True) if options else [(found, plain)]
        assert all(torch.equal(one, other) for one, other in pairs)


def test_repeats_bit_for_bit(device: str) -> None:
    made = head(device, 20, 30, 9, 24)
    first, again = (value_and_gradients(language_guided_logits, made, "triton") for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
