"""Heads of language-guided recognition with random weights, and all that a test compares of one."""

import torch
from torch import Tensor

TOLERANCE = 1e-5
TRAINED = (
    "x",
    "query_weight",
    "key_weight",
    "norm_query_weight",
    "norm_query_bias",
    "norm_key_weight",
    "norm_key_bias",
    "logit_scale",
)


def relative_error(value: Tensor, expected: Tensor) -> float:
    return ((value.double() - expected.double()).norm() / expected.double().norm()).item()


def random_head(seed: int, images: int, classes: int, sentences: int, width: int) -> dict[str, Tensor]:
    """All tensors of a head with uneven numbers of sentences and anchors that are off centre."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    counts = torch.randint(1, sentences + 1, (classes, 1), generator=generator)
    mask = torch.arange(sentences) < counts
    return {
        "x": normal(images, width, scale=2.0),
        "anchors": (normal(classes, sentences, width) + 0.5) * mask[:, :, None],
        "anchor_mask": mask,
        "query_weight": torch.eye(width) + normal(width, width, scale=0.1),
        "key_weight": torch.eye(width) + normal(width, width, scale=0.1),
        "norm_query_weight": 1.0 + normal(width, scale=0.3),
        "norm_query_bias": normal(width, scale=0.3),
        "norm_key_weight": 1.0 + normal(width, scale=0.3),
        "norm_key_bias": normal(width, scale=0.3),
        "logit_scale": torch.tensor(14.3),
    }


def cast(head: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {key: x.to(dtype) if x.is_floating_point() else x for key, x in head.items()}


def value_and_gradients(function, head: dict[str, Tensor], **options) -> dict[str, Tensor]:
    """The logits and the gradients of a fixed weighting of them by every trained tensor."""
    leaves = {key: head[key].detach().clone().requires_grad_() for key in TRAINED}
    logits = function(**(head | leaves), **options)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits.dtype)
    gradients = torch.autograd.grad((logits * weights).sum(), list(leaves.values()))
    return {"logits": logits.detach(), **dict(zip(TRAINED, gradients))}
