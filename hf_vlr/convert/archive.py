"""What a foreign checkpoint holds, as plain data; no line of it is executed and nothing it names is imported.

Four formats: the zip file of `torch.save` (torch 1.6 and later), the TorchScript archive of `torch.jit.save`,
safetensors, and the older stream of `torch.save`. Tensors stay on disk until they are asked for.
"""

import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hf_vlr.convert.tensors import Cache, ForeignTensor, TensorBuilder
from hf_vlr.errors import UserError
from hf_vlr.pickles import MAX_INSTRUCTIONS, BadPickle, Placeholder, shown, unpickle

WRAPPERS = ("model", "state_dict", "model_state_dict")
MAX_PICKLE_BYTES = 64 * 2**20
MAX_NAMES, MAX_NAME = 50_000, 1000
AGAIN = "copy or download the file again"

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = b"\x80\x02\x8a\x0a" + _LEGACY_MAGIC.to_bytes(10, "little") + b"."
_SAFE_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64},
}


class Weights(dict[str, torch.Tensor]):
    """Tensors by name, and what lay around them.

    scalars: the numbers, flags and strings among them. wrapper: the key of the file that they were taken from, "" for
    the file itself. rest: the file's other keys that hold tensors (the state of an optimiser, a second copy such as
    `model_ema`), and how many tensors each holds, however deep; those were counted and not read.
    """

    def __init__(self, wrapper: str = "", rest: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.scalars: dict[str, int | float | bool | str] = {}
        self.wrapper = wrapper
        self.rest = dict(rest or {})


@dataclass(frozen=True, eq=False)
class Archive:
    """A checkpoint: `content` is nested dicts, lists, scalars, `ForeignTensor` and `Placeholder`.

    `kind` is "zip", "torchscript", "safetensors" or "legacy".
    """

    path: Path
    kind: str
    content: Any = field(repr=False)

    def weights(self, wrappers: Sequence[str] = WRAPPERS) -> Weights:
        """The tensors by name, read from disk; nothing else of the file is read.

        They are the first of `wrappers` that maps names to tensors, else the content itself; of a TorchScript module
        all tensors that it and its sub-modules hold, by dotted names (`torch.jit` records no difference between
        parameters, buffers and other tensor attributes; lists are left out). Tensors that shared a storage share
        memory. Numbers, flags and strings come back in `scalars`. Raises `UserError` for anything else among the
        weights, above all for a class or function, which it names.
        """
        if self.kind == "torchscript":
            entries, found = self._module_entries(), Weights()
        else:
            wrapper, mapping = self._mapping(wrappers)
            entries, found = mapping.items(), Weights(wrapper, self._rest(wrapper) if wrapper else {})
        cache: Cache = {}
        for name, value in entries:
            if not isinstance(name, str):
                raise UserError(f"{self.path}: {shown(name)} among its weights is no name; weights are named by text")
            if isinstance(value, ForeignTensor):
                found[name] = self._read(name, value, cache)
            elif isinstance(value, bool | int | float | str):
                found.scalars[name] = value
            elif isinstance(value, Placeholder):
                raise UserError(
                    f"{self.path} holds {shown(value.name)} among its weights ({shown(name)}); refused: only plain "
                    "dense tensors are read, re-save model.state_dict()"
                )
            else:
                raise UserError(
                    f"{self.path}: {shown(name)} among its weights is {described(value)}, not a tensor; "
                    f"re-save the tensors alone, or under one of {', '.join(wrappers)}"
                )
        if not found:
            raise UserError(f"{self.path} holds no tensors; re-save model.state_dict()")
        return found

    def settings(self, name: str) -> dict[Any, Any]:
        """What lies under `name` (`args`, `config`) by its keys, {} where there is nothing; deeper: `attribute`."""
        found = attribute(self.content, name)
        found = found.state if isinstance(found, Placeholder) else found
        return found if isinstance(found, dict) else {}

    def _read(self, name: str, tensor: ForeignTensor, cache: Cache) -> torch.Tensor:
        try:
            return tensor.read(cache)
        except UserError as error:
            raise UserError(f"{error} (weight {shown(name)})") from None

    def _rest(self, wrapper: str) -> dict[str, int]:
        """How many tensors each key beside `wrapper` holds, for those that hold any."""
        rest: dict[str, int] = {}
        left = MAX_INSTRUCTIONS
        for key, value in self.content.items():
            if key == wrapper:
                continue
            tensors, seen = count_tensors(value, left)
            left -= seen
            if left <= 0:
                raise UserError(f"{self.path} holds too much beside {wrapper}; re-save model.state_dict()")
            if tensors:
                rest[shown(key)] = rest.get(shown(key), 0) + tensors
        return rest

    def _mapping(self, wrappers: Sequence[str]) -> tuple[str, dict[Any, Any]]:
        """The key and the mapping that holds the weights; the key is "" for the content itself."""
        content = self.content
        if isinstance(content, Placeholder):
            raise UserError(
                f"{self.path} holds {shown(content.name)} instead of weights; refused: re-save its state_dict()"
            )
        if not isinstance(content, dict):
            raise UserError(f"{self.path} holds {described(content)}; it must hold a dict of names and tensors")
        inner = [(key, content[key]) for key in wrappers if key in content]
        for key, candidate in (*inner, ("", content)):
            if isinstance(candidate, dict) and any(isinstance(value, ForeignTensor) for value in candidate.values()):
                return key, candidate
        # no tensor anywhere: what stands in place of the weights is to be refused by its name
        for key, candidate in (*inner, ("", dict(inner))):
            if isinstance(candidate, dict) and any(isinstance(value, Placeholder) for value in candidate.values()):
                return key, candidate
        keys = [
            f"{shown(key)} ({shown(value.name)})" if isinstance(value, Placeholder) else shown(key)
            for key, value in islice(content.items(), 8)
        ]
        found = f"it holds: {', '.join(keys)}"[:200]
        raise UserError(f"{self.path} holds no weights under {', '.join(wrappers)} or at its top; {found}")

    def _module_entries(self) -> Iterator[tuple[Any, Any]]:
        """(dotted name, value) of all that the modules hold, save lists, dicts and None."""
        pending: list[tuple[str, Any]] = [("", self.content)]
        seen = 0
        while pending:
            name, value = pending.pop()
            if isinstance(value, Placeholder) and value.name.startswith("__torch__."):
                parts = value.state
                # modules that share modules that share modules have exponentially many names
                seen += len(parts)
                plain = all(isinstance(key, str) and len(name) + len(key) < MAX_NAME for key in parts)
                if seen > MAX_NAMES or not plain:
                    raise UserError(f"{self.path}: its modules have too many names, too long ones or none; {AGAIN}")
                pending.extend((f"{name}.{key}" if name else key, part) for key, part in reversed(parts.items()))
            elif not isinstance(value, list | tuple | dict | None):
                yield name, value


def count_tensors(content: Any, limit: int) -> tuple[int, int]:
    """How many tensors lie in a content, however deep, each counted once, and how many values were seen.

    Stops above `limit` values.
    """
    pending = [content]
    done: dict[int, Any] = {}  # by identity; what is kept here keeps its identity to itself
    tensors = seen = 0
    while pending and seen <= limit:
        value = pending.pop()
        seen += 1
        if not isinstance(value, ForeignTensor | Placeholder | dict | list | tuple) or id(value) in done:
            continue
        done[id(value)] = value
        if isinstance(value, ForeignTensor):
            tensors += 1
        elif isinstance(value, Placeholder):
            pending.extend((value.state, value.items, value.arguments))
        else:
            pending.extend(value.values() if isinstance(value, dict) else value)
    return tensors, seen


def described(value: Any) -> str:
    """What a value is, in words."""
    words = {ForeignTensor: "a single tensor", type(None): "None", int: "a number", float: "a number", str: "a text"}
    return words.get(type(value), f"a {type(value).__name__}")


def attribute(content: Any, path: str, default: Any = None) -> Any:
    """The value under dotted keys, through dicts and the states of placeholders: `attribute(content, "args.model")`."""
    for key in path.split("."):
        content = content.state if isinstance(content, Placeholder) else content
        if not isinstance(content, dict) or key not in content:
            return default
        content = content[key]
    return content


def read_archive(path: str | Path) -> Archive:
    """What the checkpoint at `path` holds, told by its first bytes; see `Archive`.

    The file must stay where it is until its tensors are read. Raises `UserError` for whatever is no checkpoint, is
    damaged, or was not written by torch or safetensors.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; name a checkpoint file")
    if not path.is_file():
        raise UserError(f"{path} is no file; name a checkpoint file in it")
    try:
        with path.open("rb") as file:
            start = file.read(len(_LEGACY_START))
        if start.startswith(b"PK"):
            return _read_zip(path)
        if start == _LEGACY_START:
            return Archive(path, "legacy", _read_legacy(path))
        if start[8:9] == b"{":
            return Archive(path, "safetensors", _read_safetensors(path))
    except BadPickle as error:
        raise UserError(f"{path}: its pickle {error}; refused") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    raise UserError(f"{path} is no checkpoint: neither a file of torch.save or torch.jit.save nor safetensors")


def _read_zip(path: Path) -> Archive:
    members = _members(path)
    roots = [name.removesuffix("data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise UserError(f"{path} is a zip file without the one data.pkl of a checkpoint; {AGAIN}")
    (root,) = roots

    def read(name: str) -> bytearray:
        return _read_member(path, members.get(root + name), name)

    order = bytes(read("byteorder")).decode("ascii", "replace") if f"{root}byteorder" in members else "little"
    if order != sys.byteorder:
        raise UserError(f"{path} has byte order {shown(order)}, not {sys.byteorder}; re-save it on a common machine")
    if members[f"{root}data.pkl"].file_size > MAX_PICKLE_BYTES:
        raise UserError(f"{path}: its pickle is above {MAX_PICKLE_BYTES} bytes, which no checkpoint needs")
    builder = TensorBuilder(path, lambda key: read(f"data/{key}"))
    content = unpickle(io.BytesIO(read("data.pkl")), builder.calls, builder.persistent)
    return Archive(path, "torchscript" if f"{root}constants.pkl" in members else "zip", content)


def _members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The members by name; their names are plain, differ, and together they are no larger than the file."""
    try:
        with zipfile.ZipFile(path) as file:
            infos = file.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error):
        raise UserError(f"{path} is a damaged or incomplete zip file; {AGAIN}") from None
    members = {info.filename: info for info in infos}
    for name in members:
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise UserError(f"{path} holds a member named {shown(name)}, which torch never writes; refused")
    if len(members) != len(infos):
        raise UserError(f"{path} holds two members of one name, which torch never writes; refused")
    if sum(info.compress_size for info in infos) > path.stat().st_size:
        raise UserError(f"{path} declares more bytes than it has; {AGAIN}")
    return members


def _read_member(path: Path, info: zipfile.ZipInfo | None, name: str) -> bytearray:
    """The bytes of a stored member, straight from the file: the largest tensor is in memory once."""
    if info is None:
        raise UserError(f"{path} lacks its member {shown(name)}; {AGAIN}")
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
        raise UserError(f"{path}: member {shown(name)} is compressed or encrypted, which torch never does; refused")
    with path.open("rb") as file:
        file.seek(min(max(info.header_offset, 0), path.stat().st_size))
        header = file.read(30)
        if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
            raise UserError(f"{path}: member {shown(name)} is not where the file says; {AGAIN}")
        file.seek(sum(struct.unpack("<HH", header[26:])), io.SEEK_CUR)
        data = _read_exactly(path, file, info.file_size)
    # 0 stands for a sum that torch was told to leave out
    if info.CRC and zlib.crc32(data) != info.CRC:
        raise UserError(f"{path}: member {shown(name)} is damaged (its check sum differs); {AGAIN}")
    return data


def _read_exactly(path: Path, file: io.BufferedReader, size: int) -> bytearray:
    if size > path.stat().st_size - file.tell():
        raise UserError(f"{path} is cut short; {AGAIN}")
    data = bytearray(size)
    if file.readinto(data) != size:
        raise UserError(f"{path} is cut short; {AGAIN}")
    return data


def _read_legacy(path: Path) -> Any:
    """The stream of torch before 1.6: pickles of a number, a version, the machine, the content and the storage keys,
    then each storage as its size (8 bytes) and its elements."""
    places: dict[str, tuple[int, int]] = {}

    def read(key: str) -> bytearray:
        with path.open("rb") as file:
            file.seek(places[key][0])
            return _read_exactly(path, file, places[key][1])

    builder = TensorBuilder(path, read)
    with path.open("rb") as file:
        stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
        _, _, machine, content, keys = (unpickle(stream, builder.calls, builder.persistent) for _ in range(5))
        if attribute(machine, "little_endian") is not (sys.byteorder == "little"):
            raise UserError(f"{path} was written in the other byte order; re-save it on such a machine as this")
        position = stream.tell()
        for key in keys if isinstance(keys, list) else ():
            storage = builder.storages.get(key) if isinstance(key, str) else None
            file.seek(position)
            size = int.from_bytes(file.read(8), "little")
            if storage is None or size != storage.size:
                raise UserError(f"{path}: its storages are not what its pickle says; re-save it with a current torch")
            places[key] = (position + 8, size * storage.dtype.itemsize)
            position += 8 + places[key][1]
    if builder.storages.keys() != places.keys() or position > path.stat().st_size:
        raise UserError(f"{path} is cut short; {AGAIN}")
    return content


def _read_safetensors(path: Path) -> dict[str, ForeignTensor]:
    def load(name: str, cache: Cache) -> torch.Tensor:
        if "file" not in cache:
            cache["file"] = _open_safetensors(path)
        return cache["file"].get_tensor(name)

    file = _open_safetensors(path)
    tensors = {}
    for name in file.keys():  # noqa: SIM118 (no mapping)
        part = file.get_slice(name)
        dtype = _SAFE_DTYPES.get(part.get_dtype())
        if dtype is None:
            raise UserError(f"{path}: {shown(name)} is of type {part.get_dtype()}, which is not read; save it as F32")
        tensors[name] = ForeignTensor(dtype, tuple(part.get_shape()), lambda cache, name=name: load(name, cache))
    return tensors


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError:
        raise UserError(f"{path} is a damaged safetensors file; {AGAIN}") from None
