"""Checkpoints of a run: one file each, complete or absent, read without executing anything in it."""

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from hf_vlr.disk import writing
from hf_vlr.errors import UserError

CHECKPOINTS = "checkpoints"
START_AGAIN = "mend that and start again"
# what torch.load and load_state_dict raise on files that are damaged or belong to something else
UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, AttributeError, UnpicklingError)


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the most steps in `folder`; files that were not finished do not count."""
    return max(folder.glob("step-*.pt"), default=None)


def way_on(folder: Path) -> str:
    """What to do about a run that could not write: go on from the last checkpoint in `folder`, if there is one."""
    kept = last_checkpoint(folder)
    return f"mend that, then --resume goes on from {kept}" if kept else START_AGAIN


def write_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Write `state` (tensors, numbers, texts, lists and dictionaries) and keep the last `keep` checkpoints.

    Raises `UserError` where the disk is full: the checkpoints before stay, nothing half-written does.
    """
    target = folder / f"step-{step:08d}.pt"
    partial = folder / f".{target.name}.partial"
    with writing(target, way_on(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob(".step-*.partial"):
            left_over.unlink()
        try:
            _write(partial, state)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        for old in sorted(folder.glob("step-*.pt"))[:-keep]:
            old.unlink()


def _write(path: Path, state: dict[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        # before the file gets its name: a machine that loses power must not leave a name without content
        os.fsync(file.fileno())


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
