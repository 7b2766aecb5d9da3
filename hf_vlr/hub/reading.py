"""JSON, YAML and lines of a folder, or the file that is damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from hf_vlr.errors import UserError


def read_json(path: Path) -> dict[str, Any] | None:
    """The object of a JSON file, None where there is no file; `UserError` for a damaged one, or one of another kind."""
    return _parsed(path, json.loads)


def read_yaml(path: Path) -> dict[str, Any] | None:
    """The same of a YAML file."""
    return _parsed(path, yaml.safe_load)


def read_text(path: Path) -> str:
    """The text of a file; `UserError` where it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged ({error}); mend it, or make it anew") from error


def _parsed(path: Path, parse: Callable[[str], Any]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}); mend it, or make it anew") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged (no names with values); mend it, or make it anew")
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, none where there is no file; `UserError` for a damaged one."""
    if not path.is_file():
        return []
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); mend or remove it") from error
    if not all(isinstance(line, dict) for line in found):
        raise UserError(f"{path} is damaged (a line without names and values); mend or remove it")
    return found
