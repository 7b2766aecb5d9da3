"""A run that a signal stops has saved, says so in one line, and goes on as if nothing had happened."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from hf_vlr.cli.main import main
from hf_vlr.errors import Stopped
from hf_vlr.training import stop
from hf_vlr.training.checkpoints import last_checkpoint
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import override_recipe, recipe_to_yaml
from hf_vlr.training.stop import StopSignal

TINY = (
    "data.options={classes: 8, unseen: 2, max_count: 8, imbalance: 2, size: 16, validation: 1, test: 1}",
    "data.texts=templates",
    "data.image_size=16",
    "data.max_text_length=16",
    "vision=scratch:vit",
    "model.projection_dim=16",
    "model.num_anchors=4",
    "train.batch_size=12",
    "train.steps=10",
    "train.save_every=4",
    "train.log_every=2",
)


def write_recipe(path: Path, *words: str) -> str:
    path.write_text(recipe_to_yaml(override_recipe(Recipe(task="unicl"), [*TINY, *words])))
    return str(path)


def bits(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "words", "what", "code", "step"),
    [
        (1, (), "SIGTERM", 143, 5),
        # a scheduler signals everyone, those that load data and those that a launcher signals once more
        (1, ("data.workers=2",), "group SIGTERM", 143, 5),
        # the second process has not been asked: they agree at the next logged step
        (2, (), "SIGUSR1", 138, 6),
    ],
)
def test_a_stopped_run_has_saved_and_goes_on(processes, words, what, code, step, children, tmp_path):
    recipe = write_recipe(tmp_path / "mine.yaml", *words)
    run = ("train", recipe, "--out", str(tmp_path / "run"))
    codes, said = children(*run, processes=processes, at=("batch", 5, what))
    assert codes == [code] * processes, said
    name = what.rpartition(" ")[2]
    # one line, by one process, and no traceback
    line = f"stopped by {name} after step {step}, which is saved; go on with --resume"
    assert re.findall(r"^.*(?:stopped by|Traceback|error).*$", said, re.M) == [line]
    assert last_checkpoint(tmp_path / "run" / "checkpoints").name == f"step-{step:08d}.pt"
    assert not [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if "partial" in path.name]
    codes, said = children(*run, "--resume", processes=processes)
    assert codes == [0] * processes, said
    assert children("train", recipe, "--out", str(tmp_path / "whole"), processes=processes)[0] == codes
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


def test_the_command_line_exits_as_shells_have_it_for_a_signal(tmp_path, monkeypatch, capsys):
    def stopped(*arguments):
        raise Stopped(signal.SIGUSR1, 7)

    monkeypatch.setattr("hf_vlr.training.run.train_recipe", stopped)
    with pytest.raises(SystemExit) as caught:
        main(["train", write_recipe(tmp_path / "mine.yaml")])
    assert caught.value.code == 128 + signal.SIGUSR1
    assert capsys.readouterr().err == "stopped by SIGUSR1 after step 7, which is saved; go on with --resume\n"


def test_a_signal_is_noted_and_a_later_one_acts_as_before(monkeypatch):
    former, heard = signal.getsignal(signal.SIGUSR1), []
    signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with StopSignal() as asked:
            assert asked.number == 0
            for _ in range(3):  # launchers pass signals on: one request may come more than once
                os.kill(os.getpid(), signal.SIGUSR1)
            assert (asked.number, heard) == (signal.SIGUSR1, [])
            monkeypatch.setattr(stop, "ECHO", 0.01)
            time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert heard == [signal.SIGUSR1]
        os.kill(os.getpid(), signal.SIGUSR1)
        assert len(heard) == 2
    finally:
        signal.signal(signal.SIGUSR1, former)


def test_a_scheduler_may_warn_long_before_it_asks(monkeypatch):
    monkeypatch.setattr(stop, "ECHO", 0.01)
    with StopSignal() as asked:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)  # would end this process
        assert asked.number == signal.SIGUSR1
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_thread_leaves_the_handlers_alone():
    found = []

    def enter() -> None:
        with StopSignal() as asked:
            found.append(asked.number)

    before = [signal.getsignal(number) for number in stop.SIGNALS]
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [0]
    assert [signal.getsignal(number) for number in stop.SIGNALS] == before
