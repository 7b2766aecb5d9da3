"""Where a run stands, and what it has measured since it last said so."""

import math
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Progress:
    """Where a run stands, as every checkpoint keeps it.

    step: optimiser steps done. epoch, batch: the batch that comes next. seconds: of training, without validation.
    rows: trained on, over all processes. loss: the last one logged. sums: what has been added up since the last logged
    line, as (total, times). logged: seconds and rows at that line.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    rows: int = 0
    loss: float = math.nan
    sums: dict[str, list[float | Tensor]] = field(default_factory=dict)
    logged: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def add(self, parts: dict[str, Tensor], weight: float) -> None:
        """Add the parts of one batch, which is `weight` of a step."""
        for key, value in parts.items():
            total, times = self.sums.get(key, (0.0, 0.0))
            self.sums[key] = [total + weight * value.float(), times + weight]

    def take_means(self) -> dict[str, float]:
        """The means of all parts since the last call."""
        means = {key: float(total) / float(times) for key, (total, times) in self.sums.items()}
        self.sums = {}
        return means

    def take_speed(self) -> float:
        """Rows per second since the last call."""
        seconds, rows = self.logged
        self.logged = [self.seconds, float(self.rows)]
        return (self.rows - rows) / max(self.seconds - seconds, 1e-9)

    def advance(self, batches_per_epoch: int, rows: int) -> None:
        """One more batch of `rows` is done."""
        self.rows += rows
        self.batch += 1
        if self.batch == batches_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0
