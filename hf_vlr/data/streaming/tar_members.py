"""The members of a tar file: where each one's bytes lie. Nothing is extracted, and nothing about them is believed.

Formats: ustar (POSIX 1988), pax (POSIX 2001) and GNU, whose long names and sizes are understood.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from hf_vlr.data.streaming.files import ShardFile
from hf_vlr.errors import UserError

RECORD = 512
# A pax header or a long name is a few hundred bytes.
MAX_EXTENSION = 1 << 16
# Zeros after the last member; writers pad to 10 KiB, some to more.
MAX_PADDING = 1 << 20
CHUNK = 16 << 20
GZIP = b"\x1f\x8b"
REGULAR, FOLDER = (b"0", b"\0", b"7"), b"5"
LINKS = {b"1": "a link", b"2": "a symbolic link"}
EXTENSIONS = {b"x": "pax", b"L": "name", b"K": "link", b"g": "global"}


@dataclass(frozen=True)
class Member:
    """A regular file in a tar: `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int


class TarReader:
    """Ranges of a shard: of a local one as they are asked for, of a remote one in large pieces, read ahead."""

    def __init__(self, shard: ShardFile) -> None:
        self.shard, self.start, self.piece = shard, 0, b""
        self.stream = None if shard.remote else shard.open()

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on, fewer at the shard's end."""
        if self.stream is not None:
            self.stream.seek(offset)
            return self.stream.read(length)
        if not self.start <= offset <= offset + length <= self.start + len(self.piece):
            size = min(max(length, CHUNK), self.shard.size - offset)
            self.start, self.piece = offset, self.shard.read(offset, size) if size > 0 else b""
        return self.piece[offset - self.start : offset - self.start + length]

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()


def tar_members(shard: ShardFile, reader: TarReader) -> Iterator[Member]:
    """The regular files of a tar, in their order; folders are passed over.

    Raises `UserError` naming the shard and the member for links and devices, names that are absolute or go upwards,
    sizes beyond the shard's end, damaged headers, and a shard that ends without its end mark.
    """
    offset, extra = 0, {}
    while True:
        header = reader.read(offset, RECORD)
        if len(header) < RECORD:
            raise UserError(f"{shard.name}: ends at byte {offset} without an end mark; it was cut off, restore it")
        if not header.strip(b"\0"):
            return _check_end(shard, reader, offset)
        _check_header(shard, header, offset)
        kind, size = header[156:157], _number(shard, header, offset)
        if kind not in EXTENSIONS:
            size = int(extra.get("size", size))
        name = extra.get("path") or _name(header)
        where = f"{shard.name}: member {name!r}"
        if offset + RECORD + size > shard.size:
            raise UserError(f"{where} claims {size} bytes, more than the shard has; restore the shard")
        body = offset + RECORD
        offset = body + -(-size // RECORD) * RECORD
        if kind in EXTENSIONS:
            extra |= _extension(where, EXTENSIONS[kind], reader, body, size)
            continue
        extra = {}
        if kind in LINKS or kind not in (*REGULAR, FOLDER):
            raise UserError(f"{where} is {LINKS.get(kind, 'no regular file')}; write the shard anew with plain files")
        if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or re.match(r"[A-Za-z]:", name):
            raise UserError(f"{where} points outside its folder; write the shard anew with relative names")
        if kind != FOLDER and not name.endswith("/"):
            yield Member(name.removeprefix("./"), body, size)


def _check_header(shard: ShardFile, header: bytes, offset: int) -> None:
    """The sum of a header's bytes, its own field taken as blanks."""
    if offset == 0 and header.startswith(GZIP):
        raise UserError(f"{shard.name}: is compressed, so that no image in it can be read alone; unpack it with gunzip")
    field = header[148:156].strip(b" \0")
    expected = sum(header) - sum(header[148:156]) + 8 * 32
    if not re.fullmatch(rb"[0-7]+", field) or int(field, 8) != expected:
        what = "is no tar file" if offset == 0 else f"has a damaged header at byte {offset}"
        raise UserError(f"{shard.name}: {what}; write or fetch it anew")


def _number(shard: ShardFile, header: bytes, offset: int) -> int:
    """The size field: octal digits, or base 256 where its first bit is set."""
    field = header[124:136]
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else 1 << 64
    digits = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]*", digits):
        raise UserError(f"{shard.name}: has a damaged header at byte {offset}; write or fetch it anew")
    return int(digits or b"0", 8)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    # in GNU's own format these bytes are times
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _extension(where: str, kind: str, reader: TarReader, start: int, size: int) -> dict[str, str]:
    """What an extended header says of the next member: its `path`, its `size`."""
    if size > MAX_EXTENSION:
        raise UserError(f"{where}: an extended header of {size} bytes; write the shard anew")
    body = reader.read(start, size)
    if kind == "name":
        return {"path": _text(body.rstrip(b"\0"))}
    return _pax(where, body) if kind == "pax" else {}


def _pax(where: str, body: bytes) -> dict[str, str]:
    """Records `LENGTH KEY=VALUE\\n`, of which path and size matter here."""
    found, at = {}, 0
    while at < len(body):
        match = re.match(rb"(\d{1,6}) ([^=]+)=", body[at : at + 256])
        record = body[at : at + int(match[1])] if match else b""
        if not match or not match.end() < len(record) == int(match[1]) or not record.endswith(b"\n"):
            raise UserError(f"{where}: a damaged extended header; write or fetch the shard anew")
        key, value = _text(match[2]), _text(record[match.end() : -1])
        if (key == "size" and not re.fullmatch(r"\d{1,18}", value)) or key.startswith("GNU.sparse"):
            raise UserError(f"{where}: an extended header {key}={value[:40]!r} is not understood; write it anew")
        if key in ("path", "size"):
            found[key] = value
        at += len(record)
    return found


def _check_end(shard: ShardFile, reader: TarReader, offset: int) -> None:
    """After the end mark come zeros alone: members behind it would be lost without a word."""
    rest = shard.size - offset
    if rest > MAX_PADDING or reader.read(offset, rest).strip(b"\0"):
        raise UserError(f"{shard.name}: goes on after its end mark at byte {offset}; write its parts into one tar")
