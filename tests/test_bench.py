"""The scoreboard's room: what is kept of a measurement, what is judged, what is shown."""

import json
import re
import time
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from hf_vlr.bench import board
from hf_vlr.bench.contest import Contest, Contestant, Roof, Study
from hf_vlr.bench.goals import Goal
from hf_vlr.bench.machine import hardware, hardware_name, measure_rates
from hf_vlr.bench.memory import peak_mib
from hf_vlr.bench.parity import parity, relative_distance
from hf_vlr.bench.results import keep, read_results, results_path
from hf_vlr.bench.running import run
from hf_vlr.bench.setting import Setting
from hf_vlr.bench.table import COLUMNS, conditions, duration, markdown, table_rows, told
from hf_vlr.cli.main import cli
from hf_vlr.errors import UserError
from hf_vlr.timing import Turns

CPU = torch.device("cpu")


def sleeper(name, seconds, value=1.0, **given):
    def call():
        time.sleep(seconds)
        return {"value": torch.tensor([value, 2.0])}

    return Contestant(name, call, **given)


def enter(setting):
    assert setting["n"] == 3
    return [
        sleeper("ours", 0.006, ours=True, calls_of_whole=10),
        sleeper("ours bf16", 0.003, value=1.1, ours=True, dtype="bfloat16"),
        sleeper("peer", 0.06, items=2),
    ]


TOY = Contest(
    name="toy",
    row=4,
    title="{n} naps",
    sizes={"full": {"n": 3}, "quick": {"n": 3}, "gpu": {"n": 9}},
    enter=enter,
    roof=lambda setting: Roof(flop=1e6),
    goals={
        "cpu": (
            Goal("speed", 1.5, "peer"),
            Goal("speed", 1e6, "peer", ours="ours bf16"),
            Goal("roof", 0.0),
            Goal("seconds", 1e-9),
            Goal("memory", 5, "peer"),
        )
    },
    turns=Turns(runs=3),
)


@pytest.fixture(scope="module")
def record():
    return run(TOY, Setting(CPU, 1, {"n": 3}), with_memory=False)


def test_ratios_are_per_item_and_by_medians(record):
    same, across = record["pairs"]
    times = {one["name"]: one["seconds"]["median"] for one in record["contestants"]}
    assert same["speed"] == pytest.approx(times["peer"] / 2 / times["ours"])
    assert 2 < same["speed"] < 8  # naps of ten times the length, for two items
    assert same["same_dtype"] and not across["same_dtype"]
    assert across["dtypes"] == ["bfloat16", "float32"]
    assert same["memory"] is None


def test_parity_stands_beside_each_ratio(record):
    same, across = record["pairs"]
    assert same["parity"] == {"value": 0.0}
    assert across["parity"]["value"] == pytest.approx(0.05, rel=1e-5)


def test_goals_are_judged(record):
    assert [goal["met"] for goal in record["goals"]] == [True, False, True, False, None]
    assert record["goals"][3]["measured"] == pytest.approx(10 * record["contestants"][0]["seconds"]["median"])


def test_no_goals_at_small_sizes():
    assert run(TOY, Setting(CPU, 1, {"n": 3}, "quick"), with_memory=False)["goals"] == []


def test_a_record_is_plain_json(record):
    assert json.loads(json.dumps(record)) == record
    assert record["title"] == "3 naps"
    assert {"torch", "python", "hf_vlr"} <= set(record["versions"])


def test_sizes_by_device():
    assert TOY.size_for("full", "cpu") == TOY.size_for("quick", "cuda") == {"n": 3}
    assert TOY.size_for("full", "cuda") == {"n": 9}


def test_what_cannot_run_says_why():
    elsewhere = run(replace(TOY, devices=("cuda",)), Setting(CPU, 1, {"n": 3}))
    assert elsewhere["not_run"] == "only on cuda"
    missing = run(replace(TOY, needs=("no_such_package",)), Setting(CPU, 1, {"n": 3}))
    assert "no_such_package not installed" in missing["not_run"]
    assert "[bench]" in missing["not_run"]
    assert any("not run: only on cuda" in line for line in told(elsewhere))


def test_threads_are_those_asked_for():
    def measure(setting):
        return {"lines": [], "numbers": {"threads": torch.get_num_threads()}, "goals": []}

    before = torch.get_num_threads()
    study = Study("study", 0, "a study", {"full": {}}, measure)
    assert run(study, Setting(CPU, 2, {}))["numbers"] == {"threads": 2}
    assert torch.get_num_threads() == before


def test_distances():
    inf = float("inf")
    one = torch.tensor([1.0, 4.0])
    assert relative_distance(one, one) == 0
    assert relative_distance(torch.tensor([1.0, 3.0]), one) == 0.25
    assert relative_distance(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_distance(one, torch.zeros(2)) == inf
    assert relative_distance(one, torch.ones(3)) == inf
    assert relative_distance(torch.tensor([1.0, -inf]), torch.tensor([1.0, -inf])) == 0
    assert relative_distance(torch.tensor([1.0, inf]), torch.tensor([1.0, -inf])) == inf
    assert relative_distance(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0])) == inf
    assert parity({"a": one, "b": one}, {"b": one, "c": one}) == {"b": 0}


def test_rates_of_this_machine():
    rates = measure_rates(CPU, "float32")
    assert rates.flops > 1e8 and rates.bytes > 1e8
    assert rates.seconds(Roof(flop=2 * rates.flops, bytes=rates.bytes)) == 2
    assert rates.seconds(Roof(flop=rates.flops, bytes=3 * rates.bytes)) == 3


@pytest.mark.parametrize(
    ("chip", "device", "name"),
    [
        ("AMD EPYC 9B45 64-Core Processor", "cpu", "amd-epyc-9b45-64-core-2-cores"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "cpu", "intel-xeon-2-cores"),
        ("NVIDIA H200", "cuda", "nvidia-h200"),
    ],
)
def test_files_are_named_by_hardware(chip, device, name):
    assert hardware_name({"chip": chip, "device": device, "cores": 2}) == name


def test_lines_replace_their_own_earlier_ones_only(tmp_path, record):
    found = hardware(CPU)
    path = results_path(tmp_path / "new", found)
    keep(path, found, record | {"name": "b", "row": 2, "note": "first"})
    keep(path, found, record | {"name": "a", "row": 9})
    keep(path, found, record | {"name": "b", "row": 2, "note": "second"})
    lines = read_results(path)["lines"]
    assert list(lines) == ["b", "a"]
    assert lines["b"]["note"] == "second"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 99}', "{"])
def test_other_files_are_refused_and_kept(tmp_path, record, text):
    path = results_path(tmp_path, hardware(CPU))
    path.write_text(text)
    with pytest.raises(UserError, match="hf-vlr bench"):
        keep(path, hardware(CPU), record)
    assert path.read_text() == text


def test_the_table_shows_each_pair_once(record):
    rows = table_rows(record)
    assert len(rows) == 2 and all(len(row) == len(COLUMNS) for row in rows)
    assert rows[0][:3] == ("4", "3 naps", "peer")
    assert rows[1][:3] == ("", "", "peer (ours bf16)")
    faster, across = COLUMNS.index("faster"), COLUMNS.index("across dtypes")
    assert rows[0][faster].endswith("×") and not rows[0][across]
    assert not rows[1][faster] and rows[1][across].endswith("(bf16 : fp32)")
    assert "≥ 1.5×: met" in rows[0][-1] and "≤ 1e-09 s: 0.0" in rows[0][-1] and "not measured" in rows[0][-1]
    assert rows[1][-1] == "≥ 1e+06×: missed"


def test_the_markdown_is_a_table(record):
    lines = markdown([record, record | {"not_run": "no such device"}]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[-1].count("not run") == 2 and lines[0].endswith("| H200 |")
    on_cuda = markdown([record], "cuda").splitlines()
    assert on_cuda[0].endswith("| goal |") and "not run" not in on_cuda[-1]
    said = conditions({"hardware": hardware(CPU), "lines": {"toy": record}})
    assert "1 threads" not in said and "1 thread," in said and "seed 0" in said and "torch " in said


@pytest.mark.parametrize(
    ("seconds", "words"), [(2.345, "2.35 s"), (0.0123, "12.3 ms"), (4.5e-6, "4.5 µs"), (3e-9, "3 ns")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_names_of_lines_are_unique_and_known():
    names = [entry.name for entry in board.BOARD]
    assert len(names) == len(set(names))
    assert [entry.row for entry in board.BOARD if entry.row] == sorted(entry.row for entry in board.BOARD if entry.row)
    assert board.entry_named(names[0]) is board.BOARD[0]
    with pytest.raises(UserError, match=f"did you mean {names[0]}"):
        board.entry_named(names[0] + "x")


def test_the_help_names_lines_that_there_are():
    said = cli.get_command(None, "bench").help.splitlines()
    shown = [line.split() for line in said if line.strip().startswith("hf-vlr bench ")]
    names = [word for words in shown for word in words[2:] if re.fullmatch(r"[a-z]+(-[a-z]+)+", word)]
    assert len(names) >= 2
    for name in names:
        assert board.entry_named(name)


def test_titles_and_sizes_of_all_lines():
    for entry in board.BOARD:
        assert {"full", "quick"} <= set(entry.sizes)
        for scale in ("full", "quick"):
            for device in ("cpu", "cuda"):
                assert "{" not in entry.title.format(**entry.size_for(scale, device))


def call(*words):
    return CliRunner().invoke(cli, ["bench", *map(str, words)], catch_exceptions=True)


def test_the_command_lists_and_refuses():
    listing = call("--list")
    assert all(entry.name in listing.output for entry in board.BOARD)
    assert isinstance(call("nonsense").exception, UserError)
    assert isinstance(call("--table", "absent.json").exception, UserError)
    if not torch.cuda.is_available():
        assert isinstance(call("--device", "cuda").exception, UserError)


def test_the_command_measures_writes_and_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(board, "BOARD", (TOY,))
    done = call("toy", "--out", tmp_path, "--quick", "--no-memory", "--threads", 1)
    assert done.exit_code == 0, done.output
    assert "ours against peer" in done.output
    table = call("--table", results_path(tmp_path, hardware(CPU), "quick"))
    assert "quick sizes" in table.output
    assert "| 4 | 3 naps | peer |" in table.output


@pytest.mark.slow
def test_peak_memory_is_that_of_one_call():
    contest = board.contest_named("contrast-pairs")
    setting = Setting(CPU, 1, {"pairs": 2048, "texts": 2048, "width": 256}, "quick")
    ours, peer = (peak_mib(contest, one, setting) for one in contest.enter(setting)[:2])
    # the peer keeps two matrices of logits of 16 MiB and what their softmax needs; features take 2 MiB each
    assert peer > 2 * 16
    assert 0 < ours < peer


def test_a_study_states_its_goals_once():
    goals = [{"text": "a", "met": True}, {"text": "b", "met": True}]
    study = {"row": 13, "name": "s", "title": "slopes", "note": "", "lines": ["one", "two"], "goals": goals}
    assert [row[1] + row[3] + row[-1] for row in table_rows(study)] == ["slopesoneall 2 met", "two"]
    study["goals"] = [goals[0], {"text": "b", "met": False}]
    assert table_rows(study)[0][-1] == "b: missed"
    study["goals"] = goals[:1]
    assert table_rows(study)[0][-1] == "met"
    study["goals"] = []
    assert table_rows(study)[0][-1] == ""


def test_ratios_across_dtypes_without_a_goal_stay_in_the_file(record):
    quiet = record | {"goals": []}
    assert [row[2] for row in table_rows(quiet)] == ["peer"]
