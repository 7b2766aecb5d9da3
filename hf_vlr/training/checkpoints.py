"""Checkpoints of a run: one file each, complete or absent, read without executing anything in it."""

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from hf_vlr.errors import UserError

CHECKPOINTS = "checkpoints"
# what torch.load and load_state_dict raise on files that are damaged or belong to something else
UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, AttributeError, UnpicklingError)


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the most steps in `folder`; files that were not finished do not count."""
    return max(folder.glob("step-*.pt"), default=None)


def write_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Write `state` (tensors, numbers, texts, lists and dictionaries) and keep the last `keep` checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob(".step-*.partial"):
        left_over.unlink()
    target = folder / f"step-{step:08d}.pt"
    partial = folder / f".{target.name}.partial"
    torch.save(state, partial)
    os.replace(partial, target)
    for old in sorted(folder.glob("step-*.pt"))[:-keep]:
        old.unlink()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `write_checkpoint` wrote, on the CPU; raises `UserError` naming a file that is damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise unusable(path, error) from error


def unusable(path: Path, error: Exception) -> UserError:
    """The error of a checkpoint that cannot be resumed from."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(
        f"checkpoint {path} cannot be resumed from ({reason[:120]}); delete it, and --resume takes the one before"
    )
