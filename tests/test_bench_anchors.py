"""The contest of anchor selection: the loop scores the first sentences as we score all."""

import torch

from hf_vlr.anchors import score_sentences_reference
from hf_vlr.bench.contests import anchors
from hf_vlr.bench.parity import parity
from hf_vlr.bench.setting import Setting

SIZE = {"sentences": 40, "sample": 7, "images": 60, "classes": 6, "width": 16}
SETTING = Setting(torch.device("cpu"), 1, SIZE, "quick")


def test_both_score_the_shared_sentences_alike():
    ours, loop = anchors.SELECTION.enter(SETTING)
    found, expected = ours.call(), loop.call()
    assert found["scores"].shape == (7,)
    assert parity(found, expected)["scores"] < 1e-5
    texts, text_labels, *images = anchors._features(SETTING)
    by_definition = score_sentences_reference(texts[:7], text_labels[:7], *images, anchors.SCALE)
    assert parity(expected, {"scores": by_definition})["scores"] < 1e-5


def test_ratios_are_per_sentence():
    ours, loop = anchors.SELECTION.enter(SETTING)
    assert (ours.items, loop.items) == (40, 7)
    assert ours.ours and not loop.ours
    assert anchors.SELECTION.roof(SETTING).flop == 2 * 40 * 60 * 16
