"""The clock: who is called when, and what is kept."""

import time

import pytest
import torch

from hf_vlr.timing import Timing, Turns, in_turns, timing, torch_threads


def test_calls_alternate_and_each_begins_in_turn():
    called: list[str] = []
    found = in_turns({name: lambda name=name: called.append(name) for name in "ab"}, Turns(runs=3, warmup=2))
    assert "".join(called) == "aabb" + "ab" + "ba" + "ab"
    assert set(found) == {"a", "b"}


def test_a_turn_of_several_calls_begins_untimed():
    called: list[str] = []
    in_turns({name: lambda name=name: called.append(name) for name in "ab"}, Turns(3, 0, untimed=1, timed=2))
    assert "".join(called) == "aaabbb" + "bb" + "aa"


def test_seconds_are_those_of_the_call():
    found = in_turns({"slow": lambda: time.sleep(0.02), "quick": lambda: None}, Turns(runs=3))
    assert 0.02 <= found["slow"].best <= found["slow"].median <= found["slow"].p95
    assert found["quick"].best < 0.02


def test_statistics_and_units():
    found = timing([3.0, 1.0, 2.0])
    assert (found.best, found.median) == (1.0, 2.0)
    assert found.p95 == pytest.approx(2.9)
    assert Timing(1.0, 2.0, 3.0) * 1e3 == Timing(1e3, 2e3, 3e3)


def test_threads_are_given_back_also_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
