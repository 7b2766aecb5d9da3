"""Losses of a classifier against their definition, their special cases, and what must hold of every batch."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_vlr.losses.classification import (
    class_weights,
    classification_loss,
    classification_loss_reference,
    ldam_margins,
)

COUNTS = torch.tensor([500, 120, 30, 7, 1])
KINDS = {"cross-entropy": {}, "focal": {"focal_gamma": 1.5}, "ldam": {"margins": ldam_margins(COUNTS), "scale": 30.0}}


def relative_error(value: Tensor, expected: Tensor) -> float:
    return ((value.double() - expected.double()).norm() / expected.double().norm()).item()


def random_rows(seed: int, rows: int = 40) -> dict[str, Tensor]:
    """30 x cosines, labels with -1 among them, and a second label with its share for mixup."""
    generator = torch.Generator().manual_seed(seed)
    labels, other = torch.randint(0, len(COUNTS), (2, rows), generator=generator)
    nameless = torch.rand(rows, generator=generator) < 0.2
    return {
        "logits": 30 * torch.rand(rows, len(COUNTS), dtype=torch.float64, generator=generator).mul(2).sub(1),
        "labels": labels.masked_fill(nameless, -1),
        "other_labels": other.masked_fill(nameless, -1),
        "mix": torch.rand(rows, dtype=torch.float64, generator=generator),
    }


def value_and_gradient(loss, logits: Tensor, labels: Tensor, **options) -> list[Tensor]:
    leaf = logits.detach().clone().requires_grad_()
    value = loss(leaf, labels, **options)
    return [value.detach(), *torch.autograd.grad(value, leaf)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_agree_with_the_reference(
    kind: str, smoothing: float, mixed: bool, dtype: torch.dtype, tolerance: float
) -> None:
    rows = random_rows(3)
    options = {"kind": kind, "label_smoothing": smoothing, **KINDS[kind]}
    options |= {"adjustment": (COUNTS / COUNTS.sum()).log().double(), "class_weights": class_weights(COUNTS)}
    if mixed:
        options |= {"other_labels": rows["other_labels"], "mix": rows["mix"]}
    for reduction in ("mean", "sum"):
        results = value_and_gradient(
            classification_loss, rows["logits"].to(dtype), rows["labels"], reduction=reduction, **options
        )
        expected = value_and_gradient(
            classification_loss_reference,
            rows["logits"].to(dtype).double(),
            rows["labels"],
            reduction=reduction,
            **options,
        )
        for result, truth in zip(results, expected):
            assert result.dtype == dtype
            assert relative_error(result, truth) < tolerance


def test_gradcheck() -> None:
    rows = random_rows(1, rows=5)
    mixed = {"other_labels": rows["other_labels"], "mix": rows["mix"], "label_smoothing": 0.1}
    logits, scale = (rows["logits"] / 10).requires_grad_(), torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    for kind in ("cross-entropy", "focal"):
        assert torch.autograd.gradcheck(
            lambda z, kind=kind: classification_loss(z, rows["labels"], kind=kind, **mixed), [logits]
        )
    margins = ldam_margins(COUNTS)
    assert torch.autograd.gradcheck(
        lambda z, s: classification_loss(z, rows["labels"], kind="ldam", margins=margins, scale=s, **mixed),
        [logits, scale],
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_plain_losses_are_those_of_torch(smoothing: float) -> None:
    rows = random_rows(5)
    logits, labels = rows["logits"], rows["labels"]
    expected = F.cross_entropy(logits, labels, ignore_index=-1, label_smoothing=smoothing)
    torch.testing.assert_close(classification_loss(logits, labels, label_smoothing=smoothing), expected)
    weights, known = class_weights(COUNTS), labels >= 0
    expected = F.cross_entropy(logits[known], labels[known], weight=weights, reduction="sum")
    torch.testing.assert_close(classification_loss(logits, labels, class_weights=weights, reduction="sum"), expected)


def test_mixup_of_hard_labels_is_cross_entropy_with_two_hot_targets() -> None:
    rows = random_rows(6)
    known = rows["labels"] >= 0
    logits, labels, other, mix = (rows[key][known] for key in ("logits", "labels", "other_labels", "mix"))
    targets = mix[:, None] * F.one_hot(labels, 5) + (1 - mix)[:, None] * F.one_hot(other, 5)
    for smoothing in (0.0, 0.2):
        value = classification_loss(logits, labels, other_labels=other, mix=mix, label_smoothing=smoothing)
        torch.testing.assert_close(value, F.cross_entropy(logits, targets, label_smoothing=smoothing))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_focal_without_gamma_and_margin_without_length_are_cross_entropy(smoothing: float) -> None:
    rows = random_rows(7)
    options = {"label_smoothing": smoothing, "class_weights": class_weights(COUNTS)}
    expected = value_and_gradient(classification_loss, rows["logits"], rows["labels"], **options)
    for kind in ({"kind": "focal", "focal_gamma": 0.0}, {"kind": "ldam", "margins": torch.zeros(5), "scale": 30.0}):
        results = value_and_gradient(classification_loss, rows["logits"], rows["labels"], **kind, **options)
        torch.testing.assert_close(results, expected)


def test_focal_of_two_classes_is_the_sigmoid_focal_loss() -> None:
    """softmax of (z, 0) is (σ(z), σ(−z)), where torchvision's binary form is defined."""
    ops = pytest.importorskip("torchvision.ops")
    logit = torch.linspace(-9, 9, 13, dtype=torch.float64)
    labels = torch.arange(13) % 2
    value = classification_loss(torch.stack([logit, 0 * logit], 1), labels, kind="focal", focal_gamma=2.0)
    expected = ops.sigmoid_focal_loss(logit, 1.0 - labels.double(), alpha=-1, gamma=2.0, reduction="mean")
    torch.testing.assert_close(value, expected)


def test_ldam_by_hand() -> None:
    """Two classes, cosines 0.8 and 0.1, scale 30, margin 0.5: the true logit is 30 x 0.3, the other 3."""
    loss = classification_loss(
        30 * torch.tensor([[0.8, 0.1]], dtype=torch.float64),
        torch.tensor([0]),
        kind="ldam",
        margins=torch.tensor([0.5, 0.2], dtype=torch.float64),
        scale=30.0,
    )
    assert loss.item() == pytest.approx(math.log1p(math.exp(3 - 9)), rel=1e-12)


def test_prior_of_the_training_images_gives_balanced_softmax() -> None:
    """−log of n_y exp z_y / Σ_c n_c exp z_c."""
    rows = random_rows(8)
    known = rows["labels"] >= 0
    logits, labels = rows["logits"][known], rows["labels"][known]
    masses = COUNTS * logits.exp()
    expected = -(masses[torch.arange(len(labels)), labels] / masses.sum(1)).log().mean()
    adjustment = (COUNTS / COUNTS.sum()).log()
    torch.testing.assert_close(classification_loss(logits, labels, adjustment=adjustment), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_add_up(kind: str) -> None:
    """Sums add, and means weighed by rows average, whatever the classes of the parts: no weight in the divisor."""
    rows = random_rows(9)
    known = rows["labels"] >= 0
    options = {"kind": kind, "class_weights": class_weights(COUNTS), **KINDS[kind]}
    logits, labels = rows["logits"][known], rows["labels"][known].sort().values
    whole = value_and_gradient(classification_loss, logits, labels, **options)
    cuts = [0, 3, 3, 4, len(labels)]
    parts = [slice(*pair) for pair in itertools.pairwise(cuts)]
    sums = [value_and_gradient(classification_loss, logits[p], labels[p], reduction="sum", **options) for p in parts]
    torch.testing.assert_close(sum(value for value, _ in sums) / len(labels), whole[0])
    torch.testing.assert_close(torch.cat([gradient for _, gradient in sums]) / len(labels), whole[1])
    means = [classification_loss(logits[p], labels[p], **options) * len(labels[p]) for p in parts]
    torch.testing.assert_close(sum(means) / len(labels), whole[0])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_class_change_nothing(kind: str) -> None:
    """The multi-task baseline sends a batch with image-text pairs among the images with classes."""
    rows = random_rows(10)
    known = rows["labels"] >= 0
    options = {"kind": kind, **KINDS[kind]}
    value, gradient = value_and_gradient(classification_loss, rows["logits"], rows["labels"], **options)
    alone, part = value_and_gradient(classification_loss, rows["logits"][known], rows["labels"][known], **options)
    torch.testing.assert_close(value, alone)
    torch.testing.assert_close(gradient[known], part)
    assert gradient[~known].abs().max() == 0
    value, gradient = value_and_gradient(classification_loss, rows["logits"], torch.full((40,), -1), **options)
    assert value == 0 and gradient.abs().max() == 0


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_is_finite_where_the_model_is_certain(gamma: float) -> None:
    logits = torch.tensor([[100.0, -100.0, 0.0], [-100.0, 100.0, 0.0], [0.0, 0.0, 0.0]])
    for smoothing in (0.0, 0.1):
        options = {"kind": "focal", "focal_gamma": gamma, "label_smoothing": smoothing}
        labels = torch.tensor([0, 0, 1])
        value, gradient = value_and_gradient(classification_loss, logits, labels, **options)
        truth = value_and_gradient(classification_loss, logits.double(), labels, **options)
        assert gradient.isfinite().all()
        assert relative_error(value, truth[0]) < 1e-5 and relative_error(gradient, truth[1]) < 1e-5
    certain, gradient = value_and_gradient(
        classification_loss, logits[:1], torch.tensor([0]), kind="focal", focal_gamma=gamma
    )
    assert certain == 0 and gradient.abs().max() < 1e-40
    wrong = classification_loss(logits[1:2], torch.tensor([0]), kind="focal", focal_gamma=gamma)
    assert wrong.item() == pytest.approx(200.0, rel=1e-5)


def test_half_precision_logits_are_computed_in_float32() -> None:
    rows = random_rows(11)
    leaf = rows["logits"].bfloat16().requires_grad_()
    for kind, options in KINDS.items():
        value = classification_loss(leaf, rows["labels"], kind=kind, class_weights=class_weights(COUNTS), **options)
        expected = classification_loss(
            leaf.float(), rows["labels"], kind=kind, class_weights=class_weights(COUNTS), **options
        )
        assert value.dtype == torch.float32
        assert value.item() == expected.item()
        (gradient,) = torch.autograd.grad(value, leaf)
        assert gradient.dtype == torch.bfloat16 and gradient.isfinite().all()


def test_weights_and_priors_lift_the_rare_class() -> None:
    """A linear classifier on two overlapping classes, 100 to 1, recognises more of the rare one with either."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([200, 2])
    labels = torch.arange(2).repeat_interleave(counts)
    points = torch.randn(len(labels), 2, generator=generator) + 1.5 * labels[:, None]
    unseen = torch.randn(500, 2, generator=generator) + 1.5

    def recall(**options) -> float:
        weight, bias = torch.zeros(2, 2, requires_grad=True), torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.Adam([weight, bias], lr=0.1)
        for _ in range(60):
            optimizer.zero_grad()
            classification_loss(F.linear(points, weight, bias), labels, **options).backward()
            optimizer.step()
        return (F.linear(unseen, weight, bias).argmax(1) == 1).double().mean().item()

    plain = recall()
    assert recall(class_weights=class_weights(counts, "inverse")) > plain + 0.3
    assert recall(adjustment=(counts / counts.sum()).log()) > plain + 0.3


def test_margins_move_the_boundary_away_from_the_rare_class() -> None:
    """A cosine classifier on two separate arcs, 100 images to 1: the angle at which the rare class begins."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([200, 2])
    labels = torch.arange(2).repeat_interleave(counts)
    angles = labels - 0.2 + 0.4 * torch.rand(len(labels), generator=generator)
    grid = torch.linspace(0.2, 0.8, 601)

    def boundary(**options) -> float:
        weight = torch.eye(2).requires_grad_()
        optimizer = torch.optim.Adam([weight], lr=0.02)
        for _ in range(100):
            optimizer.zero_grad()
            logits = 30 * F.linear(torch.stack([angles.cos(), angles.sin()], 1), F.normalize(weight, dim=1))
            classification_loss(logits, labels, **options).backward()
            optimizer.step()
        scores = F.linear(torch.stack([grid.cos(), grid.sin()], 1), F.normalize(weight, dim=1))
        return grid[scores[:, 1] > scores[:, 0]].min().item()

    margins = ldam_margins(counts)
    assert boundary(kind="ldam", margins=margins, scale=30.0) < boundary() - 0.03
    assert boundary(kind="ldam", margins=margins.flip(0), scale=30.0) > boundary() + 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3)}, "logits must be"),
        ({"labels": torch.tensor([0, 1])}, "labels must hold 3"),
        ({"labels": torch.tensor([0.0, 1.0, 1.0])}, "labels must hold 3 integers"),
        ({"labels": torch.tensor([0, 1, 4])}, "labels must be -1 or lie in"),
        ({"labels": torch.tensor([0, 1, -2])}, "labels must be -1 or lie in"),
        ({"kind": "hinge"}, "kind must be one of"),
        ({"kind": "ldam"}, "margins go with"),
        ({"margins": torch.zeros(4)}, "margins go with"),
        ({"kind": "ldam", "margins": torch.zeros(3)}, "margins must hold 4"),
        ({"adjustment": torch.zeros(3)}, "adjustment must hold 4"),
        ({"class_weights": torch.ones(5)}, "class_weights must hold 4"),
        ({"mix": torch.ones(3)}, "go together"),
        ({"other_labels": torch.zeros(3, dtype=torch.int64)}, "go together"),
        ({"other_labels": torch.tensor([0, -1, 1]), "mix": torch.ones(3)}, "-1 in the same rows"),
        ({"other_labels": torch.tensor([0, 1, 1]), "mix": torch.full((3,), 1.5)}, "mix must hold 3"),
        ({"focal_gamma": -1.0}, "focal_gamma"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"reduction": "none"}, "reduction"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    arguments = {"logits": torch.zeros(3, 4), "labels": torch.tensor([0, 1, 2])}
    with pytest.raises(ValueError, match=message):
        classification_loss(**(arguments | change))
