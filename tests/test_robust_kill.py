"""Runs that are killed, by `kill -9` of real processes, and resumed end with the bits of one that was let alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_vlr.training.checkpoints import last_checkpoint
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import override_recipe, recipe_to_yaml

TINY = (
    # 43 images: an epoch has 3 batches of 12 and one of 7
    "data.options={classes: 8, unseen: 2, max_count: 8, imbalance: 2, size: 16, validation: 1, test: 1}",
    "data.texts=templates",
    "data.image_size=16",
    "data.max_text_length=16",
    "vision=scratch:vit",
    "model.projection_dim=16",
    "model.num_anchors=4",
    "train.batch_size=12",
    "train.steps=10",
    "train.save_every=3",
    # not with each checkpoint: what has been added up since the last line is part of one
    "train.log_every=2",
    "train.validate_every=4",
)
VARIANTS = {
    "plain": (),
    "micro-batches": ("train.micro_batch=4",),
    "workers": ("data.workers=2",),
    "states": ("task=recognition", "model.freeze=vision_model,text_model", "data.cache_views=2"),
}
# where each is killed: at a batch, in the middle of a checkpoint, at the evaluation, or after some time
KILLED = {
    (1, "plain"): ("save", 2),
    (1, "micro-batches"): ("batch", 8),
    (1, "workers"): 0.1,
    (1, "states"): ("measurement", 1),
    (2, "plain"): 0.05,
    (2, "micro-batches"): ("save", 3),
    (2, "workers"): ("batch", 8),
    (2, "states"): ("batch", 5),
}
# what a log line says of the machine, not of the run
MEASURED = ("seconds", "rows_per_second", "peak_memory_mib")
# 56 in all
KILLS_OF_A_CASE = 7


def write_recipe(path: Path, *words: str) -> str:
    path.write_text(recipe_to_yaml(override_recipe(Recipe(task="unicl"), [*TINY, *words])))
    return str(path)


def log_of(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def assert_same_run(first: Path, second: Path) -> None:
    one, other = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
    assert log_of(first) == log_of(second)
    scores = [json.loads((folder / "metrics.json").read_text())["predictors"] for folder in (first, second)]
    assert scores[0] == scores[1]
    assert sorted(path.name for path in first.rglob("*")) == sorted(path.name for path in second.rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "variant"), KILLED)
def test_a_killed_run_is_resumed_to_the_bit(processes, variant, children, tmp_path):
    recipe = write_recipe(tmp_path / "mine.yaml", *VARIANTS[variant])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    codes, said = children("train", recipe, "--out", str(whole), processes=processes)
    assert codes == [0] * processes, said
    point = KILLED[processes, variant]
    if isinstance(point, float):
        how = {"kill_after": (str(killed / "log.jsonl"), point)}
    else:
        how = {"at": (*point, "group SIGKILL")}
    codes, said = children("train", recipe, "--out", str(killed), processes=processes, **how)
    assert codes == [-signal.SIGKILL] * processes, said
    assert not (killed / "config.json").exists()
    codes, said = children("train", recipe, "--out", str(killed), "--resume", processes=processes)
    assert codes == [0] * processes, said
    assert_same_run(whole, killed)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes by /proc")
def test_a_launcher_and_its_processes_are_killed_and_resumed(children, tmp_path):
    """The whole way: `python -m hf_vlr` by torch's launcher, of which nobody is left."""
    recipe = write_recipe(tmp_path / "mine.yaml", "train.steps=60", "train.save_every=2")
    words = ["train", recipe, "--out", str(tmp_path / "killed")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "hf_vlr"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    process = subprocess.Popen([*command, *words], env=environment, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 240
    while last_checkpoint(tmp_path / "killed" / "checkpoints") is None and time.monotonic() < end:
        time.sleep(0.01)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for number in (process.pid, *map(int, ranks)):
        os.kill(number, signal.SIGKILL)
    process.wait()
    assert len(ranks) == 2
    assert last_checkpoint(tmp_path / "killed" / "checkpoints") is not None
    assert not (tmp_path / "killed" / "config.json").exists()
    assert children(*words, "--resume", processes=2)[0] == [0, 0]
    assert children("train", recipe, "--out", str(tmp_path / "whole"), processes=2)[0] == [0, 0]
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.soak
@pytest.mark.parametrize(("processes", "variant"), KILLED)
def test_a_run_that_is_killed_again_and_again_is_resumed_to_the_bit(processes, variant, children, tmp_path):
    """Eight runs, each killed seven times: anywhere between its first step and its last file."""
    words = ("train.steps=60", "train.save_every=3", "train.validate_every=10", *VARIANTS[variant])
    recipe = write_recipe(tmp_path / "mine.yaml", *words)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    begun = time.monotonic()
    assert children("train", recipe, "--out", str(whole), processes=processes)[0] == [0] * processes
    duration = time.monotonic() - begun
    kills, generator = 0, random.Random(f"{processes} {variant}")
    for _ in range(3 * KILLS_OF_A_CASE):
        after = (str(killed / "log.jsonl"), generator.uniform(0, duration / 4))
        codes, said = children("train", recipe, "--out", str(killed), "--resume", processes=processes, kill_after=after)
        assert codes in ([-signal.SIGKILL] * processes, [0] * processes), said
        if codes[0] == 0:
            assert_same_run(whole, killed)
            for path in (killed / "checkpoints").iterdir():
                path.unlink()  # from the start again
        kills += codes[0] != 0
        if kills == KILLS_OF_A_CASE:
            break
    assert kills == KILLS_OF_A_CASE
    assert children("train", recipe, "--out", str(killed), "--resume", processes=processes)[0] == [0] * processes
    assert_same_run(whole, killed)
