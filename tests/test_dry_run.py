"""A dry run: what it says of small recipes, what it counts, and that it writes nothing."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_vlr.cli.dry_run import duration, report, scaled, size
from hf_vlr.cli.main import main
from hf_vlr.errors import UserError
from hf_vlr.training.dry_run import DryRun, dry_run, plan_steps
from hf_vlr.training.estimates import TRIAL_FLOPS, before_the_first_step, count_step, load_of, trial_size
from hf_vlr.training.optimizer import build_optimizer
from hf_vlr.training.recipe import load_recipe
from hf_vlr.training.rehearsal import Rehearsal, Shape
from hf_vlr.training.run_data import load_run_data
from hf_vlr.training.sketch import sketch_dual_encoder

SMALL = ["data.options={classes: 12, max_count: 24, imbalance: 6, validation: 2, test: 2, unseen: 2}"]
FLOAT32 = torch.autocast("cpu", enabled=False)


def stage1(*words: str) -> DryRun:
    return dry_run(load_recipe("shapes-stage1", [*SMALL, "train.steps=10", "train.batch_size=16", *words]))


@cache
def counted(name: str, *words: str, processes: int = 1, classes: int = 12):
    """Operations and memory of a recipe's step, without its data."""
    recipe = load_recipe(name, words)
    with FakeTensorMode():
        rehearsal = Rehearsal(recipe, sketch_dual_encoder(recipe), Shape(classes, False, 24), lambda: FLOAT32)
        load = load_of(recipe, rehearsal, None, processes)
        return count_step(recipe, rehearsal, load, before_the_first_step(recipe, None))


@pytest.fixture(scope="module", autouse=True)
def short_trials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_vlr.training.estimates.TRIAL_SECONDS", 0.0)
        patch.setitem(TRIAL_FLOPS, "cpu", 1e9)
        yield


@pytest.fixture(scope="module")
def small(short_trials) -> DryRun:
    return stage1()


def test_steps_are_those_of_the_loop(small):
    rows = len(small.data.train)
    assert (small.steps.rows, small.steps.per_epoch) == (rows, -(-rows // 16))
    assert (small.steps.total, small.steps.warmup) == (10, round(0.05 * 10))
    recipe = load_recipe("shapes-stage1", [*SMALL, "train.steps=null", "train.epochs=3", "train.batch_size=16"])
    assert plan_steps(recipe, small.data, PartialState()).total == 3 * small.steps.per_epoch


def test_every_parameter_is_in_one_group(small):
    recipe = small.recipe
    rehearsal = Rehearsal(recipe, small.sketch, small.shape, lambda: FLOAT32)
    assert sum(group.parameters for group in small.groups) == sum(p.numel() for p in rehearsal.task.parameters())
    optimizer = build_optimizer(rehearsal.task, recipe.optim)
    expected = {(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups}
    found = {}
    for group in small.groups:
        key = (group.rate, group.decay)
        found[key] = found.get(key, 0) + group.tensors
    assert {(*key, tensors) for key, tensors in found.items()} == expected


def test_frozen_parts_and_rates_are_told_apart(small):
    run = stage1("model.freeze=text_model", "optim.lr_scales.vision_model=0.5")
    rates = {group.part: group.rate for group in run.groups}
    assert rates["text_model"] is None
    assert rates["vision_model"] == pytest.approx(rates["visual_projection"] / 2)
    assert run.memory.model.gradients < small.memory.model.gradients


def test_operations_grow_with_the_batch():
    once, twice = (counted("shapes-stage1", f"train.batch_size={rows}")[0].parts for rows in (32, 64))
    assert twice["images"] == 2 * once["images"] and twice["texts"] == 2 * once["texts"]
    # every image meets every text
    assert twice["contrast"] == 4 * once["contrast"]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_a_step_and_not_its_operations(processes):
    alone, memory = counted("shapes-stage1")
    together, share = counted("shapes-stage1", processes=processes)
    assert together == alone
    assert share.activations == pytest.approx(memory.activations / processes, rel=0.01)
    assert share.model == memory.model


def test_two_passes_compute_forward_twice_and_keep_little():
    plain, memory = counted("shapes-stage1")
    pieces, small = counted("shapes-stage1", "train.micro_batch=16")
    assert plain.parts["images"] < pieces.parts["images"] < 1.5 * plain.parts["images"]
    assert pieces.parts["contrast"] == plain.parts["contrast"]
    assert small.activations < memory.activations / 8
    # a recogniser's loss is a sum over images: one pass is enough
    plain, memory = counted("shapes-baseline")
    pieces, small = counted("shapes-baseline", "train.micro_batch=16")
    assert pieces == plain
    assert small.activations == pytest.approx(memory.activations / 8, rel=0.01)


def test_accumulation_contrasts_parts():
    plain, parts = counted("shapes-stage1")[0].parts, counted("shapes-stage1", "train.accumulation=4")[0].parts
    assert (parts["images"], parts["texts"]) == (plain["images"], plain["texts"])
    assert parts["contrast"] * 4 == plain["contrast"]


def test_a_teacher_computes_forward_and_is_kept():
    plain, memory = counted("shapes-stage1")
    taught, more = counted("shapes-stage1", "loss.distillation=0.5")
    assert taught.parts["contrast"] == 2 * plain.parts["contrast"]
    assert 0 < taught.parts["teacher"] < plain.parts["images"] + plain.parts["texts"]
    assert more.teacher == pytest.approx(memory.model.weights, rel=0.01)


def test_two_views_have_no_texts():
    plain, pairs = counted("shapes-stage1")[0].parts, counted("shapes-stage1", "loss.objective=supcon")[0].parts
    assert pairs["images"] == 2 * plain["images"] and "texts" not in pairs
    assert pairs["contrast"] == 4 * plain["contrast"]


def test_what_is_encoded_once():
    recipe = load_recipe("shapes-stage2", SMALL)
    data = load_run_data(recipe)
    images, texts = before_the_first_step(recipe, data)
    # four cached views, and every image (at most 24 of a class) to choose anchors by
    assert (images, texts) == (5 * len(data.train), len(data.corpus))
    recipe = load_recipe("shapes-stage2", [*SMALL, "anchors.selection=first"])
    assert before_the_first_step(recipe, data) == (4 * len(data.train), len(data.corpus))
    assert before_the_first_step(load_recipe("shapes-stage1", SMALL), data) == (0, 0)
    assert before_the_first_step(recipe, None) == (0, 0)


def test_a_stage_2_is_planned_before_its_stage_1(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = dry_run(load_recipe("shapes-stage2", [*SMALL, "train.batch_size=16"]))
    assert any("taken for what recipe shapes-stage1 makes" in line for line in run.unknown)
    assert {group.rate for group in run.groups if group.part.startswith("vlltr")} == {None}
    head = sum(group.parameters for group in run.groups if group.part == "head.visual")
    assert head == 128 * 512 + 512 + 512 * 12 + 12
    assert run.flops.once > run.flops.total > 0
    assert run.step_seconds() > 0 and run.once_seconds() > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["crt", "ncm"])
def test_a_classifier_that_is_computed_takes_no_steps(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["task=rebalance", "model.init=runs/shapes-baseline", f"rebalance.method={method}"]
    recipe = load_recipe("shapes-baseline", [*SMALL, *words, "data.sampler=class-balanced", "train.batch_size=16"])
    run = dry_run(recipe)
    assert (run.steps.total == 0) == (method == "ncm")
    assert sum(group.parameters for group in run.groups if group.rate is not None) == 512 * 12 + 12


def test_what_is_not_at_hand_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = dry_run(load_recipe("shapes-stage2", ["data=./nowhere", "model.init=./nothing", "data.options={}"]))
    assert run.data is None and run.steps.per_epoch is None and run.groups == []
    said = " ".join(run.unknown)
    assert "./nowhere: there is no such folder" in said and "model.init=./nothing is neither a folder" in said
    run = dry_run(load_recipe("shapes-baseline", ["data=./nowhere", "data.options={}", "train.batch_size=8"]))
    assert run.steps.total == 1300 and run.shape.classes is None
    assert not any(group.part.startswith("head") for group in run.groups)
    assert any(line.startswith("the classes: ") for line in run.unknown)


def test_a_recipe_that_cannot_be_run_is_an_error():
    with pytest.raises(UserError, match=r"data\.synthesis=smote makes states, not pictures"):
        stage1("data.synthesis=smote")


def test_a_trial_is_neither_endless_nor_empty():
    cpu = torch.device("cpu")
    assert trial_size(1e13, 64, cpu) == 0
    assert trial_size(9e11, 64, cpu) == 2
    assert trial_size(1e8, 64, cpu) == 10
    assert trial_size(1.0, 64, cpu) == 64


def test_numbers_in_words():
    assert [scaled(value) for value in (999, 1.5e6, 2e12, 3.25e18)] == [
        "999 FLOP",
        "1.5 MFLOP",
        "2 TFLOP",
        "3.25 EFLOP",
    ]
    assert [size(value) for value in (512, 3 << 20, 5 << 30)] == ["0.5 KiB", "3.0 MiB", "5.0 GiB"]
    assert [duration(value) for value in (0.002, 1.5, 180, 7200, 200000)] == [
        "2 ms", "1.5 s", "3 minutes", "2 hours", "2.31 days",
    ]  # fmt: skip


def test_the_report_fits_eighty_columns(small, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for full in (False, True):
        report(small, "shapes-stage1", full).show()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and not any(line.endswith(" ") for line in lines)
    text = "\n".join(lines)
    for heading in ("data", "steps", "parameters", "operations", "memory", "time"):
        assert re.search(rf"^{heading}", text, re.M)
    assert len(re.findall(r"^  task +cvlp$", text, re.M)) == 2
    assert len(re.findall(r"^  eval\.rule +oltr$", text, re.M)) == 1


def test_full_is_for_dry_runs(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "shapes-stage1", "--full"])
    assert caught.value.code == 2 and "--full is for --dry-run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["shapes-stage1"], ["1,000 steps", "37 steps of 4,650 draws", "50 steps", "a step"]),
        (["vlltr-imagenet-lt-vitb16-stage1"], ["50 epochs", "openai/clip-vit-base-patch16 is neither", "1,024 images"]),
        (["unicl-cifar10-resnet50"], ["500 epochs", "vision_model", "optimiser", "GFLOP a second"]),
    ],
)
def test_a_dry_run_offline(words, said, tmp_path):
    command = [sys.executable, "-m", "hf_vlr", "train", *words, "--dry-run"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf")}
    folder: Path = tmp_path / "here"
    folder.mkdir()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    assert all(part in done.stdout for part in said), done.stdout
    assert not list(folder.iterdir())
