"""The scoreboard's demo latency: every contestant gives the same answer."""

import pytest
import torch

from hf_vlr.bench.contests.answer import ANSWER, FLOAT32, INT8, NAIVE, TORCH, random_recogniser
from hf_vlr.bench.parity import relative_distance
from hf_vlr.bench.setting import Setting

SETTING = Setting(torch.device("cpu"), 1, ANSWER.sizes["quick"], "quick")


@pytest.fixture(scope="module")
def found():
    for package in ANSWER.needs:
        pytest.importorskip(package)
    return {one.name: one for one in ANSWER.enter(SETTING)}


@pytest.mark.slow
def test_answers_are_the_naive_ports(found):
    answers = {name: one.call() for name, one in found.items()}
    assert list(answers) == [INT8, FLOAT32, TORCH, NAIVE]
    for name, limit in ((FLOAT32, 1e-5), (TORCH, 1e-5), (INT8, 5e-2)):
        for key, wanted in answers[NAIVE].items():
            assert relative_distance(answers[name][key], wanted) < limit
    # int8 is another arithmetic, not the same under another name
    assert not torch.equal(answers[INT8]["of the five"], answers[FLOAT32]["of the five"])


@pytest.mark.slow
def test_the_five_are_the_likeliest_of_a_distribution(found):
    for one in found.values():
        answers = one.call()
        logits = answers["centred log-probabilities"]
        assert logits.shape == (1, SETTING["classes"])
        wanted = logits.log_softmax(-1).sort(descending=True).values[:, :5]
        torch.testing.assert_close(answers["of the five"], wanted, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_goals_and_dtypes_are_stated(found):
    assert {name: one.dtype for name, one in found.items() if one.dtype != "float32"} == {INT8: "int8"}
    assert [name for name, one in found.items() if not one.ours] == [NAIVE]
    assert {(goal.ours, goal.peer) for goal in ANSWER.goals["cpu"]} <= {(INT8, NAIVE)}
    assert set(ANSWER.floors) == {NAIVE}


def test_the_recogniser_is_always_the_same():
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    one, other = random_recogniser(SETTING), random_recogniser(SETTING)
    assert torch.equal(torch.rand(1), before)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert one.head.anchors.shape == (SETTING["classes"], SETTING["anchors"], SETTING["space"])
