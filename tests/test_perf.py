"""Ratios of speed at small sizes, with wide margins: whether a fast path has become slow. Run with `-m perf`."""

import os
from importlib.util import find_spec

import pytest
import torch

from hf_vlr.bench.board import BOARD
from hf_vlr.bench.contest import Contest
from hf_vlr.bench.running import run
from hf_vlr.bench.setting import Setting

CONTESTS = [entry for entry in BOARD if isinstance(entry, Contest) and entry.floors and "cpu" in entry.devices]
# products of the contrast take another way where there is more than one thread
TURNS = [(contest, 1) for contest in CONTESTS] + [(contest, 2) for contest in CONTESTS if contest.row in (1, 2)]


@pytest.mark.perf
@pytest.mark.parametrize(("contest", "threads"), TURNS, ids=lambda one: getattr(one, "name", one))
def test_no_fast_path_has_become_slow(contest, threads):
    if threads > len(os.sched_getaffinity(0)):
        pytest.skip(f"fewer than {threads} cores")
    missing = [name for name in contest.needs if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    cpu = torch.device("cpu")
    record = run(contest, Setting(cpu, threads, contest.size_for("quick", "cpu"), "quick"), with_memory=False)
    ours = record["contestants"][0]["name"]
    found = {pair["peer"]: pair for pair in record["pairs"] if pair["ours"] == ours}
    for peer, floor in contest.floors.items():
        speed = found[peer]["speed"]
        print(f"{contest.name} against {peer} on {threads}: {speed:.3g} times as fast (floor {floor})")
        assert speed >= floor


def test_most_contests_have_floors():
    assert {contest.row for contest in CONTESTS} >= {1, 2, 3, 4, 5, 6, 7, 8}


def test_floors_name_peers():
    for contest in CONTESTS:
        assert all(floor > 0 for floor in contest.floors.values())
        hoped_for = {goal.peer for goal in contest.goals.get("cpu", ()) if goal.kind == "speed"}
        assert not hoped_for or hoped_for & set(contest.floors)
