"""What every part of a run shares."""

from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from hf_vlr.features import StateCache
from hf_vlr.training.options import Recipe


@dataclass(frozen=True)
class Context:
    """A recipe, the folder it is written to, the processes it runs on, and whether it goes on from a checkpoint."""

    recipe: Recipe
    folder: Path
    accelerator: Accelerator
    cache: StateCache
    resume: bool
