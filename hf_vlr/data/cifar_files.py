"""CIFAR-10 and CIFAR-100 as their authors publish them, without running anything that lies in the files.

Two forms of each: pickled batches ("python version") and plain records ("binary version"), packed or unpacked. Of an
archive the members that are known by name are read in memory; nothing is extracted to disk.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from hf_vlr.data.cifar_layouts import CLASSES, LAYOUTS, Layout
from hf_vlr.errors import UserError
from hf_vlr.pickles import BadPickle, Placeholder, unpickle

MAX_BYTES = 2**28
"""Of an archive unpacked, and of a folder's files together; the published ones hold 186 million bytes."""
BLOCK = 512
"""Bytes of a tar archive's unit."""
SIDE = 32
PIXELS = 3 * SIDE * SIDE


TOTALS = {"train": 50_000, "test": 10_000}


@dataclass(frozen=True)
class Cifar:
    """Both splits in the order of the files: images uint8 `[N, 32, 32, 3]` (RGB), labels int64 `[N]` (fine ones).

    class_names: 10 or 100 names by class index. official: whether the check sums are those of the published files.
    origin: a sentence about that. remarks: a line for each number of images that is not the published one.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: list[str]
    official: bool
    origin: str
    remarks: tuple[str, ...]


def read_cifar(source: str | Path, name: str) -> Cifar:
    """CIFAR-10 or CIFAR-100 from its original files.

    source: an archive (`cifar-10-python.tar.gz`, `cifar-100-binary.tar.gz`, …; also unzipped, or under another name),
    the folder that is in it, or a folder in which either lies. name: "cifar10" or "cifar100".

    Raises `UserError` in one line for a source that is missing, cut short, another dataset, or no such file at all.
    """
    if name not in LAYOUTS:
        raise UserError(f"there is no CIFAR called {name!r}; choose one of: {', '.join(LAYOUTS)}")
    path = _locate(Path(source).expanduser(), name)
    files, archive_md5 = _from_folder(path, name) if path.is_dir() else _from_archive(path)
    layout = _layout(path, name, files)
    official, origin = _origin(layout, files, archive_md5)
    names = _class_names(path, layout, files[layout.meta], CLASSES[name])
    parts = {}
    for split, members in (("train", layout.train), ("test", layout.test)):
        # a batch is let go of once it is read: pixels are in memory two or three times as it is
        batches = [_batch(f"{path}: {member}", layout, files.pop(member), len(names)) for member in members]
        parts[f"{split}_images"] = np.concatenate([images for images, _ in batches])
        parts[f"{split}_labels"] = np.concatenate([labels for _, labels in batches])
    remarks = tuple(
        f"{split} has {len(parts[f'{split}_labels']):,} images, the published one {total:,}"
        for split, total in TOTALS.items()
        if len(parts[f"{split}_labels"]) != total
    )
    return Cifar(**parts, class_names=names, official=official, origin=origin, remarks=remarks)


def _locate(source: Path, name: str) -> Path:
    """The archive, or the folder of the batches, that `source` is or holds."""
    if source.is_file():
        return source
    layouts = LAYOUTS[name]
    archives = " or ".join(layout.archive for layout in layouts)
    if not source.is_dir():
        raise UserError(f"{source}: there is no such file or folder; give {archives}, or its folder")
    if any((source / layout.train[0]).is_file() for layout in layouts):
        return source
    for layout in layouts:
        for path in (source / layout.folder, source / layout.archive):
            if path.exists():
                return path
    raise UserError(f"{source}: holds neither {archives} nor the files in them; download one of these archives")


def _from_folder(folder: Path, name: str) -> tuple[dict[str, bytes], None]:
    wanted = {file for layout in LAYOUTS[name] for file in layout.files}
    paths = [folder / file for file in sorted(wanted) if (folder / file).is_file()]
    if sum(path.stat().st_size for path in paths) > 2 * MAX_BYTES:
        raise UserError(f"{folder}: its files are far too large to be CIFAR; download the archive again")
    try:
        return {path.name: path.read_bytes() for path in paths}, None
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from error


def _from_archive(path: Path) -> tuple[dict[str, bytes], str]:
    """The regular files of a tar archive by their last name, as far as a form of CIFAR has such a file; its md5."""
    wanted = {file for layouts in LAYOUTS.values() for layout in layouts for file in layout.files}
    files: dict[str, bytes] = {}
    try:
        for file, content in _members(_unpacked(path)):
            if file in files:
                raise UserError(f"{path}: holds two files {file}; download the archive again")
            if file in wanted:
                files[file] = bytes(content)
        with path.open("rb") as packed:
            return files, hashlib.file_digest(packed, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except UserError:
        raise
    except (zlib.error, EOFError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None)
        what = f"cannot be read ({reason})" if reason else "is no tar archive, damaged or cut short; download it again"
        raise UserError(f"{path}: {what}") from error


def _members(archive: bytes) -> Iterator[tuple[str, memoryview]]:
    """Last name and content of every regular file of a tar archive; `ValueError` where it is damaged.

    Read here, as Python's own reader can be kept busy by extended headers, of which these archives have no need.
    """
    data, at = memoryview(archive), 0
    while at < len(data) and any(header := data[at : at + BLOCK]):
        name, kind = bytes(header[:100]).rstrip(b"\0"), bytes(header[156:157])
        size, told = (int(bytes(field).strip(b" \0") or b"0", 8) for field in (header[124:136], header[148:156]))
        start, at = at + BLOCK, at + BLOCK + -(-size // BLOCK) * BLOCK
        # the check sum is taken as if its own field held spaces
        if told != sum(header) - sum(header[148:156]) + 8 * ord(" ") or size < 0 or start + size > len(data):
            raise ValueError
        if kind in (b"0", b"\0"):
            yield name.decode("latin-1").rpartition("/")[2], data[start : start + size]


def _unpacked(path: Path) -> bytes:
    """The tar archive in `path`, which may be compressed by gzip; bounded, whatever the file says of its size."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with (gzip.open if packed else open)(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: unpacks to more than {MAX_BYTES >> 20} MiB, far more than CIFAR has")
    return data


def _layout(path: Path, name: str, files: Mapping[str, bytes]) -> Layout:
    """The form in which `files` come, all of whose files are there."""
    for layout in LAYOUTS[name]:
        # CIFAR-10 and CIFAR-100 share no name of a training file
        if set(layout.train) & set(files):
            missing = [file for file in layout.files if file not in files]
            if missing:
                raise UserError(f"{path}: {', '.join(missing)} is missing; download {layout.archive} again")
            return layout
    for other, layouts in LAYOUTS.items():
        if any(set(layout.train) & set(files) for layout in layouts):
            raise UserError(f"{path}: holds {other}, not {name}; give the archive of {name}")
    raise UserError(f"{path}: holds no files of {name}; download {LAYOUTS[name][0].archive} again")


def _origin(layout: Layout, files: Mapping[str, bytes], archive_md5: str | None) -> tuple[bool, str]:
    if archive_md5 == layout.archive_md5:
        return True, f"the official archive {layout.archive} (md5 {archive_md5})"
    known = layout.md5 or {}
    sums = {file: hashlib.md5(files[file], usedforsecurity=False).hexdigest() for file in known}
    if known and sums == known:
        return True, f"the official files of {layout.archive} (all {len(sums)} md5 sums agree)"
    if archive_md5 is not None:
        return False, f"not the official archive {layout.archive}: md5 {archive_md5} instead of {layout.archive_md5}"
    if not known:
        return False, f"unpacked files of {layout.archive}, for which there are no published check sums"
    wrong = ", ".join(file for file in known if sums[file] != known[file])
    return False, f"not the official files of {layout.archive}: other md5 sums for {wrong}"


def _class_names(path: Path, layout: Layout, data: bytes, classes: int) -> list[str]:
    where = f"{path}: {layout.meta}"
    if layout.label_bytes:
        names = [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    else:
        names = _pickled(where, data).get(layout.key)
    plain = isinstance(names, list) and all(isinstance(name, str) and name.isprintable() for name in names)
    if not plain or len(set(names)) != classes or len(names) != classes:
        raise UserError(f"{where} does not list {classes} class names; download {layout.archive} again")
    return names


def _batch(where: str, layout: Layout, data: bytes, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[N, 32, 32, 3]` and labels int64 `[N]` of one file."""
    pixels, labels = (_records if layout.label_bytes else _pickled_batch)(where, layout, data)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise UserError(f"{where}: label {labels[wrong[0]]} of image {wrong[0]} is outside 0 … {classes - 1}")
    # planes of red, green and blue, each row by row
    return np.ascontiguousarray(pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)), labels


def _records(where: str, layout: Layout, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    size = layout.label_bytes + PIXELS
    if not data or len(data) % size:
        raise UserError(f"{where}: {len(data)} bytes are no whole number of records of {size}; download it again")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)
    return records[:, layout.label_bytes :], records[:, layout.label_bytes - 1].astype(np.int64)


def _pickled_batch(where: str, layout: Layout, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    batch = _pickled(where, data)
    labels, pixels = batch.get(layout.labels), _array(batch.get("data"))
    if not isinstance(labels, list) or not all(type(label) is int and abs(label) < 2**62 for label in labels):
        raise UserError(f"{where}: its {layout.labels} are no list of whole numbers; download {layout.archive} again")
    if pixels is None or pixels.shape != (len(labels), PIXELS) or not labels:
        raise UserError(f"{where}: its data is no array of {len(labels)} × {PIXELS} bytes; download it again")
    return pixels, np.array(labels, dtype=np.int64)


def _pickled(where: str, data: bytes) -> dict[Any, Any]:
    """The dictionary of a pickle, read as data; arrays in it stay placeholders."""
    try:
        found = unpickle(BytesIO(data), {"_codecs.encode": _latin_bytes}, lambda _: None)
    except BadPickle as error:
        raise UserError(f"{where}: its pickle {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: is no batch of CIFAR; download the archive again")
    return found


def _latin_bytes(arguments: tuple) -> bytes:
    """Bytes as Python 3 writes them into a protocol that has none."""
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] != "latin1":
        raise BadPickle("encodes something that is no byte string")
    return arguments[0].encode("latin-1")


def _array(value: Any) -> np.ndarray | None:
    """A pickled matrix of bytes, uint8 `[N, M]`; None for anything else.

    numpy writes a call of `_reconstruct` and the state (version, shape, dtype, whether columns come first, bytes).
    """
    if not isinstance(value, Placeholder) or not value.name.endswith("._reconstruct"):
        return None
    state = value.state.get("__setstate__")
    if not isinstance(state, tuple) or len(state) != 5:
        return None
    _, shape, kind, by_columns, data = state
    # text is what Python 2 called bytes; the reader takes it as latin-1, one character a byte
    data = data.encode("latin-1") if isinstance(data, str) else data
    byte = isinstance(kind, Placeholder) and kind.name == "numpy.dtype" and kind.arguments
    whole = isinstance(shape, tuple) and len(shape) == 2 and all(type(size) is int and size >= 0 for size in shape)
    if not byte or kind.arguments[0] != "u1" or not whole or not isinstance(data, bytes):
        return None
    if shape[0] * shape[1] != len(data):
        return None
    return np.frombuffer(data, dtype=np.uint8).reshape(shape, order="F" if by_columns is True else "C")
