"""FSDP2 on two processes of the CPU: the steps of one process, and checkpoints that anyone can go on from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_vlr.training.checkpoints import read_checkpoint
from hf_vlr.training.recipe import load_recipe
from hf_vlr.training.run import run

SHARED = '''
import copy, importlib.util, math, sys
import torch
from hf_vlr.training.contrastive_task import ContrastiveTask
from hf_vlr.training.optimizer import build_optimizer
from hf_vlr.training.options import LossOptions, ModelOptions, OptimOptions

spec = importlib.util.spec_from_file_location("tiny", sys.argv[1])
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

OPTIM = OptimOptions(lr=1e-3, eps=1e-3)
MAX_NORM = 0.5


def task():
    """A contrast whose BatchNorm keeps its statistics, the text tower frozen."""
    made = ContrastiveTask(tiny.model(vision=sys.argv[3]), ModelOptions(freeze=["text_model"]), LossOptions())
    return made.eval()


def batch(number, rank=0, world=1):
    generator = torch.Generator().manual_seed(number)
    mine = slice(8 * rank // world, 8 * (rank + 1) // world)
    texts = {key: value[mine] for key, value in tiny.texts(8).items()}
    labels = torch.tensor([0, 1, 0, 2, 3, 3, -1, -1])[mine]
    pictures = torch.randn(8, 3, 32, 32, generator=generator)[mine]
    return {**texts, "pixel_values": pictures, "labels": labels, "text_index": torch.arange(len(labels))}


def difference(found, expected):
    """The largest difference of two nested states, relative to the largest number of each tensor."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        return max([difference(found[key], expected[key]) for key in expected], default=0.0)
    if isinstance(expected, list):
        return max([difference(one, other) for one, other in zip(found, expected, strict=True)], default=0.0)
    if isinstance(expected, torch.Tensor):
        assert found.shape == expected.shape and found.dtype == expected.dtype
        return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-3)).item()
    assert found == expected
    return 0.0
'''

ONE = """
whole = task()
optimizer = build_optimizer(whole, OPTIM)
norms, states = [], []
for step in range(4):
    for part in range(2):
        (whole(batch(2 * step + part))["loss"] / 2).backward()
    norms.append(torch.nn.utils.clip_grad_norm_(whole.parameters(), MAX_NORM).item())
    optimizer.step()
    optimizer.zero_grad()
    whole.after_step()
    states.append(copy.deepcopy({"task": whole.state_dict(), "optimizer": optimizer.state_dict()}))
torch.save({"norms": norms, "states": states}, sys.argv[2])
"""

TWO = """
from accelerate import Accelerator
from torch.distributed.tensor import DTensor
from hf_vlr.training.sharding import (
    average_scalars, clip_gradients, gathered, load_whole, load_whole_optimizer, shard, unsharded, wants_sharding,
    whole_norm,
)

accelerator = Accelerator()
rank = accelerator.process_index
assert wants_sharding() and accelerator.num_processes == 2
expected = torch.load(sys.argv[2], weights_only=True)


def prepared():
    made = task()
    shard(made, made.model, accelerator.device)
    return made, accelerator.prepare_optimizer(build_optimizer(made, OPTIM))


def train(sharded, optimizer, steps):
    norms = []
    for step in steps:
        for part in range(2):
            sharded.set_requires_gradient_sync(part == 1)
            accelerator.backward(sharded(batch(2 * step + part, rank, 2))["loss"] / 2)
        average_scalars(sharded.parameters())
        norms.append(clip_gradients(sharded.parameters(), MAX_NORM).item())
        optimizer.step()
        optimizer.zero_grad()
        sharded.after_step()
    return norms


sharded, optimizer = prepared()
cut = [one for one in sharded.parameters() if isinstance(one, DTensor)]
assert len(cut) == len(list(sharded.parameters())) - 1  # all but the temperature
assert sum(one.to_local().numel() for one in cut) < 0.6 * sum(one.numel() for one in cut)

norms = train(sharded, optimizer, range(2))
assert all(abs(a - b) <= 1e-5 * b for a, b in zip(norms, expected["norms"]))
state = {"task": gathered(sharded.state_dict()), "optimizer": gathered(optimizer.state_dict())}
assert difference(state, expected["states"][1]) <= 1e-5, difference(state, expected["states"][1])
names = [name for name, _ in sharded.named_parameters()]
norm = torch.nn.utils.get_total_norm([state["task"][name] for name in names])
assert abs(whole_norm(sharded.parameters()) - norm) <= 1e-5 * norm
# who does not keep has nothing
assert (gathered(cut[0], keep=rank == 0) is None) == (rank == 1)

# one process goes on from it ...
alone = task()
alone.load_state_dict(state["task"])
build_optimizer(alone, OPTIM).load_state_dict(state["optimizer"])
# ... and two do, to the bit
again, second = prepared()
load_whole(again, state["task"])
load_whole_optimizer(second, state["optimizer"])
assert train(sharded, optimizer, range(2, 4)) == train(again, second, range(2, 4))
assert difference(gathered(again.state_dict()), gathered(sharded.state_dict())) == 0.0
assert difference(gathered(sharded.state_dict()), expected["states"][3]["task"]) <= 1e-5

model = unsharded(sharded, sharded.model).eval()
assert unsharded(alone, alone.model) is alone.model
if rank == 0:  # alone, without the other process
    pictures = tiny.pixel_values()
    alone.load_state_dict(expected["states"][3]["task"])
    torch.testing.assert_close(
        model.get_image_features(pictures), alone.model.get_image_features(pictures), rtol=1e-4, atol=1e-4
    )
accelerator.end_training()
"""


@pytest.mark.slow
@pytest.mark.parametrize("vision", ["clip", "resnet"])
def test_sharded_steps_are_those_of_one_process(tmp_path, vision):
    tiny = Path(__file__).with_name("tiny.py")
    variables = os.environ | {"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for script, starter in ((ONE, []), (TWO, launcher)):
        path = tmp_path / "worker.py"
        path.write_text(SHARED + script)
        command = [sys.executable, *starter, path, tiny, tmp_path / "expected.pt", vision]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]


WORDS = (
    "data.options={classes: 8, unseen: 2, max_count: 8, imbalance: 2, size: 16, validation: 1, test: 1}",
    "data.texts=templates",
    "data.image_size=16",
    "data.max_text_length=16",
    "vision=scratch:vit",
    "model.projection_dim=16",
    "model.num_anchors=4",
    "train.batch_size=12",
    "train.steps=4",
    "train.save_every=2",
    "train.log_every=1",
    "train.validate_every=2",
    "optim.eps=1e-3",
)


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.double(), expected.double()
    return ((found - expected).norm() / expected.norm().clamp_min(1e-2)).item()


def launched(*words: str) -> subprocess.CompletedProcess:
    """`hf-vlr train` by two sharded processes of the CPU, told so as `accelerate launch` tells those of GPUs."""
    told = {"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "hf_vlr", "train", *words]
    return subprocess.run(command, env=os.environ | told, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["unicl", "recognition"])
def test_a_sharded_run_is_that_of_one_process_which_may_go_on_from_it(tmp_path, task):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"task: {task}\n")
    run(load_recipe(recipe, [*WORDS, f"output={tmp_path / 'one'}"]))
    done = launched(str(recipe), *WORDS, "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr[-3000:]
    expected, found = (read_checkpoint(tmp_path / name / "checkpoints/step-00000004.pt") for name in ("one", "two"))
    assert found["task"].keys() == expected["task"].keys()
    for name, value in expected["task"].items():
        assert apart(found["task"][name], value) <= 1e-5, name
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and {v.shape for v in one.values()} == {v.shape for v in two.values()}
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    for line, other in zip(*(map(json.loads, lines) for lines in logs), strict=True):
        measured = {key for key in line if "seconds" not in key and "second" not in key and "memory" not in key}
        assert {key: other[key] for key in measured} == pytest.approx({key: line[key] for key in measured}, abs=2e-5)
    (tmp_path / "two/config.json").unlink()
    (tmp_path / "two/checkpoints/step-00000004.pt").unlink()
    run(load_recipe(recipe, [*WORDS, f"output={tmp_path / 'two'}"]), resume=True)
    again = read_checkpoint(tmp_path / "two/checkpoints/step-00000004.pt")["task"]
    for name, value in expected["task"].items():
        assert apart(again[name], value) <= 1e-5, name


@pytest.mark.slow
def test_what_cannot_be_sharded_is_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("task: unicl\n")
    done = launched(str(recipe), *WORDS, "train.micro_batch=4", "--out", str(tmp_path / "run"))
    assert done.returncode != 0
    assert "train.micro_batch does not go with sharded weights (FSDP)" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout
