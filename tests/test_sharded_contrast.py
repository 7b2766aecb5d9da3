"""Any number of processes gives the loss and the gradients of one, at its share of the work."""

import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

SPEC = importlib.util.spec_from_file_location("sharded_worlds", Path(__file__).with_name("sharded_worlds.py"))
worlds_module = sys.modules[SPEC.name] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(worlds_module)
CASES, LOSSES, PAIRS, TEXTS, WIDTH, WORLDS = (
    getattr(worlds_module, name) for name in ("CASES", "LOSSES", "PAIRS", "TEXTS", "WIDTH", "WORLDS")
)
Case, Towers, global_batch, results_of = (
    getattr(worlds_module, name) for name in ("Case", "Towers", "global_batch", "results_of")
)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Tensor]]]:
    """The results of every process of every world."""
    folder = tmp_path_factory.mktemp("worlds")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, worlds_module.__file__, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {world: [load_file(folder / f"{world}-{rank}.safetensors") for rank in range(world)] for world in WORLDS}


@cache
def one_process(case: Case) -> dict[str, Tensor]:
    return results_of(case, global_batch(case), Towers(case), False)


def joined(processes: list[dict[str, Tensor]], case: Case) -> dict[str, Tensor]:
    """One batch again: rows stacked, texts summed, and what all share from the first process."""
    found = [{key: one[f"{case.name}/{key}"] for key in one_process(case)} for one in processes]
    stacked = {"images": torch.cat([one["images"] for one in found]), "texts": sum(one["texts"] for one in found)}
    return found[0] | stacked


def apart(found: Tensor, expected: Tensor) -> float:
    difference = (found.double() - expected.double()).norm()
    return (difference / expected.double().norm().clamp_min(1e-9)).item()


def tolerance(case: Case, key: str) -> float:
    if case.autocast and key != "loss":
        return torch.finfo(torch.bfloat16).eps  # to which the gradients of features are rounded
    return 1e-12 if case.dtype == torch.float64 else 1e-6


def named(condition: Callable[[Case], bool]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [case for case in CASES if condition(case)], ids=lambda case: case.name)


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@named(lambda case: case.tau < 100 or case.dtype == torch.float64)
def test_all_processes_together_are_one(case: Case, world: int, worlds: dict) -> None:
    expected, found = one_process(case), joined(worlds[world], case)
    for key, truth in expected.items():
        assert apart(found[key], truth) <= tolerance(case, key), key


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@named(lambda case: case.tau == 100 and case.vectors != "minus_one" and case.dtype == torch.float32)
def test_safe_at_scale_one_hundred(case: Case, world: int, worlds: dict) -> None:
    """Columns that are 200 nats apart on two processes, or all near -100: as good as one process in float32."""
    expected, found = one_process(replace(case, dtype=torch.float64)), joined(worlds[world], case)
    for key in ("loss", "images", "texts"):
        assert apart(found[key], expected[key]) <= 1e-5, key


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@named(lambda case: case.vectors == "minus_one")
def test_all_cosines_minus_one(case: Case, world: int, worlds: dict) -> None:
    found = joined(worlds[world], case)
    assert found["loss"].item() == pytest.approx(math.log(PAIRS), rel=1e-5)
    for key in ("images", "texts"):
        torch.testing.assert_close(found[key], torch.zeros_like(found[key]), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS[1:])
def test_every_process_has_the_same_value_and_gradients(world: int, worlds: dict) -> None:
    first, *others = worlds[world]
    shared = [key for key in first if key.partition("/")[2].startswith(("loss", "parameter"))]
    assert len(shared) == len(CASES) * (1 + len(list(Towers(Case()).parameters())))
    assert [key for key in shared for one in others if not torch.equal(one[key], first[key])] == []


@pytest.mark.slow
def test_a_process_does_its_share(worlds: dict) -> None:
    """Collectives and bytes as documented, and half of the operations on each of two processes."""
    world, width = 2, worlds_module.MEASURED_WIDTH
    integers = {"contrast": 2, "distillation": 1, "both": 2, "sigmoid": 2, "supcon": 2}
    sums = {"contrast": (1, 8), "distillation": (2, 8), "both": (2, 16), "sigmoid": (0, 4), "supcon": (0, 4)}
    collectives = {"contrast": 6, "distillation": 7, "both": 7, "sigmoid": 4, "supcon": 4}
    measured = {name: worlds[world][0][f"measured/{name}"].tolist() for name in (*LOSSES, "gather_both")}
    for name in LOSSES:
        pairs = worlds_module.MEASURED.get(name, 256)
        texts, (columns, value) = 4 * pairs * width, sums[name]
        teacher = texts if name in ("distillation", "both") else 0
        came = 40 * world + 8 * pairs * integers[name] + texts + teacher + 2 * 8 * pairs * columns + value
        assert measured[name][:4] == [collectives[name], 1, came, texts], name
    assert measured["contrast"][4] == measured["gather_both"][4] / world
    print(f"\nforward and backward, 2048 pairs of width {width}, {world} processes:")
    for name in ("gather_both", "contrast"):
        forward, backward, came_forward, came_backward, operations, seconds = measured[name]
        print(
            f"{name:12} {1e3 * seconds:5.0f} ms, {operations / 1e9:.1f} GFLOP counted a process, {forward:.0f}+"
            f"{backward:.0f} collectives, {came_forward / 2**20:.2f}+{came_backward / 2**20:.2f} MiB"
        )


def test_a_single_process_calls_the_plain_functions() -> None:
    case = Case(dtype=torch.float64)
    for loss in LOSSES:
        case = replace(case, loss=loss)
        found = results_of(case, global_batch(case), Towers(case), True)
        for key, truth in one_process(case).items():
            if loss == "both":
                torch.testing.assert_close(found[key], truth)
            else:
                assert torch.equal(found[key], truth), (loss, key)


def test_both_losses_take_the_similarities_once() -> None:
    counts = {}
    for loss in ("contrast", "distillation", "both"):
        case = Case(loss)
        with FlopCounterMode(display=False) as counter:
            results_of(case, global_batch(case), Towers(case), True)
        counts[loss] = counter.get_total_flops()
    assert counts["both"] < counts["contrast"] + counts["distillation"] - 2 * 2 * PAIRS * TEXTS * WIDTH
