"""The folded head against the head that it was folded from, and against the definition."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_vlr.export.folded_head import FoldedLanguageHead, fused_logits
from hf_vlr.export.graphs import RecogniserGraph, answers
from hf_vlr.modeling.recognition import fuse_logits, language_guided_logits_reference


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def trained_head(tiny):
    """A recogniser whose head has moved from where it starts; its last class has no anchor."""
    model = tiny.recogniser()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def test_folding_changes_nothing(tiny):
    model = trained_head(tiny)
    head, features = model.head, torch.randn(9, 16)
    wanted = language_guided_logits_reference(
        features.double(),
        head.anchors.double(),
        head.anchor_mask,
        *(tensor.double() for tensor in (head.query.weight, head.key.weight)),
        *(tensor.double() for norm in (head.norm_query, head.norm_key) for tensor in (norm.weight, norm.bias)),
        model.vlltr.logit_scale.exp().double(),
    )
    with torch.no_grad():
        found = FoldedLanguageHead(model)(features)
    assert not head.anchor_mask[-1].any()
    assert (found[:, -1] == -model.vlltr.logit_scale.exp()).all()
    assert relative(found.double(), wanted) <= 1e-6


def test_the_graph_says_what_the_model_says(tiny):
    model = trained_head(tiny)
    pixels = tiny.pixel_values(4)
    with torch.no_grad():
        wanted = model(pixel_values=pixels)
    found = answers(RecogniserGraph(model).eval(), [pixels])
    assert list(found) == ["logits", "visual_logits", "language_logits"]
    for name, values in found.items():
        assert relative(values, getattr(wanted, name)) <= 1e-6


def test_without_anchors_there_are_the_visual_logits_alone(tiny):
    model = tiny.recogniser(num_anchors=0)
    pixels = tiny.pixel_values(2)
    found = answers(RecogniserGraph(model).eval(), [pixels])
    with torch.no_grad():
        torch.testing.assert_close(found, {"logits": model(pixel_values=pixels).logits})


def test_neither_keys_nor_attended_texts_are_formed(tiny):
    class Sizes(TorchDispatchMode):
        seen: set[int] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            self.seen |= {leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
            return result

    head = FoldedLanguageHead(trained_head(tiny))
    images, classes, sentences, width = 11, 5, 3, 16
    with torch.no_grad(), Sizes():
        head(torch.randn(images, width))
    assert 2 * images * classes * sentences in Sizes.seen
    assert max(Sizes.seen) < images * classes * width


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_fused_logits(share):
    visual, language = 3 * torch.randn(6, 4), 3 * torch.randn(6, 4)
    torch.testing.assert_close(fused_logits(visual, language, share), fuse_logits(visual, language, share))


def test_fused_logits_of_what_is_all_but_impossible_are_finite():
    logits = torch.tensor([[0.0, -500.0, -900.0]])
    found = fused_logits(logits, logits, 0.2)
    torch.testing.assert_close(found, logits)
