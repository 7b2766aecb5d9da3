"""Tensors of a checkpoint that are read when they are asked for, and not before."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hf_vlr.errors import UserError
from hf_vlr.pickles import BadPickle, Calls, Placeholder, shown

MAX_DIMENSIONS = 64
MAX_SIZE = 2**62
"""Of an offset, an extent or a stride: their sums and products by an element's size stay within what torch computes."""

_STORAGE_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.storage.UntypedStorage": torch.uint8,
}
_REBUILDERS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
# what these make is their first argument, as far as reading goes
_WRAPPERS = (
    *("torch.Size", "torch.device", "torch.jit._pickle.restore_type_tag", "torch.jit._pickle.build_intlist"),
    *("torch.jit._pickle.build_tensorlist", "torch.jit._pickle.build_doublelist", "torch.jit._pickle.build_boollist"),
)

Cache = dict[str, Any]
"""What reads of one file share: the bytes of storages, or the open file."""


@dataclass(frozen=True, eq=False)
class ForeignTensor:
    """A tensor of a checkpoint that is still on disk: its dtype and shape; `read` reads it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[Cache], torch.Tensor] = field(repr=False)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def read(self, cache: Cache | None = None) -> torch.Tensor:
        """The tensor on the CPU, without gradient; with one `cache`, tensors of one storage share memory.

        Raises `UserError` where the file holds fewer elements than the shape claims, or is damaged.
        """
        return self.load({} if cache is None else cache)


class Storage(NamedTuple):
    """A run of `size` elements of one dtype that tensors view."""

    key: str
    dtype: torch.dtype
    size: int


class View(NamedTuple):
    """Where a tensor's elements lie in its storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class TensorBuilder:
    """What a checkpoint's pickle may call: tensors over storages, whose bytes `read_bytes(key)` gives when needed."""

    def __init__(self, path: Path, read_bytes: Callable[[str], bytearray]) -> None:
        self.path = path
        self.read_bytes = read_bytes
        self.storages: dict[str, Storage] = {}
        self.calls: Calls = {
            **{name: lambda arguments, name=name: self.tensor(name, arguments) for name in _REBUILDERS},
            "torch._utils._rebuild_parameter": self.parameter,
            **{name: lambda arguments, name=name: _first(name, arguments) for name in _WRAPPERS},
        }

    def persistent(self, identifier: Any) -> Any:
        """The storage of a persistent id `("storage", class, key, device, size, …)`; the device does not matter."""
        if not isinstance(identifier, tuple) or len(identifier) < 2:
            raise BadPickle("has a persistent id that torch does not write")
        kind, named, *rest = identifier
        if kind == "module" and isinstance(named, Placeholder):
            return named
        view = rest[3:]
        if kind != "storage" or not isinstance(named, Placeholder) or len(rest) < 3 or view not in ([], [None]):
            raise BadPickle("has a persistent id that torch does not write")
        if named.name not in _STORAGE_DTYPES or named.arguments is not None:
            return named
        key, _, size = rest[:3]
        if not isinstance(key, str) or not _is_size(size):
            raise BadPickle("has a persistent id that torch does not write")
        storage = Storage(key, _STORAGE_DTYPES[named.name], size)
        if self.storages.setdefault(key, storage) != storage:
            raise BadPickle(f"describes the storage {shown(key)} in two ways")
        return storage

    def tensor(self, name: str, arguments: tuple) -> ForeignTensor | Placeholder:
        """A tensor of `(storage, offset, shape, stride, requires_grad, hooks, metadata)`, the last three optional.

        Whatever is no plain strided tensor stays a placeholder; one among the arguments stands for the whole.
        """
        foreign = [value for value in arguments[:8] if isinstance(value, Placeholder)]
        if foreign:
            return foreign[0]
        plain = 4 <= len(arguments) <= 7 and isinstance(arguments[0], Storage) and not any(arguments[5:])
        if not plain or not _is_size(arguments[1]) or not all(map(_is_shape, arguments[2:4])):
            return Placeholder(name, arguments)
        view = View(*arguments[:4])
        if len(view.shape) != len(view.stride):
            return Placeholder(name, arguments)
        return ForeignTensor(view.storage.dtype, view.shape, lambda cache: self.read(view, cache))

    def parameter(self, arguments: tuple) -> Any:
        """The tensor of a parameter `(tensor, requires_grad, hooks)`."""
        first = arguments[0] if arguments else None
        known = isinstance(first, ForeignTensor | Placeholder)
        return first if known else Placeholder("torch._utils._rebuild_parameter", arguments)

    def read(self, view: View, cache: Cache) -> torch.Tensor:
        """The elements of a view, which lie within the storage and are no more than it has."""
        storage, offset, shape, stride = view
        numel = math.prod(shape)
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        extent = math.prod(max(size, 1) for size in shape)
        if extent > MAX_SIZE or numel > storage.size or (numel and last >= storage.size):
            raise UserError(
                f"{self.path}: a tensor's shape claims more elements than its storage of {storage.size} holds; the "
                "file is damaged, or holds an expanded tensor: re-save that with .contiguous()"
            )
        if not numel:
            return torch.empty(shape, dtype=storage.dtype)
        if storage.key not in cache:
            cache[storage.key] = self.read_bytes(storage.key)
        data = cache[storage.key]
        if storage.size * storage.dtype.itemsize > len(data):
            raise UserError(f"{self.path}: storage {shown(storage.key)} is cut short; copy or download the file again")
        # a byte that is neither 0 nor 1 is no bool: what a kernel makes of it is undefined
        if storage.dtype == torch.bool and torch.frombuffer(data, dtype=torch.uint8).max() > 1:
            raise UserError(f"{self.path}: storage {shown(storage.key)} is damaged; copy or download the file again")
        return torch.frombuffer(data, dtype=storage.dtype, count=storage.size).as_strided(shape, stride, offset)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_SIZE


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= MAX_DIMENSIONS and all(map(_is_size, value))


def _first(name: str, arguments: tuple) -> Any:
    return arguments[0] if arguments else Placeholder(name, arguments)
