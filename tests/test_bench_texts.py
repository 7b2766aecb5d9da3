"""Lines 3 and 4 of the scoreboard: class prompts encoded, and trained on, as open_clip and transformers do it."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_vlr.bench.contest import Contest
from hf_vlr.bench.contests.prompts import (
    OPEN_CLIP,
    OURS,
    OURS_BF16,
    PROMPTS,
    TOKENS,
    TRANSFORMERS,
    open_clip_model,
    our_model,
    sampled_prompts,
    text_weights,
    tower_flop,
)
from hf_vlr.bench.contests.text_step import TEXT_STEP, comparable, spoken
from hf_vlr.bench.parity import parity
from hf_vlr.bench.setting import Setting

pytest.importorskip("open_clip", reason="open_clip_torch is in the extra [bench]")
SMALL = {"layers": 2, "width": 64, "heads": 2}
CPU = torch.device("cpu")


def setting(contest: Contest, **size: int) -> Setting:
    return Setting(CPU, 1, {**contest.sizes["quick"], **SMALL, **size}, "quick")


def answers(contest: Contest, **size: int) -> dict[str, dict[str, torch.Tensor]]:
    return {one.name: dict(one.call()) for one in contest.enter(setting(contest, **size))}


@pytest.mark.parametrize("contest", [PROMPTS, TOKENS], ids=lambda contest: contest.name)
def test_all_encode_the_same_prompts_to_the_same_features(contest):
    found = answers(contest, texts=40, peers_texts=24, batch=10, our_batch=16)
    assert found[OURS]["features"].shape == (24, 64)
    for peer in (OPEN_CLIP, TRANSFORMERS):
        assert parity(found[OURS], found[peer])["features"] < 1e-5
    # error of the cosine; neighbouring prompts are farther apart
    cosines = (found[OURS_BF16]["features"] * found[OPEN_CLIP]["features"]).sum(1)
    assert (1 - cosines).max() < 1e-3
    assert (found[OURS]["features"][1:] * found[OURS]["features"][:-1]).sum(1).max() < 0.99


def test_contestants_say_how_much_they_do():
    items = {one.name: one.items for one in PROMPTS.enter(setting(PROMPTS, texts=20, peers_texts=5))}
    assert (items[OURS], items[OURS_BF16], items[OPEN_CLIP], items[TRANSFORMERS]) == (20, 20, 5, 5)


def test_prompts_are_those_of_the_seed():
    one, again = (sampled_prompts(setting(PROMPTS, texts=30)) for _ in range(2))
    other = sampled_prompts(replace(setting(PROMPTS, texts=30), seed=1))
    assert one == again != other
    assert len(set(one)) == 30


def test_every_gradient_of_the_text_tower_is_that_of_the_peers():
    found = answers(TEXT_STEP, pairs=20, texts=6)
    model = our_model(text_weights(open_clip_model(setting(TEXT_STEP))), setting(TEXT_STEP))
    parameters = [name for name, _ in model.named_parameters() if name.startswith(("text_model.", "text_projection."))]
    merged = [name for name in parameters if name.endswith("k_proj.bias")]
    assert len(merged) == 2
    for peer in (OPEN_CLIP, TRANSFORMERS):
        apart = parity(found[OURS], found[peer])
        assert apart.keys() == {"features", *parameters} - set(merged)
        assert max(apart.values()) < 2e-5
    assert all(gradient.abs().max() > 0 for gradient in found[OURS].values())


def test_pairs_speak_one_prompt_of_each_class():
    texts, index = spoken(setting(TEXT_STEP, pairs=20, texts=6))
    assert len(set(texts)) == 6
    assert index.bincount().tolist() == [4, 4, 3, 3, 3, 3]


def test_a_keys_bias_is_measured_by_its_querys():
    one = {"a.k_proj.bias": torch.tensor([1e-9]), "a.q_proj.bias": torch.tensor([2.0]), "b": torch.tensor([3.0])}
    found = comparable(one)
    assert found.keys() == {"a.q_proj.bias", "b"}
    assert found["a.q_proj.bias"].tolist() == [2.0, pytest.approx(1e-9)]
    assert len(one) == 3


def test_the_roof_counts_no_more_than_the_tower_on_texts_without_padding():
    size = setting(PROMPTS)
    model = our_model(text_weights(open_clip_model(size)), size)
    model.set_attn_implementation("eager")  # whose products the counters of all versions know
    ids = torch.full((3, 12), 49407)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.text_projection(model.text_model(input_ids=ids).pooler_output)
    roof = tower_flop(size, torch.tensor([12, 12, 12]))
    # a counter takes all pairs of tokens, of which the causal half is needed
    assert 0.97 < roof / counter.get_total_flops() <= 1.0
