"""Trackers are told what the log is, under one name, also when a run is resumed; nothing needs a network."""

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_vlr.errors import UserError
from hf_vlr.training import trackers
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import override_recipe
from hf_vlr.training.run import run
from hf_vlr.training.trainer import Trainer

TINY = (
    "data.options={classes: 8, unseen: 2, max_count: 8, imbalance: 2, size: 16, validation: 1, test: 1}",
    "data.texts=templates",
    "data.image_size=16",
    "data.max_text_length=16",
    "vision=scratch:resnet",
    "model.projection_dim=16",
    "model.num_anchors=4",
    "train.batch_size=12",
    "train.steps=6",
    "train.save_every=2",
    "train.log_every=1",
    "train.validate_every=3",
)
STEPS = list(range(1, 7))


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def tiny(output: Path, *words: str) -> Recipe:
    return override_recipe(Recipe(task="unicl"), [*TINY, *words, f"output={output}"])


def interrupted(folder: Path, batches: int, monkeypatch, *words: str) -> None:
    """A run that dies at a batch, after it has logged more than it has saved, and is resumed."""
    taken, whole = iter(range(batches)), Trainer._batch

    def part(self, batch):
        if next(taken, None) is None:
            raise Interrupted
        return whole(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_batch", part)
        with pytest.raises(Interrupted):
            run(tiny(folder, *words))
    run(tiny(folder, *words), resume=True)


def logged(folder: Path, key: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line[key]) for line in lines if key in line]


def test_tensorboard_shows_the_log_line_by_line_also_of_a_resumed_run(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    interrupted(folder, 5, monkeypatch, "train.trackers=tensorboard")
    written = EventAccumulator(str(folder / "trackers" / "hf_vlr")).Reload()
    for key in ("loss", "lr", "grad_norm", "update_norm", "rows_per_second", "validation_loss"):
        found = [(event.step, event.value) for event in written.Scalars(key)]
        # what was written of steps 5 and 6 before the end is gone: they were taken again
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in logged(folder, key)]
    assert [event.step for event in written.Scalars("loss")] == STEPS
    assert [event.step for event in written.Scalars("validation_loss")] == [3, 6]
    settings = next((folder / "trackers" / "hf_vlr").glob("*/hparams.yml")).read_text()
    assert "optim.lr: 0.001\n" in settings and "data.source: shapes-lt\n" in settings


def test_trackio_gets_the_lines_under_one_name(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    folder = tmp_path / "run"
    interrupted(folder, 5, monkeypatch, "train.trackers=trackio")
    name = (folder / "trackers" / "name.txt").read_text().strip()
    assert re.fullmatch(r"run-[0-9a-f]{8}", name)
    written = SQLiteStorage.get_logs("hf_vlr", name)
    # step 5 was taken twice
    assert [line["step"] for line in written if "loss" in line] == [1, 2, 3, 4, 5, 5, 6]
    for key in ("loss", "lr", "grad_norm", "validation_loss"):
        assert {line["step"]: line[key] for line in written if key in line} == dict(logged(folder, key))
    assert SQLiteStorage.get_run_config("hf_vlr", name)["optim.lr"] == 0.001


def records(path: Path) -> Iterator:
    """What Weights & Biases has written: blocks of 32 KiB of (checksum, length, kind) and a part of a record."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole one, or the last part of one
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def test_wandb_writes_below_the_run_and_sends_nothing(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder = tmp_path / "run"
    interrupted(folder, 5, monkeypatch, "train.trackers=wandb")
    files = sorted((folder / "trackers" / "wandb").glob("offline-run-*/run-*.wandb"))
    found = [record for file in files for record in records(file)]
    (identity,) = {record.run.run_id for record in found if record.HasField("run")}
    assert (folder / "trackers" / "name.txt").read_text() == f"run-{identity}\n"
    settings = {item.key: item.value_json for record in found for item in record.config.update}
    assert (settings["optim.lr"], settings["task"]) == ("0.001", '"unicl"')
    history = []
    for record in found:
        if record.HasField("history"):
            items = ((item.key or item.nested_key[0], json.loads(item.value_json)) for item in record.history.item)
            history.append(dict(items))
    assert [line["_step"] for line in history] == [1, 2, 3, 4, 5, 5, 6]
    for key in ("loss", "lr", "grad_norm", "validation_loss"):
        assert {line["_step"]: line[key] for line in history if key in line} == dict(logged(folder, key))


def test_wandb_online_needs_an_account_and_says_so(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"train\.trackers=wandb: No API key .* Without WANDB_MODE nothing is sent\."):
        run(tiny(tmp_path / "run", "train.trackers=wandb"))
    assert not (tmp_path / "run").exists()


def test_a_tracker_without_its_package_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'train\.trackers=wandb needs its package: pip install wandb, or "hf_vlr\[tra'):
        run(tiny(tmp_path / "run", "train.trackers=[wandb]"))
    assert not (tmp_path / "run").exists()
