"""The file of results: one for each machine, a record for each line of the board."""

import json
import math
from pathlib import Path
from typing import Any

from hf_vlr.bench.machine import hardware_name
from hf_vlr.disk import whole_file
from hf_vlr.errors import UserError

SCHEMA = 1

Results = dict[str, Any]


def results_path(folder: Path, hardware: dict[str, Any]) -> Path:
    """Where the results of a machine lie."""
    return folder / f"{hardware_name(hardware)}.json"


def read_results(path: Path) -> Results:
    """`{"schema", "hardware", "lines": {name: record}}`. Raises `UserError` for a file that is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; measure with hf-vlr bench") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); measure again with hf-vlr bench") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise UserError(f"{path} holds no results of hf-vlr bench that this version reads")
    return found


def keep(path: Path, hardware: dict[str, Any], record: dict[str, Any]) -> None:
    """Put a record into the file in place of the line's earlier one; the others stay, and the file is always whole."""
    lines = read_results(path)["lines"] if path.is_file() else {}
    lines[record["name"]] = record
    # what has no number stands last
    ordered = dict(sorted(lines.items(), key=lambda item: item[1]["row"] or math.inf))
    text = json.dumps({"schema": SCHEMA, "hardware": hardware, "lines": ordered}, indent=1, ensure_ascii=False)
    with whole_file(path, "name another folder with --out") as partial:
        partial.write_text(text + "\n", encoding="utf-8")
