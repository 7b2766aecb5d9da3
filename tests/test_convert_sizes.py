"""Every published architecture at its full size, from a file through `convert` to a folder, without its weights."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from hf_vlr.convert import convert


def published(module: str, name: str):
    """A name of a sibling test file, which lists the published tensors."""
    spec = importlib.util.spec_from_file_location(module, Path(__file__).with_name(f"{module}.py"))
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return getattr(loaded, name)


SIZES = published("test_convert_vl_ltr", "SIZES")
UNICL_SIZES = published("test_convert_unicl_sizes", "SIZES")
unicl_tensor = published("test_convert_unicl_sizes", "tensor")


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_vl_ltr_converts_at_full_size(size, tmp_path):
    header, entries = SIZES[size]
    torch.save({"model": {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in entries.items()}},
               tmp_path / "file.pth")  # fmt: skip
    try:
        conversion = convert("vl-ltr", tmp_path / "file.pth", tmp_path / "out", tokenizer="none")
        assert [move.source for move in conversion.moves] == list(entries)
        made = set(conversion.made)
        buffers = re.compile(r"running_(mean|var)$|num_batches_tracked$")
        with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
            written = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        assert written == {name: list(tensor.shape) for name, tensor in conversion.tensors.items()}
        kept = [t for name, t in conversion.tensors.items() if name not in made and not buffers.search(name)]
        assert sum(tensor.numel() for tensor in kept) == int(re.search(r"(\d+) parameters", header)[1])
    finally:
        shutil.rmtree(tmp_path)  # gigabytes


@pytest.mark.slow
@pytest.mark.parametrize("size", UNICL_SIZES)
def test_unicl_converts_at_full_size(size, tmp_path):
    header, entries = UNICL_SIZES[size]
    state = {name: unicl_tensor(name, *entry) for name, entry in entries.items()}
    state = {name: torch.zeros(one.shape, dtype=one.dtype) if one.is_meta else one for name, one in state.items()}
    torch.save({"model": state}, tmp_path / "file.pth")
    try:
        conversion = convert("unicl", tmp_path / "file.pth", tmp_path / "out", tokenizer="none")
        assert {*(move.source for move in conversion.moves), *conversion.dropped} == set(entries)
        with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
            written = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        assert written == {name: list(tensor.shape) for name, tensor in conversion.tensors.items()}
        total = sum(tensor.numel() for tensor in conversion.tensors.values())
        assert f"params total {total:,};" in header
    finally:
        shutil.rmtree(tmp_path)
