"""The contrastive kernels against the plain functions and the definition, in float64.

On a GPU where there is one; else in Triton's interpreter, in the process that `test_kernels_interpreter` starts.
"""

import os

import pytest
import torch
from torch import Tensor

from hf_vlr.modeling.backend import use_backend
from hf_vlr.modeling.contrastive import (
    distillation_loss,
    distillation_loss_reference,
    image_text_label_loss,
    image_text_label_loss_reference,
)
from hf_vlr.modeling.log_sums import log_sums, log_sums_with_gradient

# N, U, D and queries a band: below, at and above the edges of tiles, bands narrower than a tile
SIZES = [
    (1, 1, 1, None),
    (5, 3, 24, None),
    (128, 128, 32, None),
    (150, 131, 24, None),
    (150, 37, 40, 70),
    (9, 300, 16, 4),
]
# On a GPU three TF32 products keep 21 bits, of logits up to 100; the interpreter multiplies in float32.
TOLERANCE = {"cpu": 3e-6, "cuda": 3e-5}
LOSS_TOLERANCE = {"cpu": 1e-5, "cuda": 3e-5}


@pytest.fixture
def device() -> str:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "cpu"
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no GPU of compute capability 8.0: test_kernels_interpreter runs this in Triton's interpreter")
    return "cuda"


def relative_error(value: Tensor, expected: Tensor) -> float:
    return ((value.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-12)).item()


def case(device: str, size: tuple, scale: float = 14.3, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Queries [N, D] of length `scale`, unit keys [U, D], multiplicities with a zero among them, gradients."""
    queries, keys, width, _ = size
    generator = torch.Generator().manual_seed(queries * keys)
    made = {"queries": torch.randn(queries, width, generator=generator)}
    made["keys"] = torch.randn(keys, width, generator=generator)
    made = {name: torch.nn.functional.normalize(one, dim=-1) for name, one in made.items()}
    made["queries"] *= scale
    made = {name: one.to(device, dtype) for name, one in made.items()}
    multiplicity = torch.randint(0, 4, (keys,), generator=generator).to(device, dtype)
    multiplicity[0] = 2
    slopes = [torch.randn(count, generator=generator, dtype=torch.float64).to(device) for count in (queries, keys)]
    return {**made, "multiplicity": multiplicity, "row_slope": slopes[0], "column_slope": slopes[1]}


def definition(made: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both log-sums and the gradients of their weighted sum, on a dense float64 matrix."""
    queries, keys = (made[name].double().detach().requires_grad_() for name in ("queries", "keys"))
    logits = queries @ keys.T
    rows, columns = torch.logsumexp(logits + made["multiplicity"].double().log(), 1), torch.logsumexp(logits, 0)
    return gradients(rows, columns, queries, keys, made)


def gradients(rows: Tensor, columns: Tensor, queries: Tensor, keys: Tensor, made: dict) -> dict[str, Tensor]:
    total = (rows * made["row_slope"]).sum() + (columns * made["column_slope"]).sum()
    by_queries, by_keys = torch.autograd.grad(total, (queries, keys))
    return {"rows": rows.detach(), "columns": columns.detach(), "by queries": by_queries, "by keys": by_keys}


def through(backend: str, made: dict[str, Tensor], chunk_size: int | None = None) -> dict[str, Tensor]:
    """The same through the package's functions with a backend."""
    queries, keys = (made[name].detach().clone().requires_grad_() for name in ("queries", "keys"))
    with use_backend(backend):
        sums = log_sums(queries, keys, made["multiplicity"], chunk_size)
        sums = log_sums_with_gradient(queries, keys, made["multiplicity"], *sums, chunk_size)
    return gradients(*sums, queries, keys, made)


@pytest.mark.parametrize("scale", [14.3, 100.0])
@pytest.mark.parametrize("size", SIZES)
def test_sums_and_gradients(device: str, size: tuple, scale: float) -> None:
    made = case(device, size, scale)
    truth, plain = definition(made), through("torch", made, size[-1])
    for name, value in through("triton", made, size[-1]).items():
        assert value.dtype == plain[name].dtype and value.shape == plain[name].shape
        assert relative_error(value, truth[name]) < TOLERANCE[device], name
        assert relative_error(value, plain[name]) < TOLERANCE[device], name


def test_every_cosine_minus_one_at_the_largest_scale(device: str) -> None:
    made = case(device, (130, 140, 24, None))
    direction = made["keys"][:1]
    made["keys"], made["queries"] = direction.repeat(140, 1), -100.0 * direction.repeat(130, 1)
    truth = definition(made)
    for name, value in through("triton", made).items():
        assert value.isfinite().all() and relative_error(value, truth[name]) < TOLERANCE[device], name


def test_logits_from_one_end_to_the_other(device: str) -> None:
    made = case(device, (140, 135, 24, None))
    signs = torch.ones(140, 1, device=device)
    signs[::3] = -1
    made["queries"] = 100.0 * signs * made["keys"][:1] + 0.01 * made["queries"]
    made["keys"] = made["keys"][:1] * signs[:135].flip(0) + 0.001 * made["keys"]
    truth = definition(made)
    for name, value in through("triton", made).items():
        assert value.isfinite().all() and relative_error(value, truth[name]) < TOLERANCE[device], name


def test_an_unused_text_is_no_part_of_a_row_however_large_its_logit(device: str) -> None:
    made = case(device, (20, 150, 24, None))
    made["multiplicity"][1:] = 0
    made["queries"] = 100.0 * made["keys"][5:6].repeat(20, 1)
    made["keys"][0] = -made["keys"][5]
    truth = definition(made)
    assert (truth["rows"] < -99).all() and (truth["columns"] > 99).any()
    for name, value in through("triton", made).items():
        assert value.isfinite().all() and relative_error(value, truth[name]) < TOLERANCE[device], name


def test_bfloat16_vectors_are_multiplied_exactly_and_summed_in_float32(device: str) -> None:
    made = case(device, (150, 131, 72, None), dtype=torch.bfloat16)
    truth, found = definition(made), through("triton", made)
    for name in ("rows", "columns"):
        assert relative_error(found[name], truth[name]) < TOLERANCE[device], name
    for name in ("by queries", "by keys"):  # weights and results are rounded to 8 bits
        assert found[name].dtype == torch.bfloat16 and relative_error(found[name], truth[name]) < 2**-7, name


def test_only_the_gradient_that_is_wanted(device: str) -> None:
    made = case(device, (40, 30, 24, None))
    truth = definition(made)
    for name in ("queries", "keys"):
        leaf = made[name].clone().requires_grad_()
        with use_backend("triton"):
            vectors = {**made, name: leaf}
            arguments = [vectors[one] for one in ("queries", "keys", "multiplicity")]
            rows, columns = log_sums_with_gradient(*arguments, *log_sums(*arguments))
        total = (rows * made["row_slope"]).sum() + (columns * made["column_slope"]).sum()
        assert relative_error(torch.autograd.grad(total, leaf)[0], truth[f"by {name}"]) < TOLERANCE[device]


def test_no_queries(device: str) -> None:
    keys = torch.ones(3, 8, device=device)
    with use_backend("triton"):
        rows, columns = log_sums(keys[:0], keys, torch.ones(3, device=device))
    assert rows.shape == (0,) and (columns == -torch.inf).all()


def test_repeats_bit_for_bit(device: str) -> None:
    made = case(device, (300, 280, 40, None))
    first, again = through("triton", made), through("triton", made)
    assert all(torch.equal(first[name], again[name]) for name in first)


def batch(device: str) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Features of 140 images and 60 texts of which one is unused; labels with pairs of their own, and texts."""
    generator = torch.Generator().manual_seed(3)
    images, texts = torch.randn(140, 24, generator=generator), torch.randn(60, 24, generator=generator)
    labels = torch.randint(-1, 12, (140,), generator=generator)
    index = torch.randint(0, 59, (140,), generator=generator)
    leaves = [one.to(device).requires_grad_() for one in (images, texts, torch.tensor(100.0))]
    return leaves, {"labels": labels.to(device), "text_index": index.to(device)}


@pytest.mark.parametrize("direction", ["both", "image_to_text"])
def test_the_loss_and_its_gradients(device: str, direction: str) -> None:
    (images, texts, scale), words = batch(device)
    labels, options = words.pop("labels"), {**words, "direction": direction, "label_smoothing": 0.1}
    expected = image_text_label_loss_reference(images.double(), texts.double(), labels, scale.double(), **options)
    truth = torch.autograd.grad(expected, (images, texts, scale))
    with use_backend("triton"):
        value = image_text_label_loss(images, texts, labels, scale, **options)
    found = torch.autograd.grad(value, (images, texts, scale))
    for one, other in zip((value, *found), (expected, *truth), strict=True):
        assert relative_error(one, other) < LOSS_TOLERANCE[device]


def test_the_distillation_loss_and_its_gradients(device: str) -> None:
    (images, texts, scale), words = batch(device)
    teacher = [
        texts.detach()[words["text_index"]].roll(1, 1),
        texts.detach().roll(1, 1),
        torch.tensor(20.0, device=device),
    ]
    wide = [one.double() for one in (images, texts, scale, *teacher)]
    expected = distillation_loss_reference(*wide, text_index=words["text_index"])
    truth = torch.autograd.grad(expected, (images, texts, scale))
    with use_backend("triton"):
        value = distillation_loss(images, texts, scale, *teacher, text_index=words["text_index"])
    found = torch.autograd.grad(value, (images, texts, scale))
    for one, other in zip((value, *found), (expected, *truth), strict=True):
        assert relative_error(one, other) < LOSS_TOLERANCE[device]
