"""Any number of processes computes what one does: features, gradients, whole runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import load_file

from hf_vlr.distributed import gather_rows, is_distributed, share_of_rows
from hf_vlr.training.checkpoints import read_checkpoint
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import override_recipe, recipe_to_yaml
from hf_vlr.training.run import run

TINY = (
    # 43 images: the last of an epoch's batches of 12 has 7, which two processes share as 3 and 4;
    # of batches of 8 it has 3, and one of four processes has none
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
    "sigmoid": ("loss.objective=siglip",),
    "supcon": ("loss.objective=supcon",),
    "multi-task": ("loss.objective=multi-task", "data.mix=[pairs:PAIRS]"),
    "two passes": ("loss.distillation=0.5", "train.micro_batch=2"),
    "recognition": ("task=recognition", "loss.logit_adjustment=1", "data.mixup=0.5"),
    "baseline": ("task=recognition", "model.language=false", "train.accumulation=3", "loss.reweight=inverse"),
    "pieces": ("task=recognition", "train.micro_batch=2", "data.sampler=over"),
}

WORLDS = {2: (), 4: ("train.batch_size=8",)}
OF_FOUR = {"baseline": ("train.batch_size=24",)}

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
if accelerator.num_processes == 4:
    for path in sys.argv[1:]:
        run(load_recipe(path))
    sys.exit()
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
    return read_checkpoint(folder / "checkpoints" / f"step-{step:08d}.pt")["task"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> str:
    """Nine pictures with captions and without classes."""
    folder = tmp_path_factory.mktemp("pairs")
    pictures = [Image.new("RGB", (16, 16), (25 * at, 90, 250 - 25 * at)) for at in range(9)]
    rows = {"image": pictures, "text": [f"a picture number {at}" for at in range(9)]}
    features = Features({"image": ImageFeature(), "text": Value("string")})
    Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return str(folder)


def words_of(name: str, world: int, pairs: str) -> list[str]:
    """The words of a run, with the same global batch whatever the number of processes."""
    words = [*RUNS[name], *WORLDS[world], *(OF_FOUR.get(name, ()) if world == 4 else ())]
    return [word.replace("PAIRS", pairs) for word in words]


@pytest.fixture(scope="module", params=WORLDS)
def many(request, tmp_path_factory, pairs) -> tuple[int, Path]:
    """All runs by some processes, and what two compute on the way (see `WORKER`)."""
    world = request.param
    root = tmp_path_factory.mktemp(f"world{world}")
    (root / "worker.py").write_text(WORKER)
    recipes = []
    for name in RUNS:
        recipes.append(root / f"{name}.yaml")
        recipes[-1].write_text(recipe_to_yaml(tiny(root / name, *words_of(name, world, pairs))))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command += [str(root / "worker.py"), *map(str, recipes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    return world, root


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_many_processes_compute_what_one_does(name, many, pairs, tmp_path):
    world, root = many
    one, two = run(tiny(tmp_path / "one", *words_of(name, world, pairs))), root / name
    for step in (1, 2, 4, 6):  # the fourth step ends an epoch of batches of 12, the sixth one of 8, on an uneven batch
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
    assert all(torch.equal(saved[key], found[f"model.{key}"]) for key in saved)


@pytest.mark.slow
def test_one_process_goes_on_where_many_stopped(many, tmp_path):
    world, root = many
    words = WORLDS[world]
    folder = tmp_path / "run"
    shutil.copytree(root / "contrast", folder)
    (folder / "config.json").unlink()
    for step in (4, 5, 6):
        (folder / "checkpoints" / f"step-{step:08d}.pt").unlink()
    run(tiny(folder, *words), resume=True)
    expected, found = weights_after(root / "contrast", 6), weights_after(folder, 6)
    assert max(relative(found[key], expected[key]) for key in expected) <= 1e-6


def test_a_single_process_gathers_nothing():
    rows = torch.randn(3, 2, requires_grad=True)
    assert not is_distributed()
    assert gather_rows(rows) is rows
    assert share_of_rows(rows) == 1.0
