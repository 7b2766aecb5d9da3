"""The recognition head's contests: what takes part computes the same, and it is the head by its definition."""

import pytest
import torch

from hf_vlr.bench.contests import recognition
from hf_vlr.bench.parity import parity
from hf_vlr.bench.setting import Setting
from hf_vlr.modeling.recognition import language_guided_logits_reference

TINY = {"images": 5, "classes": 6, "anchors": 4, "width": 16}
TRAINING = pytest.mark.parametrize("contest", [recognition.IMAGENET_TRAINING, recognition.INATURALIST_TRAINING])
ONE_IMAGE = pytest.mark.parametrize("contest", [recognition.ONE_IMAGE, recognition.ONE_IMAGE_INATURALIST])


def setting(**changes):
    return Setting(torch.device("cpu"), 1, {**TINY, **changes}, "quick")


def answers(contest, **changes):
    return {one.name: one.call() for one in contest.enter(setting(**changes))}


@TRAINING
def test_a_training_step_agrees_in_every_gradient(contest):
    found = answers(contest)
    apart = parity(found[recognition.OURS], found[recognition.ORIGINAL])
    trained = ("x", "query_weight", "key_weight", "norm_query_weight", "norm_query_bias", "norm_key_weight")
    assert set(apart) == {"logits", "logit_scale gradient", *(f"{name} gradient" for name in trained)}
    assert max(apart.values()) < 1e-5


@pytest.mark.parametrize("detach_norm", [False, True])
def test_the_peer_is_the_head_by_its_definition(detach_norm):
    head = {name: x.double() if x.is_floating_point() else x for name, x in recognition._head(setting()).items()}
    leaves = {name: x.requires_grad_() for name, x in head.items() if name not in recognition.FROZEN}
    results = []
    for logits in (recognition._formed(head, detach_norm=detach_norm), definition(head, detach_norm)):
        gradients = torch.autograd.grad(logits.square().sum(), list(leaves.values()))
        results.append({"logits": logits, **dict(zip(leaves, gradients, strict=True))})
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def definition(head, detach_norm):
    return language_guided_logits_reference(**head, detach_norm=detach_norm)


def test_inaturalist_holds_the_norm_constant_and_imagenet_does_not():
    free, held = (
        answers(contest)[recognition.OURS]
        for contest in (recognition.IMAGENET_TRAINING, recognition.INATURALIST_TRAINING)
    )
    assert torch.equal(free["logits"], held["logits"])
    assert not torch.allclose(free["x gradient"], held["x gradient"])


@ONE_IMAGE
def test_every_prediction_agrees(contest):
    found = answers(contest, images=1, classes=40, width=64)
    expected = found[recognition.ORIGINAL]
    for one in contest.enter(setting(images=1)):
        apart = parity(found[one.name], expected)["logits"]
        assert apart < (0.02 if one.dtype == "bfloat16" else 1e-5), one.name
    assert expected["logits"].shape == (1, 40)


@TRAINING
def test_calls_repeat_bit_for_bit(contest):
    for one in contest.enter(setting()):
        first, second = one.call(), one.call()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_a_machine_must_do_at_least():
    size = {"images": 2, "classes": 3, "anchors": 5, "width": 7}
    roof = recognition.IMAGENET_TRAINING.roof(setting(**size))
    # multiplications and additions: the product of 15 anchors with 4 vectors, its gradient, and the inner products
    assert roof.flop == 2 * (15 * 4 * 7 + 15 * 4 * 7 + 2 * 3 * 5 * 5)
    assert recognition.ONE_IMAGE.roof(setting(**size)).bytes == 4 * (15 * 7 + 3 * 5 * 5)
