"""Files that cannot be written, said in one line: what, why, and how to go on."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from hf_vlr.errors import UserError

# what the writers of tensors raise; torch hides the system's own error behind the second
WRITING = (OSError, RuntimeError, SafetensorError)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def writing(path: Path, then: str) -> Iterator[None]:
    """A block that writes `path`; what the system refuses becomes a `UserError` that names it and says `then`."""
    try:
        yield
    except WRITING as error:
        number = error_number(error)
        if number is None:
            raise
        raise refused(path, number, then) from error


@contextmanager
def whole_file(path: Path, then: str) -> Iterator[Path]:
    """A path beside `path` to write to, moved there at the block's end: no reader and no crash sees half a file.

    What the system refuses is told as in `writing`.
    """
    with writing(path, then):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def refused(path: Path | str, number: int, then: str) -> UserError:
    """The error of a file that the system does not let be written."""
    return UserError(f"{path} cannot be written ({os.strerror(number).lower()}); {then}")


def error_number(error: BaseException) -> int | None:
    """The system's number of the refusal that led to an error; None where there was none."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno is not None:
            return found.errno
        found = found.__cause__ or found.__context__
    # safetensors writes in Rust, which has the number in its words only
    number = re.search(r"\(os error (\d+)\)", str(error)) if isinstance(error, SafetensorError) else None
    return int(number[1]) if number else None


def megabytes(count: int) -> str:
    """A size in bytes, to read."""
    return f"{count / 1e6:,.1f} MB"
