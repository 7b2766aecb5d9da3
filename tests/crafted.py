"""Checkpoints written by hand, instruction by instruction; and what must hold of every refusal."""

import pickle
import pickletools
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from hf_vlr.convert.archive import read_archive
from hf_vlr.errors import UserError

SECONDS, BYTES = 5, 200 * 2**20


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether dtype, shape, stride and all bits agree."""
    plain = (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
    return plain and one.contiguous().flatten().view(torch.uint8).equal(other.contiguous().flatten().view(torch.uint8))


def value(plain: object) -> bytes:
    """The instructions that put plain data on the stack; the memo is left alone."""
    return pickletools.optimize(pickle.dumps(plain, 2))[2:-1]


def named(module: str, name: str) -> bytes:
    """A global."""
    return f"c{module}\n{name}\n".encode()


def storage(size: int = 6, key: str = "0", kind: bytes = named("torch", "FloatStorage")) -> bytes:
    return b"(" + value("storage") + kind + value(key) + value("cpu") + value(size) + b"tQ"


def tensor(shape=(2, 3), stride=(3, 1), offset=0, over: bytes = storage(), function="_rebuild_tensor_v2") -> bytes:
    view = value(offset) + value(shape) + value(stride)
    return named("torch._utils", function) + b"(" + over + view + b"\x89}tR"


def mapping(**entries: bytes) -> bytes:
    return b"}(" + b"".join(value(name) + entry for name, entry in entries.items()) + b"u"


def module(**entries: bytes) -> bytes:
    """A module of a TorchScript archive."""
    return named("__torch__.clip", "Model") + b")\x81" + mapping(**entries) + b"b"


def zipped(path: Path, program: bytes, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    """A checkpoint whose pickle is `program`, over one storage of six floats; `constants` makes it TorchScript."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + program + b".", compression)
        for name, data in {"data/0": struct.pack("<6f", *range(6)), **members}.items():
            file.writestr(f"archive/{name}", data)
    return path


def scripted(path: Path, program: bytes) -> Path:
    """A TorchScript archive; its constants would be refused if they were read."""
    return zipped(path, program, **{"constants.pkl": b"\xff"})


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refused(path: Path) -> str:
    """The one line that says why a file is refused, after a look at the time and memory that took."""
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(UserError) as caught:
            read_archive(path).weights()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < len(str(path)) + 300
    assert peak < BYTES and time.process_time() - began < SECONDS
    return message
