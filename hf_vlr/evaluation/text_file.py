"""Text files that are there as a whole or not at all."""

import os
from pathlib import Path


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 file beside its place and move it there: no reader and no crash sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
