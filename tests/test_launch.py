"""The launch files: they are what Accelerate, Slurm and SkyPilot read, they start real processes, their names exist."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from hf_vlr.cli.launch import launch_files
from hf_vlr.cli.main import COMMANDS, main
from hf_vlr.training.recipe import load_recipe, packaged_recipes

ACCELERATE = ("cpu", "one-gpu", "multi-gpu", "multi-node", "fsdp2")
TEXTS = {name: entry.read_text(encoding="utf-8") for name, entry in launch_files().items()}
# fields of a SkyPilot task and of its resources, as its documentation lists them
TASK_FIELDS = {
    "name", "workdir", "num_nodes", "resources", "envs", "secrets", "volumes", "file_mounts", "setup", "run", "config",
}  # fmt: skip
RESOURCE_FIELDS = {
    "infra", "accelerators", "accelerator_args", "cpus", "memory", "instance_type", "use_spot", "disk_size",
    "disk_tier", "network_tier", "image_id", "ports", "labels", "autostop", "any_of", "ordered", "job_recovery",
}  # fmt: skip
# two steps of a tiny training
TINY = (
    "data.options={classes: 4, max_count: 8, imbalance: 2, size: 16, unseen: 0, validation: 1, test: 1}",
    "data.image_size=16",
    "vision=scratch:resnet",
    "train.batch_size=4",
    "train.steps=2",
)


@pytest.fixture
def hf_vlr(capsys):
    """Runs the command line; returns its exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        return stopped.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def written(tmp_path):
    """Writes a launch file into the test's folder."""

    def write(name: str) -> Path:
        path = tmp_path / launch_files()[name].name
        path.write_text(TEXTS[name], encoding="utf-8")
        return path

    return write


def environment(**more: str) -> dict[str, str]:
    """An environment in which `hf-vlr` and `accelerate` are found, and processes stay on the CPU."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "ACCELERATE_USE_CPU": "true", **more}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_the_files_are_listed_with_what_they_are_for(hf_vlr):
    code, out, _ = hf_vlr("launch")
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert set(lines) == {*ACCELERATE, "slurm", "skypilot"}
    assert lines["slurm"].startswith("Slurm: ")
    assert lines["multi-gpu"] == "All GPUs of one machine, one process for each (DDP)"


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_is_printed_or_written_as_it_is(hf_vlr, tmp_path, name):
    assert hf_vlr("launch", name) == (0, TEXTS[name], "")
    path = tmp_path / "folder" / "mine"
    for _ in range(2):  # the second time it is there already
        assert hf_vlr("launch", name, "--out", str(path)) == (0, f"written to {path}\n", "")
    assert path.read_text() == TEXTS[name]
    assert os.access(path, os.X_OK) == (name == "slurm")
    path.write_text("adapted")
    code, _, err = hf_vlr("launch", name, "--out", str(path))
    assert (code, err) == (2, f"error: --out {path} exists and differs; name another file\n")
    assert path.read_text() == "adapted"


def test_mistakes_are_named(hf_vlr, tmp_path):
    assert (
        "unknown launch file multi-gpus; did you mean multi-gpu? There are: cpu, " in hf_vlr("launch", "multi-gpus")[2]
    )
    assert hf_vlr("launch", "--out", "x")[2].startswith("error: --out needs the NAME of a launch file")
    assert hf_vlr("launch", "cpu", "--out", str(tmp_path))[2] == f"error: --out {tmp_path}: Is a directory\n"


@pytest.mark.parametrize("name", ACCELERATE)
def test_accelerate_reads_its_configurations(written, name):
    """Its own loader refuses a key that it does not know; the keys below `fsdp_config` are options of its launcher."""
    config = load_config_from_file(str(written(name)))
    assert config.mixed_precision == "no"  # and not False
    expected = {
        "cpu": ("MULTI_GPU", 2, 1),
        "one-gpu": ("NO", 1, 1),
        "multi-gpu": ("MULTI_GPU", 8, 1),
        "multi-node": ("MULTI_GPU", 16, 2),
        "fsdp2": ("FSDP", 8, 1),
    }[name]
    assert (config.distributed_type.value, config.num_processes, config.num_machines) == expected
    options = vars(launch_command_parser().parse_args(["script.py"]))
    assert set(config.fsdp_config) <= set(options)
    assert bool(config.fsdp_config) == (name == "fsdp2")


def test_names_of_commands_files_and_recipes_exist():
    for name, text in TEXTS.items():
        commands = re.findall(r"hf-vlr ([a-z]+)", text) + re.findall(r"-m hf_vlr ([a-z]+)", text)
        assert commands, name
        assert set(commands) <= set(COMMANDS)
        assert set(re.findall(r"hf-vlr launch ([a-z0-9-]+)", text)) <= set(TEXTS)
        assert set(re.findall(r"CONFIG[:=-]+ *([a-z0-9-]+)", text)) <= set(ACCELERATE)
        recipes = re.findall(r"RECIPE[:=] *([a-z0-9-]+)|sbatch slurm\.sh ([a-z0-9-]+)", text)
        assert {one or other for one, other in recipes} <= set(packaged_recipes())
        assert bool(recipes) == (name in ("slurm", "skypilot"))
        for word in re.findall(r"\bdata\.\w+=\S+", text):
            load_recipe("vlltr-vitb16-stage1", [word])


def test_skypilot_knows_the_fields_of_the_task():
    task = yaml.safe_load(TEXTS["skypilot"])
    assert set(task) <= TASK_FIELDS
    assert set(task["resources"]) <= RESOURCE_FIELDS
    assert isinstance(task["num_nodes"], int)
    assert all(isinstance(value, str) for value in task["envs"].values())
    for target, source in task["file_mounts"].items():
        assert target.startswith("/")
        assert isinstance(source, str) or (set(source) == {"source", "mode"} and source["mode"] == "MOUNT_CACHED")


def scripts() -> dict[str, str]:
    task = yaml.safe_load(TEXTS["skypilot"])
    return {"slurm": TEXTS["slurm"], "skypilot-setup": task["setup"], "skypilot-run": task["run"]}


@pytest.mark.parametrize("name", scripts())
def test_bash_reads_the_scripts(tmp_path, name):
    path = tmp_path / "script.sh"
    path.write_text(scripts()[name])
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        # SC2086: the words of skypilot's WORDS are meant to be split
        subprocess.run(["shellcheck", "--shell=bash", "--exclude=SC2086", path], check=True)


WORKER = """
import json, os, sys
import torch
from accelerate import Accelerator
accelerator = Accelerator()
total = accelerator.reduce(torch.tensor(float(accelerator.process_index + 1)))
found = {"processes": accelerator.num_processes, "device": accelerator.device.type, "total": total.item()}
found["environment"] = {key: value for key, value in os.environ.items() if "FSDP" in key}
with open(f"{sys.argv[1]}/{accelerator.process_index}.json", "w") as file:
    json.dump(found, file)
accelerator.end_training()
"""


def launch(config: Path, folder: Path, *options: str) -> subprocess.Popen:
    (folder / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, *options]
    return subprocess.Popen([*command, folder / "worker.py", folder], env=environment(), stderr=subprocess.PIPE)


def finish(process: subprocess.Popen) -> None:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()[-2000:]


def reports(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu", "one-gpu", "multi-gpu", "fsdp2"])
def test_accelerate_starts_processes_that_know_of_each_other(written, tmp_path, name):
    count = 1 if name == "one-gpu" else 2
    options = ("--num_processes", "2") if name in ("multi-gpu", "fsdp2") else ()
    finish(launch(written(name), tmp_path, "--main_process_port", str(free_port()), *options))
    found = reports(tmp_path)
    assert [(one["processes"], one["device"]) for one in found] == [(count, "cpu")] * count
    assert {one["total"] for one in found} == {3.0 if count == 2 else 1.0}
    environments = [one["environment"] for one in found]
    if name == "fsdp2":
        assert all(one["ACCELERATE_USE_FSDP"] == "true" and one["FSDP_VERSION"] == "2" for one in environments)
        assert all(one["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false" for one in environments)
    else:
        assert environments == [{}] * count


@pytest.mark.slow
def test_two_machines_find_each_other(written, tmp_path):
    """Two launchers on this machine, each as if on its own."""
    config, port = written("multi-node"), str(free_port())
    options = ("--num_processes", "2", "--main_process_port", port, "--machine_rank")
    for process in [launch(config, tmp_path, *options, rank) for rank in ("0", "1")]:
        finish(process)
    assert [(one["processes"], one["total"]) for one in reports(tmp_path)] == [(2, 3.0)] * 2


SCONTROL = """#!/bin/bash
echo "$@" >>"$RECORD"
if [[ $1 == show ]]; then printf 'localhost\\nlocalhost\\n'; fi
"""
# starts the command once for each machine, all of them this one
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do echo "srun $1" >>"$RECORD"; shift; done
for ((rank = 0; rank < SLURM_JOB_NUM_NODES; rank++)); do SLURM_NODEID=$rank "$@" & steps[rank]=$!; done
status=0
for step in "${steps[@]}"; do wait "$step" || status=$?; done
exit "$status"
"""
# a step that ends with a status, at once or after SIGTERM
ENDING = """#!/bin/bash
trap 'echo terminated >>"$RECORD"; exit STATUS' TERM
echo ready >>"$RECORD"
WAIT
exit STATUS
"""


def slurm(tmp_path: Path, script: Path, srun: str, *arguments: str, nodes: int = 2) -> subprocess.Popen:
    """The Slurm script under stand-ins for Slurm's commands, which record how they were called."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("scontrol", SCONTROL), ("srun", srun)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    job = {"SLURM_JOB_ID": str(free_port() - 20000), "SLURM_JOB_NODELIST": "two", "SLURM_JOB_NUM_NODES": str(nodes)}
    variables = environment(**job, SLURM_SUBMIT_DIR=str(tmp_path), RECORD=str(tmp_path / "record"))
    variables["PATH"] = f"{tools}{os.pathsep}{variables['PATH']}"
    command = ["bash", script, *arguments]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)


def recorded(tmp_path: Path) -> list[str]:
    return (tmp_path / "record").read_text().splitlines() if (tmp_path / "record").exists() else []


@pytest.mark.slow
def test_the_slurm_script_trains_on_all_machines(written, tmp_path):
    words = ["shapes-baseline", "--out", str(tmp_path / "run"), *TINY]
    process = slurm(tmp_path, written("slurm"), SRUN, *words)
    finish(process)
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert "show hostnames two" in recorded(tmp_path)
    assert not any(line.startswith("requeue") for line in recorded(tmp_path))
    assert not list(tmp_path.glob(".accelerate-*"))


@pytest.mark.parametrize(
    ("status", "terminate", "requeued"), [(0, False, False), (3, False, False), (143, True, True), (0, True, False)]
)
def test_the_slurm_script_queues_again_when_it_was_stopped(written, tmp_path, status, terminate, requeued):
    step = ENDING.replace("STATUS", str(status)).replace("WAIT", "for i in {1..200}; do sleep 0.1; done" * terminate)
    process = slurm(tmp_path, written("slurm"), step, "shapes-baseline")
    if terminate:
        while "ready" not in recorded(tmp_path) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == status
    assert ("terminated" in recorded(tmp_path)) == terminate
    assert any(line.startswith("requeue ") for line in recorded(tmp_path)) == requeued


def test_the_slurm_script_without_a_recipe_says_what_it_wants(written, tmp_path):
    _, err = slurm(tmp_path, written("slurm"), SRUN).communicate(timeout=60)
    assert err.decode() == "usage: sbatch slurm.sh RECIPE [arguments of hf-vlr train]\n"


@pytest.mark.slow
def test_the_run_commands_of_skypilot_train(tmp_path):
    names = {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_GPUS_PER_NODE": "2"}
    task = yaml.safe_load(TEXTS["skypilot"])
    words = task["envs"] | {"RECIPE": "shapes-baseline", "WORDS": "data.options.classes=4 " + " ".join(TINY[1:])}
    variables = environment(**names, **words, SKYPILOT_NODE_IPS="127.0.0.1\n127.0.0.2", RUNS=str(tmp_path / "runs"))
    command = ["bash", "-c", task["run"].replace("29500", str(free_port()))]
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "runs" / "shapes-baseline" / "model.safetensors").is_file()
