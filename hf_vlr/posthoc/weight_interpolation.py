"""Weights between a zero-shot and a fine-tuned model (WiSE-FT: Wortsman et al., CVPR 2022).

θ = (1 − a) θ_zero-shot + a θ_fine-tuned, tensor by tensor, of two model folders of one architecture.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hf_vlr.errors import UserError
from hf_vlr.posthoc.scores import Ints, checked_labels, checked_scores
from hf_vlr.posthoc.tuning import Tuned, choose, image_weights, mean_loss

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
GRID = tuple(round(0.1 * step, 1) for step in range(11))
# what a folder needs besides its weights, and what was true of the fine-tuned model only
_TAKEN = (".json", ".jsonl", ".yaml", ".txt", ".model", ".jinja", ".py")
_LEFT = ("metrics.json", "log.jsonl", "trainer_state.json", "interpolation.json")
# counts batches, and differs between any two trainings
_COUNTERS = ("num_batches_tracked",)


def interpolate(zero_shot: str | Path, fine_tuned: str | Path, weight: float, output: str | Path) -> Path:
    """Write the model at a = `weight` in [0, 1] between two folders to the folder `output`, and return it.

    Floating-point tensors, the running statistics of batch norms too, are mixed in float64 and written in the wider
    dtype of the two; a = 0 and a = 1 give a model's own bits. Other tensors (counts, masks) must be equal: where they
    differ the models were made for different data. Shards, configurations, processors, tokenizers, class texts and
    code are the fine-tuned model's; what it logged and measured is not taken along. Raises `UserError` for a weight
    outside [0, 1], an `output` that is not empty, a folder without safetensors, and tensors that differ in name, shape
    or kind, naming the first.
    """
    if not 0.0 <= weight <= 1.0:
        raise UserError(f"weight is {weight}: give the fine-tuned model's share, between 0 and 1")
    zero_shot, fine_tuned, output = Path(zero_shot), Path(fine_tuned), Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists already: name a new folder")
    with _opened(zero_shot) as first, _opened(fine_tuned) as second:
        _check_same(first, second)
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as partial:
            _write(first, second, weight, fine_tuned, Path(partial))
            output.mkdir(exist_ok=True)
            for file in sorted(Path(partial).iterdir(), key=lambda path: path.name == "config.json"):
                os.replace(file, output / file.name)
    return output


def sweep(
    zero_shot: str | Path,
    fine_tuned: str | Path,
    score: Callable[[Path], npt.ArrayLike],
    labels: npt.ArrayLike,
    *,
    split: str,
    grid: Sequence[float] = GRID,
    criterion: str = "balanced-nll",
) -> Tuned:
    """The a of `grid` whose model suits tuning images best; of several the nearest to 1, the fine-tuned model.

    `score(folder)` gives the scores [N, C] of the tuning images by the model in a folder, `labels` [N] their classes,
    `split` what they are called. Criteria as in `tuning.search`. Models are written to a temporary folder one at a
    time. Raises `UserError` as `interpolate` and for scores that do not fit.
    """
    image_weights(np.asarray(labels), criterion)
    totals = []
    for weight in grid:
        with TemporaryDirectory(prefix="interpolated-") as folder:
            scores = checked_scores(score(interpolate(zero_shot, fine_tuned, weight, Path(folder) / "model")))
        known: Ints = checked_labels(labels, scores.shape)
        totals.append(mean_loss(scores, known, criterion))
    return choose("weight", grid, totals, criterion, neutral=1.0, limits=(0.0, 1.0), split=split, images=len(known))


def mixed_tensor(zero_shot: "Tensor", fine_tuned: "Tensor", weight: float) -> "Tensor":
    """(1 − a) z + a f of two tensors of one shape, in the wider dtype; their own bits at a = 0 and 1."""
    import torch

    dtype = torch.promote_types(zero_shot.dtype, fine_tuned.dtype)
    if weight in (0.0, 1.0) or not fine_tuned.is_floating_point():
        return (fine_tuned if weight else zero_shot).to(dtype)
    return ((1.0 - weight) * zero_shot.double() + weight * fine_tuned.double()).to(dtype)


def _write(first: "_Weights", second: "_Weights", weight: float, source: Path, target: Path) -> None:
    """Every shard of the second model with mixed tensors, and the files beside them that a model is loaded with."""
    from safetensors.torch import save_file

    for shard, names in second.shards.items():
        tensors = {name: mixed_tensor(first.tensor(name), second.tensor(name), weight) for name in names}
        save_file(tensors, target / shard, metadata={"format": "pt"})
    for file in source.iterdir():
        if file.is_file() and file.suffix in _TAKEN and file.name not in _LEFT:
            shutil.copyfile(file, target / file.name)


class _Weights:
    """The open weights of a model folder. shards: names of tensors by file."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        self.files: dict[str, Any] = {}
        self.shards: dict[str, list[str]] = {}
        for name in _shard_names(folder):
            try:
                file = stack.enter_context(safe_open(folder / name, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise UserError(f"{folder / name} cannot be read as safetensors: {error}") from error
            self.shards[name] = list(file.keys())
            self.files |= dict.fromkeys(self.shards[name], file)

    def tensor(self, name: str) -> "Tensor":
        return self.files[name].get_tensor(name)

    def shape(self, name: str) -> list[int]:
        return self.files[name].get_slice(name).get_shape()

    def is_float(self, name: str) -> bool:
        return self.files[name].get_slice(name).get_dtype().startswith(("F", "BF"))


@contextmanager
def _opened(folder: Path) -> Iterator[_Weights]:
    with ExitStack() as stack:
        yield _Weights(folder, stack)


def _shard_names(folder: Path) -> list[str]:
    if (folder / WEIGHTS_FILE).is_file():
        return [WEIGHTS_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        raise UserError(f"{folder} holds no {WEIGHTS_FILE}: name the folder of a model, as save_pretrained writes it")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of weights: {error}") from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise UserError(f"{index} names {outside[0]}, which is not a file of the same folder")
    return names


def _check_same(first: _Weights, second: _Weights) -> None:
    """Raise `UserError` unless both models have the same tensors, in shape and kind."""
    for one, other in ((first, second), (second, first)):
        missing = sorted(one.files.keys() - other.files.keys())
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"{other.folder} has no {missing[0]}{more}, which {one.folder} has: give two models of one "
                "architecture, as before and after fine-tuning"
            )
    for name in second.files:
        shapes = first.shape(name), second.shape(name)
        if shapes[0] != shapes[1]:
            raise UserError(f"{name} is {shapes[0]} in {first.folder}, {shapes[1]} in {second.folder}: sizes differ")
        _check_kind(name, first, second)


def _check_kind(name: str, first: _Weights, second: _Weights) -> None:
    if first.is_float(name) != second.is_float(name):
        raise UserError(f"{name} holds fractions in one of {first.folder} and {second.folder} only: kinds differ")
    if second.is_float(name) or name.endswith(_COUNTERS):
        return
    if not first.tensor(name).equal(second.tensor(name)):
        raise UserError(
            f"{name} holds other values in {first.folder} than in {second.folder} and cannot be mixed: "
            "the two were made for different classes or texts"
        )
