"""The first batch whose loss is not finite, found without waiting for the device."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_vlr.data.batches import EpochBatches
from hf_vlr.errors import UserError
from hf_vlr.training.checkpoints import last_checkpoint

SHOWN = 8


class FirstBad:
    """Remembers the first batch, by epoch and number, that was found to be bad; a tensor on the device until asked."""

    def __init__(self, device: torch.device) -> None:
        self.batch = torch.full((2,), -1, device=device)

    def note(self, bad: Tensor, epoch: int, batch: int) -> None:
        """Note a batch where `bad`, a boolean scalar, is true and none was noted before."""
        here = torch.tensor([epoch, batch], device=self.batch.device)
        self.batch = torch.where(bad & (self.batch[0] < 0), here, self.batch)

    def anywhere(self, accelerator: Accelerator) -> tuple[int, int] | None:
        """The first of all processes' batches; None where no batch was bad. All processes must ask together."""
        found = accelerator.gather(self.batch[None]).tolist()
        return min(((epoch, batch) for epoch, batch in found if epoch >= 0), default=None)


def diverged(
    what: str, step: int, bad: tuple[int, int] | None, keys: EpochBatches, lr: float, checkpoints: Path
) -> UserError:
    """The error of a run that has left the finite numbers: `what`, the batch `bad` that was first, what is kept."""
    where = f"near step {step}"
    if bad is not None:
        rows = keys.rows_of(*bad)
        shown = ", ".join(map(str, rows[:SHOWN])) + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")
        where = f"first at epoch {bad[0]}, batch {bad[1]} (training rows {shown})"
    kept = last_checkpoint(checkpoints)
    return UserError(
        f"{what}, {where}: lower optim.lr (now {lr:g}), check these images, "
        f"or train without mixed precision; {f'the checkpoint {kept} is kept' if kept else 'nothing is kept'}"
    )
