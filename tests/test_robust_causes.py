"""What ends a run is named: the batch whose loss is not finite, the data-loading process that died and why."""

import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset

from hf_vlr.data.batches import EpochBatches
from hf_vlr.data.workers import obey_parent_only, worker_errors, worker_failure
from hf_vlr.errors import UserError
from hf_vlr.training.divergence import FirstBad
from hf_vlr.training.loaders import Batches
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import load_recipe, override_recipe, recipe_to_yaml
from hf_vlr.training.run_data import load_run_data
from hf_vlr.training.trainer import Trainer

TINY = (
    "data.options={classes: 8, unseen: 2, max_count: 8, imbalance: 2, size: 16, validation: 1, test: 1}",
    "data.texts=templates",
    "data.image_size=16",
    "data.max_text_length=16",
    "data.sampler=instance",
    "vision=scratch:resnet",
    "model.projection_dim=16",
    "model.num_anchors=4",
    "train.batch_size=12",
    "train.steps=10",
    "train.save_every=1",
    "train.log_every=5",
)
CACHED = ("data.cache_views=1", "model.freeze=vision_model,text_model")
BAD_BATCH = 2
# torch may have missed the signal where the process dies while it hands over a batch
ENDED = r"(?:was killed \(Killed\)|ended unexpectedly)"


def write_recipe(path: Path, *words: str) -> str:
    path.write_text(recipe_to_yaml(override_recipe(Recipe(task="unicl"), [*TINY, *words])))
    return str(path)


def poison(cache: Path, recipe: str) -> tuple[list[int], int]:
    """Make one image's stored state infinite; returns its batch's rows, and itself."""
    labels = load_run_data(load_recipe(recipe)).train.labels
    rows = EpochBatches(labels, 12, "instance", 0).rows_of(0, BAD_BATCH)
    stored = {path: load_file(path)["states"] for path in cache.glob("*.safetensors")}
    (path,) = (path for path, states in stored.items() if len(states) == len(labels))
    states = stored[path]
    assert states.isfinite().all()
    states[rows[-1], 0] = torch.inf
    save_file({"states": states}, path)
    return rows, rows[-1]


@pytest.mark.slow
@pytest.mark.parametrize("saves", ["saved", "logged"])
@pytest.mark.parametrize(
    ("processes", "words"),
    [
        (1, ()),
        # only the process that has the image sees a bad loss
        (2, ("task=recognition", "model.language=false", "optim.clip_norm=0")),
    ],
)
def test_the_batch_of_a_poisoned_image_is_named_by_every_process(processes, words, saves, children, tmp_path):
    cache, folder = tmp_path / "cache", tmp_path / "run"
    every = f"train.save_every={1 if saves == 'saved' else 5}"
    recipe = write_recipe(tmp_path / "mine.yaml", *CACHED, *words, every, f"data.cache_dir={cache}")
    assert children("train", recipe, "--out", str(tmp_path / "sound"), "train.steps=1")[0] == [0]
    rows, image = poison(cache, recipe)
    codes, said = children("train", recipe, "--out", str(folder), processes=processes)
    assert codes == [2] * processes, said
    errors = re.findall(r"^error(?: \[process \d\])?: (.*)$", said, re.M)
    assert len(errors) == processes and len(set(errors)) == 1
    shown = ", ".join(map(str, rows[:8])) + f" and {len(rows) - 8} more"
    assert f", first at epoch 0, batch {BAD_BATCH} (training rows {shown}): lower optim.lr" in errors[0]
    assert image in rows
    kept = folder / "checkpoints" / f"step-{BAD_BATCH:08d}.pt"
    if saves == "saved":
        assert errors[0].startswith("the loss or a weight is not finite, ")
        assert errors[0].endswith(f"the checkpoint {kept} is kept")
    else:
        assert errors[0].startswith("loss is nan, ")
        assert not folder.exists()


def test_the_first_of_several_bad_batches_is_remembered():
    accelerator = Accelerator(cpu=True)
    first = FirstBad(accelerator.device)
    assert first.anywhere(accelerator) is None
    for epoch, batch, bad in ((0, 0, False), (0, 7, True), (0, 8, True), (1, 0, True)):
        first.note(torch.tensor(bad), epoch, batch)
    assert first.anywhere(accelerator) == (0, 7)


class Cliff(nn.Module):
    """A task whose loss is finite everywhere, and whose gradient is not where the batch holds a 0."""

    separable = False

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.progress = nn.Parameter(torch.ones(1)), 0.0

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight * batch["labels"]).float().sqrt().sum()}

    def start_epoch(self, epoch: int, batch: int) -> None: ...

    def after_step(self, progress: float) -> None: ...


class Numbers(Batches):
    """Batches of the rows themselves."""

    def _read(self, epoch):
        for keys in self.keys:
            yield {"labels": torch.tensor([float(key.index) for key in keys])}


def test_a_gradient_that_is_not_finite_names_its_batch_and_not_the_next(tmp_path):
    keys = EpochBatches(torch.zeros(12, dtype=torch.int64).numpy(), 2, "instance", 0)
    guilty = next(batch for batch in range(keys.batches_per_epoch) if 0 in keys.rows_of(0, batch))
    words = ["train.log_every=6", "train.batch_size=2", "train.steps=12", "optim.clip_norm=1"]
    recipe = override_recipe(Recipe(task="recognition"), words)
    with pytest.raises(UserError, match=rf"loss is nan, first at epoch 0, batch {guilty} \(training rows "):
        Trainer(Cliff(), Numbers(keys), recipe, tmp_path, Accelerator(cpu=True)).fit()


class Polite(Dataset):
    """Items of a data set, whose third one asks its own process to end."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return torch.tensor(index)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("photo.jpg: no image; remove it"), "photo.jpg: no image; remove it"),
        (OSError(5, "Input/output error"), "OSError: [Errno 5] Input/output error"),
        (ValueError("image file is truncated\n(3 bytes)"), "ValueError: image file is truncated"),
        (KeyError("caption"), "KeyError: 'caption'"),
        (EOFError("no more"), "EOFError: no more"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no text"), "UnicodeDecodeError: 'utf-8' codec can't decode byte"),
    ],
)
def test_an_error_in_a_data_loading_process_is_one_line(error, said):
    try:
        raise error
    except type(error):
        sent = ExceptionWrapper(sys.exc_info(), where="in DataLoader worker process 1")  # as torch sends it to us
    with pytest.raises(UserError) as caught, worker_errors():
        sent.reraise()
    lead, end = ("", "") if isinstance(error, UserError) else ("a data-loading process failed: ", "HF_VLR_DEBUG=1")
    assert str(caught.value).startswith(lead + said)
    assert end in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("is killed by signal: Killed. ", "was killed (Killed), most often for want of memory: lower data.workers"),
        (
            "is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory.",
            "was killed (Bus error), most often for want of shared memory: enlarge /dev/shm, or lower data.workers",
        ),
        (
            "is killed by signal: Aborted. ",
            "was killed (Aborted), data.workers=0 does its work in the training process",
        ),
        ("exited unexpectedly with exit code 1.", "ended unexpectedly, most often for want of memory: lower data.work"),
    ],
)
def test_the_death_of_a_data_loading_process_is_told_with_a_remedy(words, said):
    told = str(worker_failure(RuntimeError(f"DataLoader worker (pid 12) {words}")))
    assert told.startswith(f"a data-loading process, pid 12, {said}")


def test_of_two_reports_of_one_death_the_one_with_the_signal_counts():
    error = RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly")
    error.__cause__ = RuntimeError("DataLoader worker (pid 12) is killed by signal: Aborted. ")
    assert "pid 12, was killed (Aborted), " in str(worker_failure(error))


def test_other_errors_stay_what_they_are():
    for error in (KeyError("caption"), RuntimeError("of the model"), RuntimeError(), OSError(5, "Input/output error")):
        with pytest.raises(type(error)) as caught, worker_errors():
            raise error
        assert caught.value is error


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system does not say who sent a signal")
def test_a_data_loading_process_obeys_its_parent_alone():
    batches = iter(DataLoader(Polite(), batch_size=2, num_workers=1, worker_init_fn=obey_parent_only))
    (worker,) = batches._workers
    assert [batch.tolist() for batch in batches][:2] == [[0, 1], [2, 3]]
    assert worker.exitcode == 0
    batches = iter(DataLoader(Polite(), batch_size=2, num_workers=1, worker_init_fn=obey_parent_only))
    next(batches)
    (worker,) = batches._workers
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


@pytest.mark.slow
def test_a_killed_data_loading_process_ends_the_run_in_one_line(children, tmp_path):
    recipe, folder = write_recipe(tmp_path / "mine.yaml", "data.workers=2", "train.log_every=1"), tmp_path / "run"
    codes, said = children("train", recipe, "--out", str(folder), at=("batch", 4, "worker SIGKILL"))
    assert codes == [2], said
    last = said.rstrip().splitlines()[-1]
    assert re.fullmatch(
        rf"error: a data-loading process, pid \d+, {ENDED}, most .* memory: lower data\.workers.*", last
    )
    assert "Traceback" not in said
    assert children("train", recipe, "--out", str(folder), "--resume")[0] == [0]
