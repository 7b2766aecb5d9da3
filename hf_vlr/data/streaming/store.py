"""A folder of derived files that the processes of a machine share: indexes, and blocks under a budget of bytes."""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import datasets
from filelock import FileLock

from hf_vlr.errors import UserError

T = TypeVar("T")

GIB = 1 << 30
SUFFIX = ".block"
# Files that other processes take away between writing and opening are made again, this often.
ATTEMPTS = 3
# Seconds after which nobody is still writing an unfinished file.
ABANDONED = 3600


class FileStore:
    """Files by key: each is written once, whole or not at all, whoever asks first.

    folder: made when something is written. budget: bytes that all files together may take; when a new one goes
    beyond, those that were opened longest ago are removed (a process that has one open keeps it). None: no bound.
    """

    def __init__(self, folder: Path, budget: int | None = None) -> None:
        self.folder, self.budget = folder, budget

    def get(self, key: str, write: Callable[[Path], None], load: Callable[[Path], T]) -> T:
        """`load(path)` of the file `key`, which `write(path)` makes where there is none; a damaged one is replaced.

        `load` raises `ValueError` for a damaged file. Raises `UserError` where the folder cannot be written.
        """
        path = self.folder / f"{key}{SUFFIX}"
        try:
            for _ in range(ATTEMPTS):
                loaded = self._load(path, load)
                if loaded is not None:
                    return loaded
                self.folder.mkdir(parents=True, exist_ok=True)
                # 256 locks for all keys, so that they do not pile up
                with FileLock(self.folder / f"{key[:2]}.lock"):
                    loaded = self._load(path, load)
                    if loaded is None:
                        self._write(path, write)
                        loaded = self._load(path, load)
                if loaded is not None:
                    self._make_room()
                    return loaded
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be used ({error.strerror or error}); choose another folder with "
                "data.options.cache_dir, or less room with data.options.cache_gib"
            ) from error
        raise UserError(f"{self.folder}: files vanish while they are read; give this run a cache_dir of its own")

    def _load(self, path: Path, load: Callable[[Path], T]) -> T | None:
        try:
            # a shared folder may be readable only
            with suppress(PermissionError):
                os.utime(path)
            return load(path)
        except FileNotFoundError:
            return None
        except ValueError:
            path.unlink(missing_ok=True)
            return None

    def _write(self, path: Path, write: Callable[[Path], None]) -> None:
        partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.partial")
        try:
            write(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self) -> None:
        if self.budget is None:
            return
        with FileLock(self.folder / "room.lock"):
            for path, stat in self._files("*.partial"):
                # left behind by a process that was killed
                if time.time() - stat.st_mtime > ABANDONED:
                    path.unlink(missing_ok=True)
            files = sorted((stat.st_mtime_ns, stat.st_size, path) for path, stat in self._files(f"*{SUFFIX}"))
            total = sum(size for _, size, _ in files)
            for _, size, path in files:
                if total <= self.budget:
                    return
                # another system may refuse to remove what a process has open
                with suppress(OSError):
                    path.unlink()
                    total -= size

    def _files(self, pattern: str) -> list[tuple[Path, os.stat_result]]:
        found = []
        for path in self.folder.glob(pattern):
            with suppress(FileNotFoundError):
                found.append((path, path.stat()))
        return found


class OpenBlocks:
    """The blocks that this process has open, at most `most`; each process has its own."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._open: OrderedDict[int, Any] = OrderedDict()

    def get(self, number: int, load: Callable[[], T]) -> T:
        """Block `number`, by `load()` where it is not open."""
        if number not in self._open:
            self._open[number] = load()
            if len(self._open) > self.most:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        # a worker process that is started afresh opens its own
        return {"most": self.most, "_open": OrderedDict()}


def cache_folder(options: dict[str, Any]) -> Path:
    """Where blocks and indexes are kept: `cache_dir` of the options, else beside the datasets of `datasets`."""
    given = options.get("cache_dir")
    return Path(given).expanduser() if given else Path(datasets.config.HF_DATASETS_CACHE) / "hf_vlr" / "stream"


def cache_bytes(options: dict[str, Any]) -> int:
    """The budget in bytes, `cache_gib` of the options."""
    given = options.get("cache_gib", 4)
    if isinstance(given, bool) or not isinstance(given, int | float) or not given > 0:
        raise UserError(f"data.options.cache_gib={given} must be a number of GiB above 0")
    return int(given * GIB)
