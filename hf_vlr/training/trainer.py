"""The one loop: batches of a task, on Accelerate, with checkpoints and exact resume."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from hf_vlr.errors import Stopped, UserError
from hf_vlr.randomness import seed_for
from hf_vlr.training.checkpoints import (
    CHECKPOINTS,
    UNREADABLE,
    last_checkpoint,
    read_checkpoint,
    unusable,
    write_checkpoint,
)
from hf_vlr.training.divergence import FirstBad, diverged
from hf_vlr.training.loaders import Batch, Batches
from hf_vlr.training.log import cut_log, peak_memory, write_line
from hf_vlr.training.optimizer import build_schedule
from hf_vlr.training.options import Recipe
from hf_vlr.training.parallel import share
from hf_vlr.training.progress import Progress
from hf_vlr.training.step import Step, at_once, in_pieces, in_two_passes
from hf_vlr.training.stop import StopSignal
from hf_vlr.training.tasks import Task
from hf_vlr.training.trackers import tracking


class Trainer:
    """Fits a task to its batches.

    Args:
        task: a `Task`; it is trained in place.
        batches: the loader, already cut to this rank's share.
        recipe: its `optim` and `train` sections are read here.
        folder: where `log.jsonl` and `checkpoints/` go.
        accelerator: device, processes and mixed precision.
        validation: batches whose loss is logged too, always the same ones; None for none.

    Dropout is reseeded at every batch from (seed, epoch, batch), so a resumed run repeats the interrupted one.
    """

    def __init__(
        self,
        task: Task,
        batches: Batches,
        recipe: Recipe,
        folder: Path,
        accelerator: Accelerator,
        validation: Batches | None = None,
    ) -> None:
        self.recipe, self.folder, self.accelerator, self.batches = recipe, folder, accelerator, batches
        self.checkpoints, self.validation = folder / CHECKPOINTS, validation
        options = recipe.train
        self.per_epoch = math.ceil(batches.batches_per_epoch / options.accumulation)
        self.total_steps = options.steps or options.epochs * self.per_epoch
        self.save_every = options.save_every or self.per_epoch
        self.task = task
        self.parallel = share(task, recipe, accelerator)
        self.wrapped, self.optimizer = self.parallel.wrapped, self.parallel.optimizer
        # not prepared: a prepared schedule steps once per process
        self.schedule = build_schedule(self.parallel.bare_optimizer, recipe.optim, self.total_steps)
        self.progress = Progress()
        self.stop = StopSignal()
        self.first_bad = FirstBad(accelerator.device)

    def fit(self, resume: bool = False) -> dict[str, float]:
        """Train to the last step and return `{"steps", "seconds", "loss"}`; `resume` goes on from the last checkpoint.

        Raises `UserError` when the loss or the weights are no longer finite (the checkpoint before stays), for a
        checkpoint that cannot be read or written, and `Stopped` after saving where a signal asks for it.
        """
        if resume:
            self._load_last()
        progress = self.progress
        # None: no bar where nobody watches a terminal; log lines are printed there instead
        hidden = None if self.accelerator.is_main_process else True
        self.wrapped.train()
        with (
            tracking(self.accelerator, self.recipe, self.folder, progress.step),
            self.stop,
            tqdm(
                total=self.total_steps, initial=progress.step, desc=self.recipe.task, unit="step", disable=hidden
            ) as bar,
        ):
            while progress.step < self.total_steps:
                self._epoch(bar)
        self.parallel.finish()
        return {"steps": progress.step, "seconds": progress.seconds, "loss": progress.loss}

    def _epoch(self, bar: tqdm) -> None:
        """Train to the end of an epoch, or of the run."""
        progress, options = self.progress, self.recipe.train
        self.task.start_epoch(progress.epoch, progress.batch)
        begun = time.perf_counter()
        for batch in self.batches.epoch(progress.epoch, progress.batch):
            stepped = self._batch(batch)
            progress.seconds += time.perf_counter() - begun
            if stepped:
                bar.update()
                done = progress.step == self.total_steps
                if progress.step % options.log_every == 0 or done:
                    self._log(bar)
                if self._validates(done):
                    self._validate()
                signal = self._signal()
                if progress.step % self.save_every == 0 or done or signal:
                    self._save()
                if done:
                    return
                if signal:
                    raise Stopped(signal, progress.step)
            begun = time.perf_counter()

    def _batch(self, batch: Batch) -> bool:
        """Forward and backward of one batch; returns whether the optimiser stepped."""
        accelerator, progress = self.accelerator, self.progress
        share, stepping = self.batches.share_of_step(progress.batch, self.recipe.train.accumulation)
        rows = int(batch["rows"])
        batch = {key: value.to(accelerator.device, non_blocking=True) for key, value in batch.items()}
        parts = self._forward_backward(batch, share, stepping)
        parts = {key: value.detach() for key, value in parts.items()}
        progress.add(parts, share)
        self.first_bad.note(~parts["loss"].isfinite(), progress.epoch, progress.batch)
        if stepping:
            self._update()
        progress.advance(self.batches.batches_per_epoch, rows)
        return stepping

    def _forward_backward(self, batch: Batch, share: float, stepping: bool) -> dict[str, Tensor]:
        accelerator, size = self.accelerator, self.recipe.train.micro_batch
        step = Step(self.batches.scale, accelerator.backward, accelerator.autocast, self._reseed)
        if not size:
            with self.parallel.backward_of(stepping):
                return at_once(step, self.wrapped, batch, share)
        if "blank" in batch or max(len(batch["labels"]), _texts(batch)) <= size:
            parts = at_once(step, self.task, batch, share)
        elif self.task.separable:
            parts = in_pieces(step, self.task, batch, share, size)
        else:
            parts = in_two_passes(step, self.task, batch, share, size)
        if stepping:
            self.parallel.after_pieces()
        return parts

    def _reseed(self, piece: int) -> None:
        progress, rank = self.progress, self.accelerator.process_index
        use = f"dropout/{rank}/{piece}" if piece else f"dropout/{rank}"
        torch.manual_seed(seed_for(self.recipe.seed, progress.epoch, progress.batch, use))

    def _update(self) -> None:
        """One step of the optimiser, with the norms of what it does where a line is due."""
        progress, options = self.progress, self.recipe.optim
        trained = [parameter for parameter in self.task.parameters() if parameter.requires_grad]
        logging = (progress.step + 1) % self.recipe.train.log_every == 0 or progress.step + 1 == self.total_steps
        self.parallel.after_backward()
        if options.clip_norm or logging:
            norm = self.parallel.clip(options.clip_norm or math.inf)
            progress.add({"grad_norm": norm.detach()}, 1.0)
            if self.accelerator.scaler is None:  # which skips such steps
                self.first_bad.note(~norm.isfinite(), progress.epoch, progress.batch)
        before = [parameter.detach().clone() for parameter in trained] if logging else []
        self.optimizer.step()
        if before:
            moved = [parameter.detach() - old for parameter, old in zip(trained, before, strict=True)]
            norms = {"update_norm": self.parallel.norm(moved), "parameter_norm": self.parallel.norm(trained)}
            progress.add(norms, 1.0)
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        self.task.after_step(progress.step / self.total_steps)

    def _log(self, bar: tqdm) -> None:
        """Write the means since the last line, over all processes; a loss that is not finite ends the run here."""
        progress = self.progress
        means = {key: round(value, 6) for key, value in self._everywhere(progress.take_means()).items()}
        progress.loss = means["loss"]
        if not math.isfinite(progress.loss):
            raise self._diverged(f"loss is {progress.loss}")
        speed = progress.take_speed()
        if not self.accelerator.is_main_process:
            return
        line = {"step": progress.step, "epoch": progress.epoch, **means, "lr": self.schedule.get_last_lr()[0]}
        line |= {"seconds": round(progress.seconds, 2), "rows_per_second": round(speed, 1)}
        line["peak_memory_mib"] = peak_memory()
        self._write(line)
        if bar.disable:
            print(f"{self.recipe.task} {progress.step}/{self.total_steps} loss {progress.loss:.3f}", flush=True)
        bar.set_postfix(loss=f"{progress.loss:.3f}")

    def _everywhere(self, values: dict[str, float]) -> dict[str, float]:
        """The mean of each value over all processes."""
        if not values:
            return {}
        mine = torch.tensor([*values.values()], device=self.accelerator.device).float()
        return dict(zip(values, self.accelerator.reduce(mine, reduction="mean").tolist(), strict=True))

    def _write(self, line: dict[str, float]) -> None:
        write_line(self.folder, line)
        self.accelerator.log({key: value for key, value in line.items() if key != "step"}, step=line["step"])

    def _validates(self, done: bool) -> bool:
        every = self.recipe.train.validate_every
        return self.validation is not None and (done or self.progress.step % (every or self.per_epoch) == 0)

    @torch.no_grad()
    def _validate(self) -> None:
        """Log the mean parts of the validation batches, with the model as it would predict."""
        found = Progress()
        with self._evaluating():
            for number, batch in enumerate(self.validation.epoch(0)):
                rows = int(batch["rows"])
                batch = {key: value.to(self.accelerator.device) for key, value in batch.items()}
                self._reseed(number)
                with self.accelerator.autocast():
                    parts = self.task(self.validation.scale(batch))
                found.add(parts, rows)
        means = self._everywhere(found.take_means())
        if self.accelerator.is_main_process:
            named = {f"validation_{key}": round(value, 6) for key, value in means.items()}
            self._write({"step": self.progress.step, "epoch": self.progress.epoch, **named})

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        self.wrapped.eval()
        try:
            yield
        finally:
            self.wrapped.train()

    def _signal(self) -> int:
        """The signal that asks the run to stop, else 0; processes agree where they meet anyway, at logged steps."""
        meeting = self.accelerator.num_processes == 1 or self.progress.step % self.recipe.train.log_every == 0
        return self.stop.everywhere(self.accelerator) if meeting else 0

    def _diverged(self, what: str) -> UserError:
        bad = self.first_bad.anywhere(self.accelerator)
        return diverged(what, self.progress.step, bad, self.batches.keys, self.recipe.optim.lr, self.checkpoints)

    @torch.no_grad()
    def _save(self) -> None:
        """One checkpoint, the same whatever the number of processes."""
        progress = self.progress
        # what has been added up belongs to all processes, since one checkpoint is for all
        totals = self._everywhere({key: float(total) for key, (total, _) in progress.sums.items()})
        progress.sums = {key: [totals[key], float(times)] for key, (_, times) in progress.sums.items()}
        # both: a loss is older than the weights of its step, and weights that are not finite may still have a loss
        trained = [parameter for parameter in self.task.parameters() if parameter.requires_grad]
        if not (math.isfinite(totals.get("loss", 0.0)) and self.parallel.norm(trained).isfinite()):
            raise self._diverged("the loss or a weight is not finite")
        problem, state = None, self._state()
        if self.accelerator.is_main_process:
            try:
                write_checkpoint(self.checkpoints, progress.step, state, self.recipe.train.keep)
            except UserError as error:
                problem = error
        failed = self._everywhere({"failed": float(problem is not None)})["failed"]
        if failed:
            raise problem or UserError("the first process could not write a checkpoint, and says why")

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return self.parallel.state() | {
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "progress": asdict(self.progress),
        }

    def _load_last(self) -> None:
        path = last_checkpoint(self.checkpoints)
        if path is not None:
            state = read_checkpoint(path)
            try:
                self.parallel.load(state)
                self.schedule.load_state_dict(state["schedule"])
                if self.accelerator.scaler:
                    self.accelerator.scaler.load_state_dict(state["scaler"])
                self.progress = Progress(**state["progress"])
            except UNREADABLE as error:
                raise unusable(path, error) from error
            self.task.progress = self.progress.step / self.total_steps
        if self.accelerator.is_main_process:
            cut_log(self.folder, self.progress.step)
        self.accelerator.wait_for_everyone()


def _texts(batch: Batch) -> int:
    """How many texts a batch holds."""
    return max((len(batch[key]) for key in ("input_ids", "text_states") if key in batch), default=0)
