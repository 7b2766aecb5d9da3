"""The one loop: batches of a task, on Accelerate, with checkpoints and exact resume."""

import json
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import get_total_norm
from tqdm import tqdm

from hf_vlr.errors import UserError
from hf_vlr.randomness import seed_for
from hf_vlr.training.checkpoints import (
    CHECKPOINTS,
    UNREADABLE,
    last_checkpoint,
    read_checkpoint,
    unusable,
    write_checkpoint,
)
from hf_vlr.training.loaders import Batch, Batches
from hf_vlr.training.optimizer import build_optimizer, build_schedule
from hf_vlr.training.options import Recipe
from hf_vlr.training.tasks import Task

LOG_FILE = "log.jsonl"


@dataclass
class Progress:
    """Where a run stands, as every checkpoint keeps it.

    step: optimiser steps done. epoch, batch: the batch that comes next. loss: the last one logged. sums: what has been
    added up since the last logged line, as (total, times).
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    sums: dict[str, list[float | Tensor]] = field(default_factory=dict)

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


class Trainer:
    """Fits a task to its batches.

    Args:
        task: a `Task`; it is trained in place.
        batches: the loader, already cut to this rank's share.
        recipe: its `optim` and `train` sections are read here.
        folder: where `log.jsonl` and `checkpoints/` go.
        accelerator: device, processes and mixed precision.

    Dropout is reseeded at every batch from (seed, epoch, batch), so a resumed run repeats the interrupted one.
    """

    def __init__(self, task: Task, batches: Batches, recipe: Recipe, folder: Path, accelerator: Accelerator) -> None:
        self.recipe, self.folder, self.accelerator, self.batches = recipe, folder, accelerator, batches
        self.checkpoints = folder / CHECKPOINTS
        options = recipe.train
        per_epoch = math.ceil(batches.batches_per_epoch / options.accumulation)
        self.total_steps = options.steps or options.epochs * per_epoch
        self.save_every = options.save_every or per_epoch
        optimizer = build_optimizer(task.model, recipe.optim)
        self.task = task
        self.wrapped, self.optimizer = accelerator.prepare(task, optimizer)
        # not prepared: a prepared schedule steps once per process
        self.schedule = build_schedule(optimizer, recipe.optim, self.total_steps)
        self.progress = Progress()

    def fit(self, resume: bool = False) -> dict[str, float]:
        """Train to the last step and return `{"steps", "seconds", "loss"}`; `resume` goes on from the last checkpoint.

        Raises `UserError` when the loss or the weights are no longer finite (the checkpoint before stays), and for a
        checkpoint that cannot be read.
        """
        if resume:
            self._load_last()
        progress, started = self.progress, time.perf_counter() - self.progress.seconds
        options = self.recipe.train
        # None: no bar where nobody watches a terminal; log lines are printed there instead
        hidden = None if self.accelerator.is_main_process else True
        self.wrapped.train()
        with tqdm(
            total=self.total_steps, initial=progress.step, desc=self.recipe.task, unit="step", disable=hidden
        ) as bar:
            while progress.step < self.total_steps:
                for batch in self.batches.epoch(progress.epoch, progress.batch):
                    if not self._batch(batch):
                        continue
                    progress.seconds = time.perf_counter() - started
                    bar.update()
                    done = progress.step == self.total_steps
                    if progress.step % options.log_every == 0 or done:
                        self._log(bar)
                    if progress.step % self.save_every == 0 or done:
                        self._save()
                    if done:
                        break
        return {"steps": progress.step, "seconds": progress.seconds, "loss": progress.loss}

    def _batch(self, batch: Batch) -> bool:
        """Forward and backward of one batch; returns whether the optimiser stepped."""
        accelerator, progress = self.accelerator, self.progress
        share, stepping = self.batches.share_of_step(progress.batch, self.recipe.train.accumulation)
        torch.manual_seed(
            seed_for(self.recipe.seed, progress.epoch, progress.batch, f"dropout/{accelerator.process_index}")
        )
        batch = {key: value.to(accelerator.device, non_blocking=True) for key, value in batch.items()}
        # gradients are exchanged once per step
        with nullcontext() if stepping else accelerator.no_sync(self.wrapped):
            with accelerator.autocast():
                parts = self.wrapped(batch)
            accelerator.backward(share * parts["loss"])
        progress.add({key: value.detach() for key, value in parts.items()}, share)
        progress.batch += 1
        if progress.batch == self.batches.batches_per_epoch:
            progress.epoch, progress.batch = progress.epoch + 1, 0
        if stepping:
            if self.recipe.optim.clip_norm:
                norm = accelerator.clip_grad_norm_(self.task.parameters(), self.recipe.optim.clip_norm)
                progress.add({"grad_norm": norm.detach()}, 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.task.after_step()
            progress.step += 1
        return stepping

    def _log(self, bar: tqdm) -> None:
        """Write the means since the last line, over all processes; a loss that is not finite ends the run here."""
        progress, device = self.progress, self.accelerator.device
        means = progress.take_means()
        everywhere = self.accelerator.reduce(torch.tensor([*means.values()], device=device).float(), reduction="mean")
        means = {key: round(value, 6) for key, value in zip(means, everywhere.tolist(), strict=True)}
        progress.loss = means["loss"]
        if not math.isfinite(progress.loss):
            raise self._diverged(f"loss is {progress.loss}")
        if not self.accelerator.is_main_process:
            return
        line = {"step": progress.step, "epoch": progress.epoch, **means, "lr": self.schedule.get_last_lr()[0]}
        line["seconds"] = round(progress.seconds, 2)
        if torch.cuda.is_available():
            line["peak_memory_mib"] = torch.cuda.max_memory_allocated() // 2**20
        with (self.folder / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if bar.disable:
            print(f"{self.recipe.task} {progress.step}/{self.total_steps} loss {progress.loss:.3f}", flush=True)
        bar.set_postfix(loss=f"{progress.loss:.3f}")

    def _diverged(self, what: str) -> UserError:
        kept = last_checkpoint(self.checkpoints)
        return UserError(
            f"{what} near step {self.progress.step}: lower optim.lr (now {self.recipe.optim.lr:g}), check the images, "
            f"or train without mixed precision; {f'the checkpoint {kept} is kept' if kept else 'nothing is kept'}"
        )

    @torch.no_grad()
    def _save(self) -> None:
        """One checkpoint, the same whatever the number of processes."""
        progress = self.progress
        loss, _ = progress.sums.get("loss", (0.0, 0.0))
        # both: a loss is older than the weights of its step, and weights that are not finite may still have a loss
        trained = [parameter for parameter in self.task.parameters() if parameter.requires_grad]
        if not (math.isfinite(loss) and get_total_norm(trained).isfinite()):
            raise self._diverged("the loss or a weight is not finite")
        if self.accelerator.is_main_process:
            progress.sums = {key: [float(total), float(times)] for key, (total, times) in progress.sums.items()}
            scaler = self.accelerator.scaler
            state = {
                "model": self.task.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": scaler.state_dict() if scaler else {},
                "progress": asdict(progress),
            }
            write_checkpoint(self.checkpoints, progress.step, state, self.recipe.train.keep)
        self.accelerator.wait_for_everyone()

    def _load_last(self) -> None:
        path = last_checkpoint(self.checkpoints)
        if path is not None:
            state = read_checkpoint(path)
            try:
                self.task.model.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.schedule.load_state_dict(state["schedule"])
                if self.accelerator.scaler:
                    self.accelerator.scaler.load_state_dict(state["scaler"])
                self.progress = Progress(**state["progress"])
            except UNREADABLE as error:
                raise unusable(path, error) from error
        if self.accelerator.is_main_process:
            self._cut_log()
        self.accelerator.wait_for_everyone()

    def _cut_log(self) -> None:
        """Drop the lines written after the checkpoint: those steps are taken again."""
        path = self.folder / LOG_FILE
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            path.write_text("".join(_until(lines, self.progress.step)), encoding="utf-8")


def _until(lines: list[str], step: int) -> list[str]:
    """The complete lines of a log up to a step."""
    kept = []
    for line in lines:
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    return kept
