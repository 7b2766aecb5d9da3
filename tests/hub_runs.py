"""Folders as runs leave them, around the tiny models, full of paths of this machine; and clients of the local Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from hf_vlr.evaluation.predictions import Predictions
from hf_vlr.evaluation.record import record
from hf_vlr.training.options import EvalOptions, Recipe
from hf_vlr.training.recipe import override_recipe, recipe_to_yaml

COUNTS = np.array([120, 60, 25, 7, 1])
TEXTS = (
    (0, "a fox with red fur", "a book", "CC-BY-4.0"),
    (0, "a photo of a red fox", "templates", "CC0-1.0"),
    (1, "a photo of an arctic fox", "templates", "CC0-1.0"),
    (2, "a grey wolf in a pack", "a book", "CC-BY-4.0"),
)
# lines of JSON, arguments of push_run, on stdin become lines on stdout: what it said, then the URL or the error
PUSH = """
import json, sys
from hf_vlr.errors import UserError
from hf_vlr.hub import connection, push_run
connection.WAITS = (0.05, 0.05, 0.05)
for line in sys.stdin:
    said = []
    try:
        url = push_run(**json.loads(line), say=said.append)
        print(json.dumps({"url": url, "said": said}), flush=True)
    except UserError as error:
        print(json.dumps({"error": str(error), "said": said}), flush=True)
"""


def make_run(tiny: ModuleType, folder: Path, *words: str, model: Any = None, texts: tuple = TEXTS) -> Path:
    """A finished, measured recogniser of five classes (or another model), whose recipe begins from other folders."""
    folder.mkdir(parents=True)
    home = folder.parent
    settings = [f"output={folder}", f"data.source=imagefolder:{home}/my photos", f"model.init={home}/stage1"]
    settings += [f"data.texts=templates+{home}/books/texts.jsonl", f"data.cache_dir={home}/cache", "train.steps=6"]
    recipe = override_recipe(Recipe(task="recognition"), [*settings, *words])
    (folder / "recipe.yaml").write_text(recipe_to_yaml(recipe), encoding="utf-8")
    lines = [{"label": label, "text": text, "source": source, "license": owned} for label, text, source, owned in texts]
    write_lines(folder / "texts.jsonl", lines)
    log = [{"step": step, "epoch": 0, "loss": 3.0 / step, "peak_memory_mib": 512} for step in (2, 4, 6)]
    write_lines(folder / "log.jsonl", log)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-00000006.pt").write_bytes(b"not for the world")
    measure(tiny, folder, recipe)
    tiny.processor().save_pretrained(folder)
    (model or tiny.recogniser()).save_pretrained(folder)
    return folder


def measure(tiny: ModuleType, folder: Path, recipe: Recipe, **stated: Any) -> dict[str, Any]:
    """Measure seeded scores of 40 images into `folder`, as a run does; `stated` changes the protocol."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 5
    truth = np.eye(5)[labels] * 3
    scores = {name: truth + rng.normal(size=(40, 5)) * noise for name, noise in
              (("fused", 1.0), ("visual", 1.5), ("language", 2.0))}  # fmt: skip
    protocol = {
        "split": "test", "resolution": 32, "test_time_augmentation": None, "seed": 0, "source": recipe.data.source,
        "pretraining": f"timm:resnet50 + hf:{folder.parent}/clip", "texts": recipe.data.texts,
        "task": recipe.task, "device": "CPU, 1 thread", "training": {"steps": 6, "seconds": 90.0, "loss": 0.5},
    }  # fmt: skip
    known = (labels, COUNTS, tiny.CLASS_NAMES, protocol | stated)
    return record(Predictions(scores, *known), folder, EvalOptions(resamples=50))


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def client(hub: Any, home: Path, *command: str, given: str = "", cwd: Path | None = None, **changes: str) -> str:
    """The output of a python process that takes `hub` for the Hub; it must end well."""
    process = start(hub, home, *command, cwd=cwd, **changes)
    out, errors = process.communicate(given, timeout=180)
    assert process.returncode == 0, errors[-4000:]
    return out


def start(hub: Any, home: Path, *command: str, cwd: Path | None = None, **changes: str) -> subprocess.Popen:
    """Such a process, under way."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= hub.environment(home) | changes
    pipe = subprocess.PIPE
    command = [sys.executable, *command]
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=cwd)


def push(hub: Any, home: Path, *requests: dict[str, Any], **changes: str) -> list[dict[str, Any]]:
    """What comes of each `push_run(**request)`, one after the other in one process."""
    given = "\n".join(json.dumps(request) for request in requests)
    return [json.loads(line) for line in client(hub, home, "-c", PUSH, given=given, **changes).splitlines()]
