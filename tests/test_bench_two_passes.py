"""Line 11 of the scoreboard: the same step in two passes and at once."""

import torch

from hf_vlr.bench.contests.two_passes import OURS, TWO_PASSES, WHOLE
from hf_vlr.bench.parity import parity
from hf_vlr.bench.setting import Setting


def contestants(**size: int):
    found = {**TWO_PASSES.sizes["quick"], "pairs": 40, "whole": 40, "piece": 16, "texts": 24, **size}
    return {one.name: one for one in TWO_PASSES.enter(Setting(torch.device("cpu"), 1, found, "quick"))}


def test_every_gradient_of_two_passes_is_that_of_the_whole_batch():
    found = contestants()
    ours, whole = (dict(found[name].call()) for name in (OURS, WHOLE))
    assert ours.keys() == whole.keys()
    towers = ("model.vision_model.", "model.text_model.", "model.visual_projection", "model.text_projection")
    assert all(any(name.startswith(tower) for name in ours) for tower in (*towers, "loss", "model.logit_scale"))
    assert max(parity(ours, whole).values()) < 5e-5
    # a call leaves nothing to the next one
    again = found[OURS].call()
    assert all(torch.equal(again[name], ours[name]) for name in ours)


def test_a_batch_that_does_not_fit_is_beside_one_that_does():
    found = contestants(whole=8)
    assert (found[OURS].items, found[WHOLE].items) == (40, 8)
    assert parity(found[OURS].call(), found[WHOLE].call()) == {}
    assert found[OURS].call()["loss"].isfinite()
