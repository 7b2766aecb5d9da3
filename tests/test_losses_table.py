"""The losses' table: every objective, its value and every gradient against its definition (`-s` prints the table)."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from hf_vlr.losses.classification import (
    class_weights,
    classification_loss,
    classification_loss_reference,
    ldam_margins,
)
from hf_vlr.losses.sigmoid import unified_sigmoid_loss, unified_sigmoid_loss_reference
from hf_vlr.losses.supervised import supervised_contrastive_loss, supervised_contrastive_loss_reference
from hf_vlr.modeling.contrastive import (
    distillation_loss,
    distillation_loss_reference,
    image_text_label_loss,
    image_text_label_loss_reference,
)

PAIRS, TEXTS, CLASSES, WIDTH = 96, 40, 12, 24
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
COUNTS = torch.tensor([400, 200, 150, 100, 60, 40, 25, 16, 9, 5, 2, 0])

# Images, texts, a teacher's images and texts, and the weights of a linear head; labels and texts of pairs.
_GENERATOR = torch.Generator().manual_seed(7)
IMAGES, TEACHER_IMAGES = torch.randn(2, PAIRS, WIDTH, generator=_GENERATOR)
SENTENCES, TEACHER_SENTENCES = torch.randn(2, TEXTS, WIDTH, generator=_GENERATOR)
HEAD = torch.randn(CLASSES, WIDTH, generator=_GENERATOR)
SCALE, BIAS = torch.tensor(14.3), torch.tensor(-4.0)
MIXED = torch.randint(-1, CLASSES - 1, (PAIRS,), generator=_GENERATOR)
INDEX = torch.randint(0, TEXTS, (PAIRS,), generator=_GENERATOR)
LABELS, OTHERS = torch.randint(0, CLASSES, (2, PAIRS), generator=_GENERATOR)
SHARE = torch.rand(PAIRS, generator=_GENERATOR)

Loss = Callable[..., Tensor]
PAIR_INPUTS = (IMAGES, SENTENCES, SCALE)


def contrast(loss: Loss, labels: Tensor = MIXED, **options) -> Loss:
    return lambda images, texts, scale: loss(images, texts, labels, scale, text_index=INDEX, **options)


def distillation(loss: Loss) -> Loss:
    def apply(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        teacher = (x.to(images.dtype) for x in (TEACHER_IMAGES, TEACHER_SENTENCES, 2 * SCALE))
        return loss(images, texts, scale, *teacher, text_index=INDEX)

    return apply


def sigmoid(loss: Loss, labels: Tensor = MIXED) -> Loss:
    return lambda images, texts, scale, bias: loss(images, texts, labels, scale, bias, text_index=INDEX)


def supervised(loss: Loss, views: Tensor | None = None) -> Loss:
    return lambda images, scale: loss(images, MIXED if views is None else -torch.ones_like(views), scale, views=views)


def classification(loss: Loss, **options) -> Loss:
    """Of a linear head."""

    def apply(images: Tensor, head: Tensor) -> Tensor:
        numbers = {
            name: x.to(images.dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
            for name, x in options.items()
        }
        return loss(images @ head.T, LABELS, **numbers)

    return apply


def multi_task(contrastive: Loss, classifying: Loss) -> Loss:
    """A contrast of all pairs, and beside it the cross-entropy of a linear head on the images that have a class."""

    def apply(images: Tensor, texts: Tensor, scale: Tensor, head: Tensor) -> Tensor:
        return contrast(contrastive)(images, texts, scale) + classifying(images @ head.T, MIXED)

    return apply


def unicl(**options) -> tuple[Loss, Loss, tuple[Tensor, ...]]:
    return contrast(image_text_label_loss, **options), contrast(image_text_label_loss_reference, **options), PAIR_INPUTS


def classifier(**options) -> tuple[Loss, Loss, tuple[Tensor, ...]]:
    lean, definition = (
        classification(loss, **options) for loss in (classification_loss, classification_loss_reference)
    )
    return lean, definition, (IMAGES, HEAD)


PRIOR = (COUNTS.double().clamp(min=1) / COUNTS.sum()).log()
LDAM = {"kind": "ldam", "margins": ldam_margins(COUNTS), "scale": 30.0}
OBJECTIVES: dict[str, tuple[Loss, Loss, tuple[Tensor, ...]]] = {
    "unicl": unicl(),
    "unicl, image to text": unicl(direction="image_to_text"),
    "unicl, text to image": unicl(direction="text_to_image"),
    "unicl, label smoothing 0.1": unicl(label_smoothing=0.1),
    "clip": unicl(labels=torch.full_like(MIXED, -1)),
    "distillation": (distillation(distillation_loss), distillation(distillation_loss_reference), PAIR_INPUTS),
    "siglip, classes": (
        sigmoid(unified_sigmoid_loss),
        sigmoid(unified_sigmoid_loss_reference),
        (*PAIR_INPUTS, BIAS),
    ),
    "siglip, pairs alone": (
        sigmoid(unified_sigmoid_loss, torch.full_like(MIXED, -1)),
        sigmoid(unified_sigmoid_loss_reference, torch.full_like(MIXED, -1)),
        (*PAIR_INPUTS, BIAS),
    ),
    "supcon": (
        supervised(supervised_contrastive_loss),
        supervised(supervised_contrastive_loss_reference),
        (IMAGES, SCALE),
    ),
    "supcon, two views, no class": (
        supervised(supervised_contrastive_loss, torch.arange(PAIRS) // 2),
        supervised(supervised_contrastive_loss_reference, torch.arange(PAIRS) // 2),
        (IMAGES, SCALE),
    ),
    "multi-task": (
        multi_task(image_text_label_loss, classification_loss),
        multi_task(image_text_label_loss_reference, classification_loss_reference),
        (*PAIR_INPUTS, HEAD),
    ),
    "cross-entropy": classifier(),
    "cross-entropy, label smoothing 0.1": classifier(label_smoothing=0.1),
    "cross-entropy, mixup or CutMix": classifier(other_labels=OTHERS, mix=SHARE),
    "focal, γ = 2": classifier(kind="focal"),
    "focal, γ = 0.5, label smoothing 0.1": classifier(kind="focal", focal_gamma=0.5, label_smoothing=0.1),
    "ldam": classifier(**LDAM),
    "ldam, class-balanced (DRW)": classifier(class_weights=class_weights(COUNTS), **LDAM),
    "class-balanced": classifier(class_weights=class_weights(COUNTS)),
    "inverse frequency": classifier(class_weights=class_weights(COUNTS, "inverse")),
    "balanced softmax": classifier(adjustment=PRIOR),
    "logit adjustment, τ = 1.5": classifier(adjustment=1.5 * PRIOR),
}


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, list[float]]]:
    """Where tests put the errors of an objective; printed when the last is done."""
    rows: dict[str, list[float]] = {}
    yield rows
    names = [f"{str(dtype).removeprefix('torch.')} {what}" for dtype in TOLERANCES for what in ("value", "gradient")]
    print("\n\n| objective | " + " | ".join(names) + " |\n|---|" + "---:|" * len(names))
    for objective, errors in rows.items():
        print(f"| {objective} | " + " | ".join(f"{error:.0e}" for error in errors) + " |")


def value_and_gradients(loss: Loss, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objective_agrees_with_its_definition(objective: str, table: dict[str, list[float]]) -> None:
    loss, definition, inputs = OBJECTIVES[objective]
    expected = value_and_gradients(definition, inputs, torch.float64)
    for dtype, tolerance in TOLERANCES.items():
        results = value_and_gradients(loss, inputs, dtype)
        errors = [((result.double() - truth).norm() / truth.norm()).item() for result, truth in zip(results, expected)]
        table.setdefault(objective, []).extend([errors[0], max(errors[1:])])
        assert all(result.dtype == dtype for result in results)
        assert max(errors) < tolerance
