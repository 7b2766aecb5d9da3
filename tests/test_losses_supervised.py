"""Supervised contrast between images against its definition, its special cases, and what must hold of every batch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_vlr.losses.supervised import supervised_contrastive_loss, supervised_contrastive_loss_reference


def relative_error(value: Tensor, expected: Tensor) -> float:
    return ((value.double() - expected.double()).norm() / expected.double().norm()).item()


def value_and_gradients(loss, *inputs: Tensor, **options) -> list[Tensor]:
    """The loss and its gradient by every input."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    value = loss(*leaves, **options)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def supcon(features: Tensor, scale: Tensor, *, labels: Tensor, **options) -> Tensor:
    return supervised_contrastive_loss(features, labels, scale, **options)


def reference(features: Tensor, scale: Tensor, *, labels: Tensor, **options) -> Tensor:
    return supervised_contrastive_loss_reference(features, labels, scale, **options)


def random_batch(seed: int, dtype: torch.dtype = torch.float32) -> dict:
    """Rows of random numbers, labels with -1 among them, with and without views, one class alone in places."""
    generator = torch.Generator().manual_seed(seed)
    rows, width, classes = (int(torch.randint(3, high, (), generator=generator)) for high in (60, 24, 12))
    labels = torch.randint(-1, classes, (rows,), generator=generator)
    labels[:2] = 0  # so that there is a positive
    views = torch.randint(0, rows // 2 + 1, (rows,), generator=generator) if seed % 2 else None
    scale = torch.tensor([1.0, 10.0, 40.0, 100.0])[seed % 4]
    return {
        "inputs": [(torch.randn(rows, width, generator=generator) * 3 + 1).to(dtype), scale.to(dtype)],
        "options": {"labels": labels, "views": views},
        "chunk_size": [1, 7, rows, None][seed // 2 % 4],
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("seed", range(24))
def test_loss_and_gradients_agree_with_the_reference(seed: int, dtype: torch.dtype, tolerance: float) -> None:
    batch = random_batch(seed, dtype)
    results = value_and_gradients(supcon, *batch["inputs"], chunk_size=batch["chunk_size"], **batch["options"])
    expected = value_and_gradients(reference, *(x.double() for x in batch["inputs"]), **batch["options"])
    for result, truth in zip(results, expected):
        assert result.dtype == dtype
        assert relative_error(result, truth) < tolerance


def test_the_paper_s_sums_row_by_row() -> None:
    """Equation 2 in loops: outer sum over anchors, inner sum over positives, log of a fraction."""
    batch = random_batch(1, torch.float64)
    features, scale = batch["inputs"]
    labels, views = batch["options"]["labels"].tolist(), batch["options"]["views"].tolist()
    unit = F.normalize(features, dim=-1)
    marks = [("class", y) if y >= 0 else ("image", v) for y, v in zip(labels, views)]
    losses = []
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        positives = [j for j in others if marks[j] == marks[i]]
        if positives:
            total = sum(math.exp(scale * unit[i] @ unit[a]) for a in others)
            logs = [math.log(math.exp(scale * unit[i] @ unit[p]) / total) for p in positives]
            losses.append(-sum(logs) / len(positives))
    assert 0 < len(losses) < len(labels)
    value = supcon(features, scale, **batch["options"])
    assert value.item() == pytest.approx(sum(losses) / len(losses), rel=1e-12)


@pytest.mark.parametrize("named", [False, True])
def test_two_views_of_each_image_are_nt_xent(named: bool) -> None:
    """Known by their view numbers or each image a class of its own: SimCLR's cross-entropy over 2N - 1 others."""
    features = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    image, scale = torch.arange(6).repeat(2), torch.tensor(7.0, dtype=torch.float64)
    logits = scale * F.normalize(features, dim=-1) @ F.normalize(features, dim=-1).T
    expected = F.cross_entropy(logits.fill_diagonal_(-torch.inf), torch.arange(12).roll(6))
    options = {"labels": image * 3} if named else {"labels": torch.full((12,), -1), "views": image * 5}
    torch.testing.assert_close(supcon(features, scale, **options), expected)


def test_views_of_rows_with_a_class_are_not_read() -> None:
    batch = random_batch(5)
    options = dict(batch["options"])
    expected = supcon(*batch["inputs"], **options)
    labelled = options["labels"] >= 0
    options["views"] = torch.where(labelled, options["views"].flip(0), options["views"])
    assert torch.equal(supcon(*batch["inputs"], **options), expected)


def test_the_order_of_rows_does_not_matter() -> None:
    batch = random_batch(3, torch.float64)
    features, scale = batch["inputs"]
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    value, gradient, by_scale = value_and_gradients(supcon, features, scale, **batch["options"])
    moved = {key: tensor[order] for key, tensor in batch["options"].items()}
    again, moved_gradient, moved_by_scale = value_and_gradients(supcon, features[order], scale, **moved)
    torch.testing.assert_close(again, value)
    torch.testing.assert_close(moved_gradient, gradient[order])
    torch.testing.assert_close(moved_by_scale, by_scale)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_the_shares_of_processes_add_up(seed: int) -> None:
    """Each takes some of the anchors, one of them none: values and gradients are those of the batch."""
    batch = random_batch(seed, torch.float64)
    whole = value_and_gradients(supcon, *batch["inputs"], **batch["options"])
    order = torch.randperm(len(batch["inputs"][0]), generator=torch.Generator().manual_seed(seed))
    parts = [
        value_and_gradients(supcon, *batch["inputs"], rows=rows, **batch["options"])
        for rows in (order[:2], order[2:2], order[2:].int())
    ]
    for part, truth in zip(zip(*parts), whole):
        torch.testing.assert_close(sum(part), truth)


@pytest.mark.parametrize("labels", [[-1, -1, -1, -1], [0, 1, 2, -1], [4]])
def test_without_any_positive_the_loss_is_zero(labels: list[int]) -> None:
    features = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(0))
    for result in value_and_gradients(supcon, features, torch.tensor(10.0), labels=torch.tensor(labels)):
        assert torch.equal(result, torch.zeros_like(result))


def test_an_anchor_without_a_positive_is_still_a_negative() -> None:
    """Two images of a class and a stranger: mean over the two, each against one positive and one negative."""
    features = torch.eye(3, dtype=torch.float64)
    scale = torch.tensor(10.0, dtype=torch.float64)
    assert supcon(features, scale, labels=torch.tensor([0, 0, -1])).item() == pytest.approx(math.log(2), rel=1e-12)
    assert supcon(features[:2], scale, labels=torch.tensor([0, 0])).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_one_class_of_equal_images(chunk_size: int | None) -> None:
    """Every softmax over the seven others is uniform."""
    features = torch.randn(1, 16, generator=torch.Generator().manual_seed(5)).expand(8, 16)
    value, *gradients = value_and_gradients(
        supcon, features, torch.tensor(100.0), labels=torch.zeros(8, dtype=torch.int64), chunk_size=chunk_size
    )
    assert value.item() == pytest.approx(math.log(7), rel=1e-5)
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_opposite_classes_at_scale_one_hundred(chunk_size: int | None) -> None:
    """Logits near +100 and -100 in one row; classes of one direction each, and of both. Rounding that did not leave
    the weights of a row with sum 1 would show in the derivative by the scale, which is small in the first case."""
    vector, noise = torch.randn(1, 16, generator=torch.Generator().manual_seed(5)), torch.Generator().manual_seed(6)
    sign = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0])
    features = sign[:, None] * vector + 0.3 * torch.randn(8, 16, generator=noise)
    for labels in (sign.long() + 1, torch.arange(8) % 2):
        inputs = (features, torch.tensor(100.0))
        results = value_and_gradients(supcon, *inputs, labels=labels, chunk_size=chunk_size)
        expected = value_and_gradients(reference, *(x.double() for x in inputs), labels=labels)
        for result, truth in zip(results, expected):
            assert relative_error(result, truth) < 1e-5


def test_all_positives_opposite_at_scale_one_hundred() -> None:
    """Two images, one class, cosine -1: the only other image is the positive, so nothing is lost."""
    vector = torch.randn(1, 16, generator=torch.Generator().manual_seed(5))
    results = value_and_gradients(
        supcon, torch.cat([vector, -vector]), torch.tensor(100.0), labels=torch.tensor([2, 2])
    )
    for result in results:
        torch.testing.assert_close(result, torch.zeros_like(result), atol=3e-5, rtol=0)  # 100 * 2**-22


def test_gradcheck() -> None:
    features = random_batch(7, torch.float64)["inputs"][0][:7, :3].clone().requires_grad_()
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    labels, views = torch.tensor([0, -1, 1, 1, 1, -1, 2]), torch.tensor([0, 4, 1, 1, 0, 4, 3])
    for options in ({}, {"rows": torch.tensor([5, 2, 6])}):
        assert torch.autograd.gradcheck(
            lambda f, s, o=options: supervised_contrastive_loss(f, labels, s, views=views, chunk_size=2, **o),
            [features, scale],
        )


def test_nothing_quadratic_is_kept_for_the_backward_pass() -> None:
    rows, width = 256, 4
    features, scale = torch.randn(rows, width, requires_grad=True), torch.tensor(10.0, requires_grad=True)
    kept: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        value = supervised_contrastive_loss(features, torch.arange(rows) // 3, scale)
    value.backward()
    assert 0 < sum(kept.values()) < 20 * rows * (width + 1) * features.element_size()


def test_low_precision_features_are_computed_in_float32_under_autocast() -> None:
    batch = random_batch(6, torch.bfloat16)
    leaves = [x.clone().requires_grad_() for x in batch["inputs"]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = supcon(*leaves, **batch["options"])
        value.backward()
    expected = supcon(*(x.float() for x in batch["inputs"]), **batch["options"])
    assert value.dtype == torch.float32
    assert value.item() == expected.item()
    assert all(x.grad.dtype == torch.bfloat16 and x.grad.isfinite().all() for x in leaves)


def test_repeats_bit_for_bit_and_compiles() -> None:
    batch = random_batch(10)
    first, second = (value_and_gradients(supcon, *batch["inputs"], **batch["options"]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    compiled = torch.compile(supcon, backend="eager")
    torch.testing.assert_close(value_and_gradients(compiled, *batch["inputs"], **batch["options"]), first)


def test_descent_gathers_the_classes() -> None:
    """Gradient descent on random features ends with each image nearest to one of its class."""
    features = torch.randn(24, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(24) % 6
    optimizer = torch.optim.Adam([features], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        supervised_contrastive_loss(features, labels, torch.tensor(10.0)).backward()
        optimizer.step()
    unit = F.normalize(features.detach(), dim=-1)
    assert torch.equal(labels[(unit @ unit.T).fill_diagonal_(-1).argmax(1)], labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, -2, 1])}, "labels must be -1"),
        ({"labels": torch.tensor([0, 1])}, "features must be \\[2, D\\]"),
        ({"labels": torch.tensor([0.0, 1.0, 2.0])}, "labels must be"),
        ({"features": torch.ones(3)}, "features must be"),
        ({"views": torch.tensor([0, 1])}, "views must hold 3"),
        ({"views": torch.tensor([0, 1, -1])}, "views must be integers"),
        ({"rows": torch.tensor([0, 3])}, "rows must lie in"),
        ({"rows": torch.tensor([[0, 1]])}, "rows must be integers in one dimension"),
        ({"logit_scale": torch.ones(2)}, "logit_scale"),
        ({"chunk_size": 0}, "chunk_size"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    arguments = {"features": torch.ones(3, 4), "labels": torch.tensor([0, 1, -1]), "logit_scale": torch.tensor(10.0)}
    with pytest.raises(ValueError, match=message):
        supervised_contrastive_loss(**(arguments | change))
