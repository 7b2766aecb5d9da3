"""Products of matrices by either library, against the plain product."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_vlr.modeling import products
from hf_vlr.modeling.contrastive import image_text_label_loss, image_text_label_loss_reference
from hf_vlr.modeling.products import FEW_VECTORS, add_weighed_rows, inner_products
from hf_vlr.timing import torch_threads

SIZES = [(1, 1, 1), (5, 1, 3), (300, FEW_VECTORS - 1, 24), (300, FEW_VECTORS, 24), (17, 33, 40), (0, 9, 4), (9, 0, 4)]


@pytest.fixture(params=[True, False], ids=["convolution", "blas"])
def library(request, monkeypatch):
    monkeypatch.setattr(products, "_convolving_pays", lambda: request.param and torch.backends.mkldnn.is_available())
    monkeypatch.setattr(products, "LARGE_PRODUCT", 1)
    with torch_threads(2):
        yield


@pytest.mark.parametrize(("rows", "vectors", "width"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_inner_products(library, rows, vectors, width, dtype):
    a, b = torch.randn(rows, width).to(dtype), torch.randn(vectors, width).to(dtype)
    found = inner_products(a, b)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(),
        a.double() @ b.double().T,
        rtol=2**-7 if dtype.itemsize == 2 else 1e-5,
        atol=1e-5 if dtype.itemsize > 2 else 0.05,
    )


@pytest.mark.parametrize(("rows", "vectors", "width"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_weighed_rows_are_added(library, rows, vectors, width, dtype):
    weights, others = torch.randn(rows, vectors, dtype=dtype), torch.randn(rows, width, dtype=dtype)
    before = torch.randn(vectors, width, dtype=dtype)
    sums = before.clone()
    add_weighed_rows(sums, weights, others)
    torch.testing.assert_close(
        sums.double(), before.double() + weights.double().T @ others.double(), rtol=1e-5, atol=1e-4
    )


def test_both_ways_count_as_the_same_operations(library):
    rows, vectors, weights = torch.ones(20, 6), torch.ones(9, 6), torch.ones(20, 9)
    with FlopCounterMode(display=False) as counter:
        inner_products(rows, vectors)
        add_weighed_rows(vectors, weights, rows)
    assert counter.get_total_flops() == 2 * 2 * 20 * 9 * 6


def test_rows_need_not_lie_together(library):
    a, b = torch.randn(24, 40).T, torch.randn(30, 48)[::2, ::2]
    torch.testing.assert_close(inner_products(a, b), a @ b.T)
    sums = torch.zeros(40, 60)[:, ::4]
    add_weighed_rows(sums, torch.randn(15, 40) * 0 + 1, torch.ones(15, 15))
    torch.testing.assert_close(sums, torch.full((40, 15), 15.0))


def test_gradients_of_inner_products(library):
    a, b = torch.randn(9, 12, requires_grad=True), torch.randn(10, 12, requires_grad=True)
    weights = torch.randn(9, 10)
    found = torch.autograd.grad((inner_products(a, b) * weights).sum(), (a, b))
    torch.testing.assert_close(found, (weights @ b, weights.T @ a))


def test_the_contrast_is_that_of_its_definition(library):
    torch.manual_seed(0)
    leaves = [torch.randn(50, 24, requires_grad=True), torch.randn(31, 24, requires_grad=True)]
    leaves.append(torch.tensor(30.0, requires_grad=True))
    labels, texts = torch.randint(-1, 6, (50,)), torch.arange(50) % 31
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    value = image_text_label_loss(*leaves[:2], labels, leaves[2], text_index=texts)
    truth = image_text_label_loss_reference(*exact[:2], labels, exact[2], text_index=texts)
    torch.testing.assert_close(value.double(), truth, rtol=1e-6, atol=0)
    for found, wanted in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(truth, exact)):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6)


def test_only_large_products_of_several_threads_are_convolved(monkeypatch):
    monkeypatch.setattr(products, "_convolving_pays", lambda: torch.backends.mkldnn.is_available())
    large, few = torch.ones(2048, 64), torch.ones(7, 64)
    with torch_threads(2):
        assert products._convolves(large, large) == torch.backends.mkldnn.is_available()
        assert not products._convolves(large[:100], large[:100])
        assert not products._convolves(large.repeat(64, 1), few)
        assert not products._convolves(large.double(), large.double())
    with torch_threads(1):
        assert not products._convolves(large, large)
