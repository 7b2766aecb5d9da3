"""Gradients that are computed by hand say so where a second derivative is asked for, and are right where it is not."""

import pytest
import torch

from hf_vlr.losses.sigmoid import unified_sigmoid_loss
from hf_vlr.losses.supervised import supervised_contrastive_loss
from hf_vlr.modeling.contrastive import (
    clip_loss,
    distillation_loss,
    image_text_label_loss,
    image_text_label_loss_reference,
)
from hf_vlr.modeling.recognition import language_guided_logits, language_guided_logits_reference

PAIRS, WIDTH = 6, 4
LABELS = torch.tensor([0, 0, 1, -1, 2, 1])
SCALE = torch.tensor(5.0)


def others():
    return torch.randn(PAIRS, WIDTH, generator=torch.Generator().manual_seed(1))


def head(function):
    generator = torch.Generator().manual_seed(2)
    anchors = torch.randn(3, 2, WIDTH, generator=generator)
    mask, square = torch.ones(3, 2, dtype=torch.bool), torch.eye(WIDTH)
    vectors = [torch.ones(WIDTH), torch.zeros(WIDTH)] * 2
    return lambda x: function(x, anchors, mask, square, square, *vectors, SCALE).sum()


BY_HAND = {
    "clip": lambda x: clip_loss(x, others(), SCALE),
    "image-text-label": lambda x: image_text_label_loss(x, others(), LABELS, SCALE),
    "distillation": lambda x: distillation_loss(x, others(), SCALE, others(), others(), SCALE),
    "sigmoid": lambda x: unified_sigmoid_loss(x, others(), LABELS, SCALE, torch.tensor(-1.0)),
    "supervised": lambda x: supervised_contrastive_loss(x, LABELS, SCALE),
    "head": head(language_guided_logits),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_second_derivative_is_refused(name):
    x = torch.randn(PAIRS, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with pytest.raises(RuntimeError, match=r"create_graph=True.*_reference"):
        torch.autograd.grad(BY_HAND[name](x), x, create_graph=True)
    (gradient,) = torch.autograd.grad(BY_HAND[name](x), x)
    assert gradient.isfinite().all() and not gradient.requires_grad


@pytest.mark.parametrize(
    "function",
    [lambda x: image_text_label_loss_reference(x, others(), LABELS, SCALE), head(language_guided_logits_reference)],
    ids=["image-text-label", "head"],
)
def test_the_references_have_one(function):
    x = torch.randn(PAIRS, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(function(x), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert second.norm() > 0
