"""Measuring one line of the scoreboard: a contest or a study to a record of plain numbers and words."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from hf_vlr.bench.contest import Contest, Contestant, Study
from hf_vlr.bench.goals import Goal
from hf_vlr.bench.machine import measure_rates
from hf_vlr.bench.memory import peak_mib
from hf_vlr.bench.parity import parity
from hf_vlr.bench.setting import Setting
from hf_vlr.evaluation.versions import versions
from hf_vlr.timing import Timing, in_turns, torch_threads

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "open_clip_torch",
    "onnxruntime",
    "triton",
    "numpy",
    "pillow",
)

Record = dict[str, Any]


def run(entry: Contest | Study, setting: Setting, *, with_memory: bool = True) -> Record:
    """The record of a line: what was measured, under which conditions, and which goals are met.

    A line whose device or package is not there has `not_run`, the reason, instead of numbers.
    """
    record: Record = {
        "name": entry.name,
        "row": entry.row,
        "title": entry.title.format(**setting.size),
        "note": entry.note,
        "scale": setting.scale,
        "size": dict(setting.size),
        "threads": setting.threads,
        "seed": setting.seed,
        "versions": versions(PACKAGES),
    }
    reason = why_not(entry, setting)
    if reason:
        return record | {"not_run": reason}
    with torch_threads(setting.threads):
        if isinstance(entry, Study):
            return record | entry.measure(setting)
        return record | _contest(entry, setting, with_memory)


def why_not(entry: Contest | Study, setting: Setting) -> str:
    """Why a line cannot be measured here, "" if it can."""
    if setting.device.type not in entry.devices:
        return f"only on {' and '.join(entry.devices)}"
    missing = [name for name in entry.needs if find_spec(name) is None]
    return f"{', '.join(missing)} not installed: install the extra [bench]" if missing else ""


def _contest(contest: Contest, setting: Setting, with_memory: bool) -> Record:
    contestants = list(contest.enter(setting))
    timings = in_turns({one.name: one.call for one in contestants}, contest.turns)
    memory = {
        one.name: peak_mib(contest, one, setting) if with_memory and one.measures_memory else None
        for one in contestants
    }
    found: Record = {
        "turns": asdict(contest.turns),
        "contestants": [_row(one, timings[one.name], memory[one.name]) for one in contestants],
        "pairs": _pairs(contestants, timings, memory),
    }
    if contest.roof is not None:
        found["roof"] = _roof(contest, setting, contestants, timings)
    goals = contest.goals.get(setting.device.type, ()) if setting.scale == "full" else ()
    found["goals"] = [_judged(goal, found) for goal in goals]
    return found


def _row(one: Contestant, timing: Timing, memory: float | None) -> Record:
    return {
        "name": one.name,
        "ours": one.ours,
        "dtype": one.dtype,
        "seconds": asdict(timing),
        "items": one.items,
        "whole_seconds": timing.median * one.calls_of_whole,
        "peak_mib": memory,
    }


def _pairs(
    contestants: Sequence[Contestant], timings: dict[str, Timing], memory: dict[str, float | None]
) -> list[Record]:
    """Each of ours against each peer: times as fast by medians and by the best of all, times less memory, parity."""
    answers = {one.name: one.call() for one in contestants}
    pairs = []
    for ours in (one for one in contestants if one.ours):
        for peer in (one for one in contestants if not one.ours):
            per_item = [timings[one.name] * (1 / one.items) for one in (ours, peer)]
            taken = memory[ours.name], memory[peer.name]
            pairs.append(
                {
                    "ours": ours.name,
                    "peer": peer.name,
                    "same_dtype": ours.dtype == peer.dtype,
                    "dtypes": [ours.dtype, peer.dtype],
                    "speed": per_item[1].median / per_item[0].median,
                    "speed_of_best": per_item[1].best / per_item[0].best,
                    "memory": None if None in taken else taken[1] / max(taken[0], 1e-3),
                    "parity": parity(answers[ours.name], answers[peer.name]),
                }
            )
    return pairs


def _roof(contest: Contest, setting: Setting, contestants: Sequence[Contestant], timings: dict[str, Timing]) -> Record:
    """The machine's rates, and the share of them that the best run of our first contestant reaches."""
    ours, roof = contestants[0], contest.roof(setting)
    rates = measure_rates(setting.device, roof.dtype)
    return {
        "ours": ours.name,
        "seconds": rates.seconds(roof),
        "share": rates.seconds(roof) / timings[ours.name].best,
        "limit": "product of matrices" if roof.flop / rates.flops >= roof.bytes / rates.bytes else "reading of memory",
        "dtype": roof.dtype,
        "gflops": rates.flops / 1e9,
        "gbytes": rates.bytes / 1e9,
    }


def _judged(goal: Goal, found: Record) -> Record:
    ours = goal.ours or found["contestants"][0]["name"]
    if goal.kind == "roof":
        measured = found["roof"]["share"]
    elif goal.kind == "seconds":
        measured = next(one["whole_seconds"] for one in found["contestants"] if one["name"] == ours)
    else:
        pair = next(pair for pair in found["pairs"] if (pair["ours"], pair["peer"]) == (ours, goal.peer))
        measured = pair["speed" if goal.kind == "speed" else "memory"]
    met = None if measured is None else goal.met(measured)
    return {"text": goal.text(), "kind": goal.kind, "ours": ours, "peer": goal.peer, "measured": measured, "met": met}
