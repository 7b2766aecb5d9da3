"""The file of results: one for each machine, a record for each line of the board."""

import json
import math
from pathlib import Path
from typing import Any

from hf_vlr.bench.machine import hardware_name
from hf_vlr.disk import whole_file
from hf_vlr.errors import UserError

SCHEMA = 1
# of every record, and what it has one of: a reason, the pairs of a contest, the lines of a study
KEYS, KINDS = {"name", "row", "title", "threads", "seed", "versions"}, {"not_run", "pairs", "lines"}
HARDWARE = {"chip", "device", "cores"}

Results = dict[str, Any]


def results_path(folder: Path, hardware: dict[str, Any], scale: str = "full") -> Path:
    """Where the results of a machine lie; those of small sizes apart, since they say little."""
    return folder / f"{hardware_name(hardware)}{'' if scale == 'full' else f'-{scale}'}.json"


def read_results(path: Path) -> Results:
    """`{"schema", "hardware", "lines": {name: record}}`. Raises `UserError` for a file that is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; measure with hf-vlr bench") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); move it away and measure with hf-vlr bench") from error
    if not _are_results(found):
        raise UserError(f"{path} holds no results of hf-vlr bench that this version reads; move it away")
    return found


def _are_results(found: Any) -> bool:
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        return False
    hardware, lines = found.get("hardware"), found.get("lines")
    if not isinstance(hardware, dict) or not isinstance(lines, dict) or not set(hardware) >= HARDWARE:
        return False
    return all(isinstance(one, dict) and set(one) >= KEYS and not KINDS.isdisjoint(one) for one in lines.values())


def check_machine(path: Path, hardware: dict[str, Any]) -> None:
    """Raise `UserError` where the file cannot be read, or holds the results of another machine of the same name."""
    if not path.exists():
        return
    earlier = read_results(path)["hardware"]
    if any(earlier.get(name, value) != value for name, value in hardware.items()):
        raise UserError(f"{path} holds the results of another machine ({earlier}); name another folder with --out")


def keep(path: Path, hardware: dict[str, Any], record: dict[str, Any]) -> bool:
    """Put a record into the file in place of the line's earlier one; the others stay, and the file is always whole.

    A line that was measured is not replaced by one that was not; whether the record is in the file now. Not for several
    processes at once: see `hf_vlr.bench.sitting.alone`.
    """
    lines = read_results(path)["lines"] if path.exists() else {}
    if "not_run" in record and "not_run" not in lines.get(record["name"], record):
        return False
    lines[record["name"]] = record
    # what has no number stands last
    ordered = dict(sorted(lines.items(), key=lambda item: item[1]["row"] or math.inf))
    text = json.dumps({"schema": SCHEMA, "hardware": hardware, "lines": ordered}, indent=1, ensure_ascii=False)
    with whole_file(path, "name another folder with --out") as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    return True
