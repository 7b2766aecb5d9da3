"""Measuring several lines: nothing measured is lost, and a sitting that ends takes its processes with it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from hf_vlr.bench.contest import Study
from hf_vlr.bench.machine import hardware
from hf_vlr.bench.results import keep, read_results, results_path
from hf_vlr.bench.sitting import alone, measure_lines
from hf_vlr.bench.table import conditions, document
from hf_vlr.cli.main import cli
from hf_vlr.errors import UserError

CPU = torch.device("cpu")
RECORD = {"row": 1, "title": "t", "threads": 1, "seed": 0, "versions": {}, "note": "", "scale": "full", "goals": []}


def line(name, measure=lambda setting: {"lines": ["measured"], "numbers": {}, "goals": []}, **given):
    return Study(name, 1, name, {"full": {}, "quick": {}}, measure, **given)


def failing(setting):
    raise RuntimeError("no memory left\nand more")


def measured(out, *entries, **given):
    said = []
    path = measure_lines(entries, out, said.append, device=CPU, **given)
    return path, said


def test_a_line_that_fails_does_not_end_the_sitting(tmp_path):
    said = []
    with pytest.raises(UserError, match="reasons above: bad; the other lines are in"):
        measure_lines([line("bad", failing), line("good")], tmp_path, said.append, device=CPU)
    assert "bad: failed (RuntimeError: no memory left)" in said[0] and "   measured" in said
    assert set(read_results(results_path(tmp_path, hardware(CPU)))["lines"]) == {"good"}
    assert len(list(tmp_path.iterdir())) == 1


def test_small_sizes_do_not_replace_full_ones(tmp_path):
    full, _ = measured(tmp_path, line("a"))
    quick, _ = measured(tmp_path, line("a"), scale="quick")
    assert full != quick and full.exists() and quick.exists()


def test_what_was_measured_is_not_replaced_by_what_was_not(tmp_path):
    path, _ = measured(tmp_path, line("a"))
    before = path.read_text()
    _, said = measured(tmp_path, line("a", needs=("no_such_package",), extra="some"))
    assert path.read_text() == before
    assert "not run: no_such_package not installed: install the extra [some]" in said[1] and "keeps" in said[-1]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": 1}', '{"schema": 1, "hardware": {}, "lines": {"a": {}}}', '{"schema": 99}']
)
def test_a_file_of_something_else_is_refused_before_anything_is_measured(tmp_path, text):
    path = results_path(tmp_path, hardware(CPU))
    path.write_text(text)
    with pytest.raises(UserError, match="move it away"):
        measured(tmp_path, line("a", lambda setting: pytest.fail("measured")))
    assert path.read_text() == text


def test_another_machine_of_the_same_name_is_refused(tmp_path):
    path, _ = measured(tmp_path, line("a"))
    results = json.loads(path.read_text())
    results["hardware"]["generation"] = "family 1, model 1"
    path.write_text(json.dumps(results))
    with pytest.raises(UserError, match=r"another machine.*family 1"):
        measured(tmp_path, line("b"))
    del results["hardware"]["generation"]  # as earlier versions wrote it
    path.write_text(json.dumps(results))
    measured(tmp_path, line("b"))


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_folder_that_cannot_be_is_refused_at_once(tmp_path, out):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        measured(tmp_path / out, line("a", lambda setting: pytest.fail("measured")))


def test_more_threads_than_cores_are_refused(tmp_path):
    with pytest.raises(UserError, match=f"this machine has {hardware(CPU)['cores']} cores"):
        measured(tmp_path, line("a"), threads=999)


def test_one_sitting_at_a_time(tmp_path):
    path = results_path(tmp_path, hardware(CPU))
    code = (
        "import time; from pathlib import Path; from hf_vlr.bench.sitting import alone\n"
        f"with alone(Path({str(path)!r})): print('in', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(UserError, match="another hf-vlr bench"):
            measured(tmp_path, line("a"))
        other.kill()
    # a lock ends with its process, however that ended
    measured(tmp_path, line("a"))
    with alone(path):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("processes", [3, 4])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.skipif(shutil.which("ps") is None, reason="ps is not installed")
def test_a_sitting_that_is_ended_leaves_no_process(tmp_path, number, processes):
    command = [sys.executable, "-m", "hf_vlr", "bench", "growth", "--quick", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as sitting:
        deadline = time.monotonic() + 120
        while len(_group(sitting.pid)) < processes:
            assert sitting.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(sitting.pid, number)
        assert sitting.wait(60) == (143 if number == signal.SIGTERM else -9)
        deadline = time.monotonic() + 60
        while _group(sitting.pid):
            assert time.monotonic() < deadline, _group(sitting.pid)
            time.sleep(0.2)


def _group(leader):
    """The living processes of a group."""
    listed = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    found = [words.split() for words in listed.splitlines()]
    return [int(pid) for pid, group, state in found if int(group) == leader and not state.startswith("Z")]


def test_tables_and_lists_of_some_lines(tmp_path):
    path = results_path(tmp_path, hardware(CPU))
    for name in ("images", "growth"):
        keep(path, hardware(CPU), {**RECORD, "name": name, "title": f"what {name} is", "lines": ["found"]})

    def call(*words):
        return CliRunner().invoke(cli, ["bench", *map(str, words)])

    both, one = call("--table", path), call("images", "--table", path)
    assert "what growth is" in both.output and "what growth is" not in one.output and "what images is" in one.output
    assert isinstance(call("answer", "--table", path).exception, UserError)
    assert isinstance(call("--list", "--table", path).exception, UserError)
    assert len(call("images", "--list").output.splitlines()) == 1


def test_lines_of_one_note_share_it(tmp_path):
    path = results_path(tmp_path, hardware(CPU))
    for name, note in {"a": "why", "b": "", "c": "why"}.items():
        keep(path, hardware(CPU), {**RECORD, "name": name, "lines": ["found"], "note": note})
    assert document(read_results(path)).endswith("\n- a, c: why")


def test_lines_of_other_conditions_are_named(tmp_path):
    path = results_path(tmp_path, hardware(CPU))
    for name, changed in {"a": {}, "b": {}, "c": {"threads": 2}, "d": {"scale": "quick"}}.items():
        keep(path, hardware(CPU), {**RECORD, "name": name, "lines": ["found"], **changed})
    results = read_results(path)
    said = conditions(results)
    assert "1 thread, seed 0;" in said and "c: 2 threads, seed 0." in said and "a:" not in said
    assert "d: 1 thread, seed 0, quick sizes" in said
    nothing = conditions({**results, "lines": {"e": {**RECORD, "not_run": "why"}}})
    assert nothing.count(";") == 0 and nothing.endswith("cores.")


def test_a_line_can_be_replaced_by_itself(tmp_path):
    entry = line("a")
    measured(tmp_path, entry)
    path, _ = measured(tmp_path, replace(entry, title="another"))
    assert read_results(path)["lines"]["a"]["title"] == "another"
