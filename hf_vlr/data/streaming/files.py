"""Shards: files on this machine or on the Hub, of which any range of bytes can be read."""

import hashlib
import io
import time
from dataclasses import dataclass
from typing import BinaryIO

from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

from hf_vlr.errors import UserError

# Seconds before each further attempt at a remote range, and until a silent server is given up.
WAITS = (0.5, 2.0, 8.0)
TIMEOUT = 60.0


@dataclass(frozen=True)
class ShardFile:
    """One file.

    name: its path, or `hf://…` without the commit; what messages call it.
    size: bytes. stamp: changes when the content does (the time of its last change, or a digest of the content).
    url: where a remote file is read; None for a file on this machine.
    """

    name: str
    size: int
    stamp: str
    url: str | None = None

    @property
    def remote(self) -> bool:
        return self.url is not None

    @property
    def key(self) -> str:
        """Hex digits that name this content of this file."""
        return digest_of(self.name, self.size, self.stamp)

    def read(self, start: int, length: int) -> bytes:
        """The bytes `start … start + length`; raises `UserError` where they cannot be had whole."""
        if self.url is not None:
            return read_remote(self.name, self.url, start, length)
        try:
            with open(self.name, "rb", buffering=0) as file:
                file.seek(start)
                data = file.read(length)
        except OSError as error:
            raise UserError(f"{self.name}: cannot be read ({error.strerror}); restore the file") from error
        if len(data) != length:
            raise UserError(f"{self.name}: ends before byte {start + length}; the file was cut off, restore it")
        return data

    def open(self) -> BinaryIO | io.RawIOBase:
        """The file as a seekable stream."""
        return RangeReader(self) if self.remote else open(self.name, "rb")


class RangeReader(io.RawIOBase):
    """A seekable stream over `ShardFile.read`, one request a read."""

    def __init__(self, file: ShardFile) -> None:
        self.file, self.position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.file.size}[whence]
        self.position = max(0, base + offset)
        return self.position

    def readinto(self, buffer: memoryview) -> int:
        length = max(0, min(len(buffer), self.file.size - self.position))
        if length:
            buffer[:length] = self.file.read(self.position, length)
        self.position += length
        return length


def digest_of(*words: object) -> str:
    """24 hex digits that depend on all words."""
    return hashlib.blake2b(repr(words).encode(), digest_size=12).hexdigest()


def read_remote(name: str, url: str, start: int, length: int) -> bytes:
    """A range of a remote file, asked for again where the server fails or sends too little.

    Raises `UserError` naming the file and the number of attempts when none succeeds, at once where another one is
    pointless (no such file, no access, offline).
    """
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{start + length - 1}"}
    attempts = len(WAITS) + 1
    for attempt in range(1, attempts + 1):
        try:
            response = http_backoff("GET", url, headers=headers, timeout=TIMEOUT, max_retries=0)
            hf_raise_for_status(response)
            if len(response.content) == length:
                return response.content
            reason, final = f"{len(response.content)} bytes instead of {length}", False
        except (HTTPError, OSError) as error:
            reason, final = str(error).split("\n")[0] or type(error).__name__, is_final(error)
        if final or attempt == attempts:
            break
        time.sleep(WAITS[attempt - 1])
    raise UserError(
        f"{name}: bytes {start} to {start + length} could not be read, attempt {attempt} of {attempts} ({reason}); "
        "check the connection and start again, a run goes on from its last checkpoint"
    )


def is_final(error: Exception) -> bool:
    """Whether asking again cannot help: the server refuses, or there is no network by choice."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    refused = status is not None and 400 <= status < 500 and status not in (408, 429)
    return refused or isinstance(error, OfflineModeIsEnabled)
