"""The line of whole training steps: it runs, on a CPU too, and both sides compute the same step."""

import pytest
import torch

from hf_vlr.bench.contests.pairs import (
    HALF,
    OPEN_CLIP,
    OPEN_CLIP_HALF,
    OURS,
    OURS_HALF,
    PATCHES_OF_16,
    PATCHES_OF_32,
    architecture,
    images_and_texts,
    in_our_names,
    open_clip_loss,
    open_clip_model,
    our_loss,
    our_model,
)
from hf_vlr.bench.contests.text_step import comparable
from hf_vlr.bench.parity import parity
from hf_vlr.bench.setting import Setting
from hf_vlr.convert.clip_tokenizer import clip_tokenizer
from hf_vlr.data.batches import Collator

open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")


def setting(contest=PATCHES_OF_16, scale: str = "quick") -> Setting:
    return Setting(torch.device("cpu"), 1, contest.size_for(scale, "cpu"), scale)


@pytest.mark.parametrize(("contest", "name"), [(PATCHES_OF_16, "ViT-B-16"), (PATCHES_OF_32, "ViT-B-32")])
def test_the_full_size_is_the_model_of_that_name(contest, name: str) -> None:
    found, stated = architecture(setting(contest, "full")), open_clip.get_model_config(name)
    assert found["vision_cfg"].pop("patch_dropout") == 0
    assert found == stated


def test_one_step_on_both_sides_in_float32() -> None:
    size = setting()
    images, texts, index = images_and_texts(size)
    assert 1 < len(texts) <= len(images) and len(index) == len(images)
    peer = open_clip_model(size)
    model = our_model(peer, size)
    loss = our_loss(model, images, Collator(clip_tokenizer()).tokenize(texts), index)
    ids = open_clip.get_tokenizer("ViT-B-16")([texts[place] for place in index.tolist()])
    expected = open_clip_loss(peer, images, ids)
    names = dict(model.named_parameters())
    found = dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))
    theirs = dict(peer.named_parameters())
    truth = in_our_names(dict(zip(theirs, torch.autograd.grad(expected, list(theirs.values())), strict=True)))
    apart = parity({"loss": loss, **comparable(found)}, {"loss": expected, **comparable(truth)})
    assert set(apart) == {"loss", *comparable(found)} and max(apart.values()) < 1e-4


def test_every_contestant_steps_and_leaves_nothing_behind() -> None:
    contestants = {one.name: one for one in PATCHES_OF_16.enter(setting())}
    assert list(contestants) == [OURS, OURS_HALF, OPEN_CLIP, OPEN_CLIP_HALF]
    assert [one.ours for one in contestants.values()] == [True, True, False, False]
    answers = {name: one.call() for name, one in contestants.items()}
    again = contestants[OURS].call()
    assert all(torch.equal(again[name], one) for name, one in answers[OURS].items())
    assert all(one.isfinite().all() for found in answers.values() for one in found.values())
    # bfloat16 keeps 8 bits; gradients of small parameters are sums of many such roundings
    apart = parity(answers[OURS], answers[OPEN_CLIP])
    assert len(apart) == len(answers[OURS]) and apart["loss"] < 0.01 and max(apart.values()) < 0.2
    assert not parity(answers[OURS_HALF], answers[OPEN_CLIP]) and not parity(answers[OURS], answers[OPEN_CLIP_HALF])


def test_half_of_the_patches_is_what_both_sides_see() -> None:
    size = setting()
    images = torch.randn(2, 3, size["image"], size["image"])
    seen = []
    peer = open_clip_model(size, HALF)
    peer.visual.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    peer.encode_image(images)
    model = our_model(peer, size)
    from hf_vlr.training.patch_dropout import apply_patch_dropout

    apply_patch_dropout(model.vision_model, HALF)
    model.vision_model.pre_layrnorm.register_forward_hook(lambda *inputs: seen.append(inputs[2].shape[1]))
    model.get_image_features(images)
    patches = (size["image"] // size["patch"]) ** 2
    assert seen == [1 + patches // 2] * 2


def test_the_roof_counts_what_the_model_does() -> None:
    """FLOPs of a ViT-B/16 and B/32 on one image: 17.6 and 4.4 billion multiply-adds, as published for their towers."""
    for contest, billions in ((PATCHES_OF_16, 17.58), (PATCHES_OF_32, 4.41)):
        size = setting(contest, "full")
        roof = contest.roof(Setting(size.device, 1, {**size.size, "pairs": 1, "text_width": 64}))
        assert roof.flop / 6e9 == pytest.approx(billions, rel=0.01)
