"""The folder of a converted model: checked before any work, written beside its place, read back, then moved."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPProcessor

from hf_vlr.convert.card import write_card
from hf_vlr.convert.keymap import listed
from hf_vlr.errors import UserError
from hf_vlr.modeling.modeling_unicl import UniCLPreTrainedModel

if TYPE_CHECKING:
    from hf_vlr.convert.conversion import Conversion

MOVES_FILE = "conversion.json"


def free_folder(out: str | Path) -> Path:
    """The folder to write, whose parent is there and can be written; else `UserError`, before any work."""
    folder = Path(out).expanduser()
    try:
        if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
            raise UserError(f"{folder} already exists; name a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=folder.parent).cleanup()
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); name another folder") from error
    return folder


def write(
    conversion: "Conversion",
    model: UniCLPreTrainedModel,
    processor: CLIPProcessor | CLIPImageProcessor,
    format: str,
    sources: Sequence[Path],
) -> None:
    """Write the folder beside its place, read the weights back, and only then move it there."""
    folder = conversion.folder
    beginning = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent)) / folder.name
    try:
        model.save_pretrained(beginning)
        processor.save_pretrained(beginning)
        check_written(beginning, conversion.tensors)
        rows = [{**move._asdict(), "shape": list(move.shape)} for move in conversion.moves]
        names = [path.name for path in sources]
        record = {"format": format, "sources": names, "moves": rows, "dropped": dict(conversion.dropped)}
        record |= {"made": list(conversion.made), "interpolated": [list(row) for row in conversion.interpolated]}
        (beginning / MOVES_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        write_card(beginning, conversion, format, sources[0], sources[1:])
        if folder.is_dir():
            folder.rmdir()
        beginning.rename(folder)
    finally:
        shutil.rmtree(beginning.parent, ignore_errors=True)


def check_written(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise `UserError` unless the files hold exactly these tensors, bit for bit."""
    left = set(tensors)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            # one tensor at a time: a checkpoint may fill half of the memory
            names = left.intersection(file.keys())
            left -= {name for name in names if same(tensors[name], file.get_tensor(name))}
    if left:
        raise UserError(f"writing failed: {listed(sorted(left))} came back otherwise; is the disk full?")


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bits."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(one.contiguous().flatten().view(torch.uint8), other.contiguous().flatten().view(torch.uint8))
    )
