"""`log.jsonl`, one line a measurement.

A line of training says, of the steps since the one before: `step` and `epoch` where it was written; the means of the
task's parts (`loss`, and what it is made of) and of `grad_norm`, before clipping; of the last step alone `update_norm`
and `parameter_norm`, Euclidean norms over all trained parameters; `lr` of the first parameter group for the step to
come; `seconds` of training since the run began; `rows_per_second` over all processes; `peak_memory_mib` of the first
process. Without `optim.clip_norm` the gradient's norm is that of the last step too. A line of validation says `step`,
`epoch` and the parts with `validation_` before their names; a choice of anchors (task=joint) has a line of its own. A
number that is not finite is null.
"""

import json
import math
import os
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from hf_vlr.disk import writing
from hf_vlr.training.checkpoints import CHECKPOINTS, way_on

LOG_FILE = "log.jsonl"


def write_line(folder: Path, line: dict[str, Any]) -> None:
    """Append one measurement to a run's log; raises `UserError` where the disk is full."""
    finite = {key: value if math.isfinite(value) else None for key, value in line.items()}
    path = folder / LOG_FILE
    with writing(path, way_on(folder / CHECKPOINTS)), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(finite) + "\n")


def cut_log(folder: Path, step: int) -> None:
    """Drop the lines of later steps, and a torn one: those steps are taken again."""
    path = folder / LOG_FILE
    if not path.is_file():
        return
    kept = 0
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n") or _step(line) > step:
            break
        kept += len(line)
    # in place: neither a full disk nor the end of the process can lose the lines before
    os.truncate(path, kept)


def _step(line: bytes) -> float:
    """The step of a line, infinite for one that is damaged."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def peak_memory() -> int:
    """The most memory this process has held, in MiB: of the accelerator's allocator, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() // 2**20
    # kilobytes, and bytes on macOS
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
