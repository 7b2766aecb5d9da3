"""JSON, YAML and lines of a folder, or the file that is damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from hf_vlr.errors import UserError


def read_json(path: Path) -> Any:
    """The value of a JSON file, None where there is none; `UserError` for a damaged one."""
    return _parsed(path, json.loads)


def read_yaml(path: Path) -> Any:
    """The same of a YAML file."""
    return _parsed(path, yaml.safe_load)


def _parsed(path: Path, parse: Callable[[str], Any]) -> Any:
    if not path.is_file():
        return None
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}); mend it, or make it anew") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, none where there is no file; `UserError` for a damaged one."""
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); mend or remove it") from error
