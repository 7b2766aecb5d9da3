"""On what is measured: the device, the threads, and how large."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Setting:
    """size: numbers by name, as the contest lists them. scale: which of its sizes that is, `full` or `quick`."""

    device: torch.device
    threads: int
    size: Mapping[str, int]
    scale: str = "full"
    seed: int = 0

    def __getitem__(self, name: str) -> int:
        return self.size[name]

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"

    def generator(self) -> torch.Generator:
        """A fresh generator on the CPU; inputs are drawn there, so that they are the same on every device."""
        return torch.Generator().manual_seed(self.seed)
