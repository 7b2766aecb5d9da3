"""Any number of processes computes what one does: features, gradients, whole runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_vlr.distributed import gather_rows, is_distributed, share_of_rows
from hf_vlr.training.checkpoints import read_checkpoint
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import override_recipe, recipe_to_yaml
from hf_vlr.training.run import run

TINY = (
    # 43 images: the last of an epoch's batches has 7, which two processes share as 3 and 4
    "data.options={classes: 8, unseen: 2, max_count: 8, imbalance: 2, size: 16, validation: 1, test: 1}",
    "data.texts=templates",
    "data.image_size=16",
    "data.max_text_length=16",
    "vision=scratch:vit",
    "model.projection_dim=16",
    "model.num_anchors=4",
    "train.batch_size=12",
    "train.steps=6",
    "train.save_every=1",
    "train.keep=9",
    "train.log_every=1",
    # so large an epsilon makes Adam's step linear in the gradient, so that steps can stand for gradients
    "optim.eps=1000",
    "optim.lr=30",
    "optim.weight_decay=0",
    "optim.clip_norm=0",
    "optim.warmup_fraction=0",
)
RUNS = {
    "contrast": (),
    "cvlp": ("task=cvlp", "loss.distillation=0.5", "loss.label_smoothing=0.1", "train.accumulation=2"),
    "recognition": ("task=recognition", "loss.logit_adjustment=1"),
    "baseline": ("task=recognition", "model.language=false", "train.accumulation=3"),
}

WORKER = """
import sys
import torch
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel
from hf_vlr.distributed import gather_rows, share_of_rows
from hf_vlr.training.recipe import load_recipe
from hf_vlr.training.run import run

accelerator = Accelerator()
rank = accelerator.process_index
assert accelerator.num_processes == 2

torch.manual_seed(0)
rows, labels = torch.randn(7, 5), torch.arange(7)
linear = torch.nn.Linear(5, 3)
mine = slice(0, 3) if rank == 0 else slice(3, 7)
assert torch.equal(gather_rows(labels[mine]), labels)
assert torch.equal(gather_rows(rows[mine]), rows)
assert torch.allclose(accelerator.reduce(share_of_rows(labels[mine]) * rows[mine].mean(0), "mean"), rows.mean(0))

def loss_of(features):
    return (features @ features.T).logsumexp(1).square().mean() + features.t().flip(0).cumsum(0).prod(0).sum()

loss_of(linear(rows)).backward()
whole = [parameter.grad.clone() for parameter in linear.parameters()]
linear.zero_grad()
shared = DistributedDataParallel(linear)
loss_of(gather_rows(shared(rows[mine]))).backward()
for parameter, expected in zip(linear.parameters(), whole):
    assert (parameter.grad - expected).norm() <= 1e-6 * expected.norm(), (parameter.grad, expected)

for path in sys.argv[1:]:
    run(load_recipe(path))
"""


def tiny(output: Path, *words: str) -> Recipe:
    return override_recipe(Recipe(task="unicl"), [*TINY, *words, f"output={output}"])


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    # the floor: a key's bias has no gradient but rounding errors
    found, expected = found.double(), expected.double()
    return ((found - expected).norm() / expected.norm().clamp_min(1e-3)).item()


def by_module(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weight and bias of a module as one vector: a bias alone can be as small as the rounding of its gradient."""
    joined: dict[str, list[torch.Tensor]] = {}
    for key, value in weights.items():
        joined.setdefault(key.rpartition(".")[0], []).append(value.flatten().double())
    return {key: torch.cat(parts) for key, parts in joined.items()}


def weights_after(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "checkpoints" / f"step-{step:08d}.pt")["model"]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    """All runs by two processes, and what they compute on the way (see `WORKER`)."""
    root = tmp_path_factory.mktemp("two")
    (root / "worker.py").write_text(WORKER)
    recipes = []
    for name, words in RUNS.items():
        recipes.append(root / f"{name}.yaml")
        recipes[-1].write_text(recipe_to_yaml(tiny(root / name, *words)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    command += [str(root / "worker.py"), *map(str, recipes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_compute_what_one_does(name, two_processes, tmp_path):
    one, two = run(tiny(tmp_path / "one", *RUNS[name])), two_processes / name
    for step in (1, 2, 4, 6):  # the fourth step ends an epoch, on an uneven batch
        expected, found = weights_after(one, step), weights_after(two, step)
        found, expected = by_module(found), by_module(expected)
        apart = {key: relative(found[key], expected[key]) for key in expected}
        worst = max(apart, key=apart.get)
        assert apart[worst] <= 1e-6, (step, worst)
    start, expected, found = weights_after(one, 1), weights_after(one, 6), weights_after(two, 6)
    moved = [key for key in expected if relative(start[key], expected[key]) > 1e-3]
    assert len(moved) > 10, "the steps are too small to compare"
    # a difference of weights has lost three of float32's seven digits
    assert max(relative(found[key] - start[key], expected[key] - start[key]) for key in moved) <= 1e-4
    logs = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (one, two)]
    assert len(logs[0]) == 6
    for line, other in zip(*logs, strict=True):
        assert other["loss"] == pytest.approx(line["loss"], rel=1e-6, abs=1e-6)  # six decimals are written
        assert (other["step"], other["epoch"], other["lr"]) == (line["step"], line["epoch"], line["lr"])
    saved = load_file(two / "model.safetensors")
    assert (two / "metrics.json").is_file()
    assert all(torch.equal(saved[key], found[key]) for key in found)


@pytest.mark.slow
def test_one_process_goes_on_where_two_stopped(two_processes, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two_processes / "contrast", folder)
    (folder / "config.json").unlink()
    for step in (4, 5, 6):
        (folder / "checkpoints" / f"step-{step:08d}.pt").unlink()
    run(tiny(folder), resume=True)
    expected, found = weights_after(two_processes / "contrast", 6), weights_after(folder, 6)
    assert max(relative(found[key], expected[key]) for key in expected) <= 1e-6


def test_a_single_process_gathers_nothing():
    rows = torch.randn(3, 2, requires_grad=True)
    assert not is_distributed()
    assert gather_rows(rows) is rows
    assert share_of_rows(rows) == 1.0
