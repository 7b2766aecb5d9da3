"""Measuring one line of the scoreboard: a contest or a study to a record of plain numbers and words."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from hf_vlr.bench.contest import Answers, Contest, Contestant, Roof, Study
from hf_vlr.bench.goals import Goal
from hf_vlr.bench.machine import Rates, measure_rates
from hf_vlr.bench.memory import peak_mib
from hf_vlr.bench.parity import parity
from hf_vlr.bench.setting import Setting
from hf_vlr.errors import UserError
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
    return f"{', '.join(missing)} not installed: install the extra [{entry.extra}]" if missing else ""


def _contest(contest: Contest, setting: Setting, with_memory: bool) -> Record:
    contestants = list(contest.enter(setting))
    answers = {one.name: one.call() for one in contestants}
    before = _rates(contest, setting)
    timings = in_turns({one.name: one.call for one in contestants}, contest.turns)
    measured = [one for one in contestants if with_memory and one.measures_memory]
    memory, trouble = _peaks(contest, measured, setting)
    found: Record = {
        "item": contest.item,
        "turns": asdict(contest.turns),
        "contestants": [_row(one, timings[one.name], memory.get(one.name)) for one in contestants],
        "pairs": _pairs(contestants, answers, timings, memory),
    }
    if trouble:
        found["trouble"] = trouble
    if contest.roof is not None:
        found["roof"] = _roof(contest.roof(setting), [*before, *_rates(contest, setting)], contestants[0], timings)
    goals = contest.goals.get(setting.device.type, ()) if setting.scale == "full" else ()
    found["goals"] = [_judged(goal, found) for goal in goals]
    return found


def _peaks(
    contest: Contest, contestants: Sequence[Contestant], setting: Setting
) -> tuple[dict[str, float | None], list[str]]:
    """MiB by name, and why some are missing: a process of its own may fail where this one did not."""
    memory: dict[str, float | None] = {}
    trouble = []
    for one in contestants:
        try:
            found = peak_mib(contest, one, setting)
            memory[one.name] = None if found is None else found + one.kept_bytes / 2**20
        except UserError as error:
            trouble.append(str(error))
    return memory, trouble


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
    contestants: Sequence[Contestant],
    answers: Mapping[str, Answers],
    timings: dict[str, Timing],
    memory: dict[str, float | None],
) -> list[Record]:
    """Each of ours against each peer: times as fast by medians and by the best of all, times less memory, parity."""
    pairs = []
    for ours in (one for one in contestants if one.ours):
        for peer in (one for one in contestants if not one.ours):
            per_item = [timings[one.name] * (1 / one.items) for one in (ours, peer)]
            taken = memory.get(ours.name), memory.get(peer.name)
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


def _rates(contest: Contest, setting: Setting) -> list[Rates]:
    """What the machine can do now; it is asked before and after the contest, and its better answer counts."""
    return [] if contest.roof is None else [measure_rates(setting.device, contest.roof(setting).dtype)]


def _roof(roof: Roof, rates: Sequence[Rates], ours: Contestant, timings: dict[str, Timing]) -> Record:
    """The machine's rates, and the share of them that the median run of our first contestant reaches."""
    best = Rates(max(one.flops for one in rates), max(one.bytes for one in rates))
    return {
        "ours": ours.name,
        "seconds": best.seconds(roof),
        "share": best.seconds(roof) / timings[ours.name].median,
        "limit": "product of matrices" if roof.flop / best.flops >= roof.bytes / best.bytes else "reading of memory",
        "dtype": roof.dtype,
        "gflops": best.flops / 1e9,
        "gbytes": best.bytes / 1e9,
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
