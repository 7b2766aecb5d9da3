"""The contests of contrast: all who take part compute the same, and the peers what they are named after."""

import pytest
import torch

from hf_vlr.bench.contests import contrast
from hf_vlr.bench.parity import parity
from hf_vlr.bench.setting import Setting
from hf_vlr.modeling.contrastive import image_text_label_loss_reference

TINY = {"pairs": 60, "texts": 60, "width": 8}
PROMPTED = {**TINY, "texts": 7}
AGAINST_PAIRS = (contrast.DISTINCT, contrast.DISTINCT_SHARP, contrast.PROMPTED)
AGAINST_DENSE = (contrast.DISTINCT_LABELLED, contrast.PROMPTED_LABELLED)
ALL = pytest.mark.parametrize("contest", [*AGAINST_PAIRS, *AGAINST_DENSE], ids=lambda contest: contest.name)


def setting(contest, **changes):
    size = PROMPTED if contest.row == 2 else TINY
    return Setting(torch.device("cpu"), 1, {**size, **changes}, "quick")


def entered(contest, **changes):
    if contest.needs:
        pytest.importorskip("open_clip")
    return contest.enter(setting(contest, **changes))


@ALL
def test_the_loss_and_every_gradient_agree(contest, monkeypatch):
    monkeypatch.setattr(contrast, "CLASSES", 9)  # of which a small batch has several pairs each
    ours, *peers = entered(contest)
    assert ours.ours and ours.name == contrast.OURS and peers
    found = ours.call()
    assert set(found) == {"loss", "image gradient", "text gradient", "scale gradient"}
    for peer in peers:
        apart = parity(found, peer.call())
        assert set(apart) == set(found)
        assert max(apart.values()) < 1e-5, peer.name


@ALL
def test_goals_and_floors_speak_of_who_takes_part(contest):
    names = {one.name for one in entered(contest) if not one.ours}
    assert set(contest.floors) <= names
    assert {goal.peer for goals in contest.goals.values() for goal in goals} <= names | {""}
    assert all(one.measures_memory for one in entered(contest))


@pytest.mark.parametrize("texts", [12, 5])
def test_the_dense_peer_is_the_definition(texts):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    vectors = torch.randn(texts, 6, generator=generator, dtype=torch.float64)
    labels, scale = torch.arange(12) % 4, torch.tensor(20.0, dtype=torch.float64)
    index = None if texts == 12 else torch.arange(12) % texts
    found = contrast._normalised(contrast._dense(labels), index)(images, vectors, scale)
    expected = image_text_label_loss_reference(images, vectors, labels, scale, text_index=index)
    torch.testing.assert_close(found, expected)


def test_a_large_tau_is_another_loss():
    plain, sharp = (entered(contest)[0].call()["loss"] for contest in (contrast.DISTINCT, contrast.DISTINCT_SHARP))
    assert sharp > plain + 1


def test_what_a_machine_must_do_at_least():
    assert contrast.DISTINCT.roof(setting(contrast.DISTINCT)).flop == 8 * 60 * 60 * 8
    assert contrast.PROMPTED.roof(setting(contrast.PROMPTED)).flop == 8 * 60 * 7 * 8


def test_sizes():
    for contest in (*AGAINST_PAIRS, *AGAINST_DENSE):
        full, accelerator = contest.size_for("full", "cpu"), contest.size_for("full", "cuda")
        assert full["pairs"] == 8192 and accelerator["pairs"] == 32768 and full["width"] == 512
        if contest.row == 1:
            assert full["texts"] == full["pairs"] and accelerator["texts"] == accelerator["pairs"]
        else:
            assert full["texts"] == accelerator["texts"] == 1000
