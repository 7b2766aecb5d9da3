"""How costs grow: slopes of known laws, formulas that count what is computed, and shares that add up."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_vlr.bench.contests import growth
from hf_vlr.bench.setting import Setting

CPU = torch.device("cpu")


def setting(**changes):
    return Setting(CPU, 1, {**growth.GROWTH.size_for("quick", "cpu"), **changes}, "quick")


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("power", [-1.0, 0.0, 1.0, 2.0])
def test_a_power_law_has_its_power_as_slope(power):
    values = [3, 6, 12, 24]
    assert growth.slope(values, [0.7 * value**power for value in values]) == pytest.approx(power, abs=1e-12)


def test_a_fixed_cost_lowers_the_slope():
    values = [100, 200, 400]
    assert growth.slope(values, [value + 50 for value in values]) < 1.0


@pytest.mark.parametrize(("pairs", "texts", "width"), [(24, 24, 8), (40, 10, 16)])
def test_the_formula_counts_the_contrast(pairs, texts, width):
    found = counted(growth.contrast_step(CPU, pairs, texts, width))
    assert found == growth.contrast_flop(pairs, texts, width)


@pytest.mark.parametrize("sizes", [(9, 5, 3, 16), (16, 7, 4, 8)])
def test_the_formula_counts_the_head(sizes):
    assert counted(growth.head_step(CPU, *sizes)) == growth.head_flop(*sizes)


def test_what_grows_is_each_number_in_turn():
    found = {(one.what.split()[0], one.letter): one for one in growth.growths(setting())}
    assert set(found) == {("contrast", "N"), ("recognition", "C"), ("recognition", "M"), ("recognition", "B")}
    for one in growth.growths(setting()):
        assert list(one.values) == [one.values[0] * step for step in growth.STEPS]
        if one.letter in "MB":
            assert counted(one.work(one.values[-1])) == one.flop(one.values[-1])
    slopes = [growth.slope(one.values, [one.flop(value) for value in one.values]) for one in growth.growths(setting())]
    assert slopes[:2] == pytest.approx([2.0, 1.0])
    assert max(slopes[2:]) < 2.0


def test_a_measurement_has_seconds_of_every_size():
    (one, *_) = growth.growths(setting())
    found = growth.measured(one, runs=2)
    assert found["values"] == [64, 128, 256] and len(found["seconds"]) == 3
    assert all(seconds > 0 for seconds in found["seconds"])
    assert found["formula"] == pytest.approx(2.0) and math.isfinite(found["slope"])


def test_the_largest_noise_that_is_tolerated():
    assert growth._goal("x", 1.09, 1.0, growth.TOLERANCE)["met"]
    assert not growth._goal("x", 1.11, 1.0, growth.TOLERANCE)["met"]


@pytest.mark.slow
def test_processes_share_the_operations_of_one():
    found = growth.GROWTH.measure(replace(setting(), scale="full"))
    shared = found["numbers"]["sharded contrast by R"]
    assert shared["values"] == [1, 2]
    assert shared["gflop"][0] * 1e9 == counted(growth.contrast_step(CPU, 64, 64, 16))
    assert shared["gflop"][1] == pytest.approx(shared["gflop"][0] / 2)
    assert shared["slope"] == pytest.approx(-1.0)
    assert found["goals"][-1]["met"] and all(seconds > 0 for seconds in shared["seconds"])
    assert len(found["lines"]) == len(found["numbers"]) == len(found["goals"]) == 6
