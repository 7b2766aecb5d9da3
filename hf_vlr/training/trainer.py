"""The one loop: batches of a task, on Accelerate, with checkpoints and exact resume."""

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from hf_vlr.errors import UserError
from hf_vlr.randomness import seed_for
from hf_vlr.training.loaders import Batch
from hf_vlr.training.optimizer import build_optimizer, build_schedule
from hf_vlr.training.options import Recipe
from hf_vlr.training.tasks import Task


class Batches(Protocol):
    """What the loop asks of a loader."""

    batches_per_epoch: int

    def epoch(self, epoch: int, start_batch: int = 0): ...


class Progress:
    """Where a run stands: optimiser steps done, and the batch that comes next. Saved with every checkpoint."""

    def __init__(self) -> None:
        self.step = 0
        self.epoch = 0
        self.batch = 0
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Trainer:
    """Fits a task to its batches.

    Args:
        task: a `Task`; it is trained in place.
        batches: the loader, already cut to this rank's share.
        recipe: its `optim` and `train` sections are read here.
        folder: where `log.jsonl` and `checkpoints/` go.
        accelerator: device, processes, mixed precision and accumulation.

    Dropout is reseeded at every batch from (seed, epoch, batch), so a resumed run repeats the interrupted one.
    """

    def __init__(self, task: Task, batches: Batches, recipe: Recipe, folder: Path, accelerator: Accelerator) -> None:
        self.recipe, self.folder, self.accelerator, self.batches = recipe, folder, accelerator, batches
        options = recipe.train
        per_epoch = math.ceil(batches.batches_per_epoch / options.accumulation)
        self.total_steps = options.steps or options.epochs * per_epoch
        self.save_every = options.save_every or per_epoch
        optimizer = build_optimizer(task.model, recipe.optim)
        self.task = task
        if options.compile:
            task.compile()  # in place: the names in the state dict stay
        self.wrapped, self.optimizer = accelerator.prepare(task, optimizer)
        # not prepared: a prepared schedule steps once per process
        self.schedule = build_schedule(optimizer, recipe.optim, self.total_steps)
        self.progress = Progress()
        accelerator.register_for_checkpointing(self.progress, self.schedule)

    def fit(self, resume: bool = False) -> dict[str, float]:
        """Train to the last step and return `{"steps", "seconds", "loss"}`; `resume` goes on from the last checkpoint.

        Raises `UserError` when the loss is no longer finite; the checkpoint before it stays.
        """
        if resume:
            self._load_last()
        progress, started = self.progress, time.perf_counter() - self.progress.seconds
        bar = tqdm(
            total=self.total_steps,
            initial=progress.step,
            desc=self.recipe.task,
            unit="step",
            # None: no bar where nobody watches a terminal; log lines are printed there instead
            disable=None if self.accelerator.is_main_process else True,
        )
        self.wrapped.train()
        running: dict[str, Tensor] = {}
        loss = math.nan
        while progress.step < self.total_steps:
            for batch in self.batches.epoch(progress.epoch, progress.batch):
                parts, stepped = self._batch(batch)
                progress.batch += 1
                running = {key: running.get(key, 0) + value.float() for key, value in parts.items()} | {
                    "batches": running.get("batches", 0) + 1
                }
                if not stepped:
                    continue
                progress.step += 1
                progress.seconds = time.perf_counter() - started
                bar.update()
                if progress.step % self.recipe.train.log_every == 0 or progress.step == self.total_steps:
                    loss = self._log(running, bar)
                    running = {}
                self._end_of_epoch()
                if progress.step % self.save_every == 0 or progress.step == self.total_steps:
                    self._save(loss)
                if progress.step == self.total_steps:
                    break
            self._end_of_epoch()
        bar.close()
        return {"steps": progress.step, "seconds": progress.seconds, "loss": loss}

    def _end_of_epoch(self) -> None:
        if self.progress.batch >= self.batches.batches_per_epoch:
            self.progress.epoch, self.progress.batch = self.progress.epoch + 1, 0

    def _batch(self, batch: Batch) -> tuple[dict[str, Tensor], bool]:
        """Forward and backward of one batch; returns what to log and whether the optimiser stepped."""
        accelerator, options, progress = self.accelerator, self.recipe.train, self.progress
        torch.manual_seed(
            seed_for(self.recipe.seed, progress.epoch, progress.batch, f"dropout/{accelerator.process_index}")
        )
        batch = {key: value.to(accelerator.device, non_blocking=True) for key, value in batch.items()}
        last = progress.batch + 1 == self.batches.batches_per_epoch
        stepping = (progress.batch + 1) % options.accumulation == 0 or last
        with accelerator.autocast():
            parts = self.wrapped(batch)
        accelerator.backward(parts["loss"] / options.accumulation)
        if stepping:
            if self.recipe.optim.clip_norm:
                parts["grad_norm"] = accelerator.clip_grad_norm_(self.task.parameters(), self.recipe.optim.clip_norm)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.task.after_step()
        return {key: value.detach() for key, value in parts.items()}, stepping

    def _log(self, running: dict[str, Any], bar: tqdm) -> float:
        """Write the means since the last line; a loss that is not finite ends the run here."""
        count = running.pop("batches")
        means = {key: round(float(value) / count, 6) for key, value in running.items()}
        self._check_finite(means["loss"])
        if self.accelerator.is_main_process:
            line = {
                "step": self.progress.step,
                "epoch": self.progress.epoch,
                **means,
                "lr": self.schedule.get_last_lr()[0],
                "seconds": round(self.progress.seconds, 2),
            }
            if torch.cuda.is_available():
                line["peak_memory_mib"] = torch.cuda.max_memory_allocated() // 2**20
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            if bar.disable:
                print(
                    f"{self.recipe.task} {self.progress.step}/{self.total_steps} loss {means['loss']:.3f}",
                    flush=True,
                )
            bar.set_postfix(loss=f"{means['loss']:.3f}")
        return means["loss"]

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"loss is {loss} near step {self.progress.step}: lower optim.lr (now {self.recipe.optim.lr:g}), check "
                f"the images, or train without mixed precision; the last good checkpoint is kept in {self.folder}"
            )

    def _save(self, loss: float) -> None:
        """One checkpoint, complete or absent; older ones beyond `train.keep` are removed."""
        if not math.isnan(loss):
            self._check_finite(loss)
        checkpoints = self.folder / "checkpoints"
        target = checkpoints / f"step-{self.progress.step:08d}"
        partial = checkpoints / f".{target.name}.partial"
        self.accelerator.save_state(str(partial))
        if self.accelerator.is_main_process:
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)
            for old in sorted(checkpoints.glob("step-*"))[: -self.recipe.train.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _load_last(self) -> None:
        found = sorted((self.folder / "checkpoints").glob("step-*"))
        if found:
            self.accelerator.load_state(str(found[-1]))
