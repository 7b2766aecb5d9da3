"""Reading the files of class texts, with errors a user can mend."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_vlr.errors import UserError


def read_text(file: Path, encodings: Sequence[str] = ("utf-8-sig",)) -> str:
    """A file's text by the first of `encodings` that fits, every line end as `\\n`; `UserError` if none does."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error}); check the path") from error
    for encoding in encodings:
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        return text.replace("\r\n", "\n").replace("\r", "\n")
    names = " nor ".join(encoding.removesuffix("-sig") for encoding in encodings)
    raise UserError(f"{file}: its bytes are not {names}; save it as UTF-8")


def read_json(file: Path, pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """What a JSON file holds; `pairs_hook` is json's `object_pairs_hook`. `UserError` if it is no JSON."""
    try:
        return json.loads(read_text(file), object_pairs_hook=pairs_hook)
    except json.JSONDecodeError as error:
        raise UserError(f"{file} line {error.lineno}: not JSON ({error.msg}); mend it") from error
    except RecursionError as error:
        raise UserError(f"{file}: nested too deeply to be a file of class texts; check the path") from error
