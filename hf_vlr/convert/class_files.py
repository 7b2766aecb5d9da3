"""Files about the classes of a recogniser that its checkpoint says nothing of: names, and numbers per class."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_vlr.errors import UserError

WORDNET_ID = re.compile(r"n\d{8}")


def read_class_names(path: str, num_classes: int) -> list[str]:
    """C unique class names, by index.

    Understood: a JSON list of names, or of objects with `name` and perhaps `id` (iNaturalist's `categories.json`);
    lines `WNID INDEX NAME` (ImageNet, ordered by WNID); lines `NAME … INDEX` (Places); else a name a line. Underscores
    become spaces. Names that repeat are told apart by their WordNet id or their index, in brackets. Raises `UserError`
    naming the file and what is wrong with it.
    """
    file = Path(path).expanduser()
    entries = json_entries(file) if file.suffix == ".json" else line_entries(read_lines(file))
    if len(entries) != num_classes:
        raise UserError(f"{path} names {len(entries)} classes, the checkpoint has {num_classes}")
    times = Counter(name for name, _ in entries)
    names = [name if times[name] == 1 else f"{name} ({mark})" for name, mark in entries]
    if len(set(names)) != len(names):
        raise UserError(f"{path} names a class twice: {Counter(names).most_common(1)[0][0]}")
    return names


def read_counts(path: str, num_classes: int, what: str) -> list[int]:
    """One whole number >= 0 per class: a JSON list, or a number a line."""
    file = Path(path).expanduser()
    numbers = read_json(file) if file.suffix == ".json" else [line.strip() for line in read_lines(file)]
    try:
        counts = [int(number) for number in numbers]
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {what} must be a whole number for each class ({error})") from error
    if len(counts) != num_classes or min(counts) < 0:
        raise UserError(f"{path}: {what} must be {num_classes} numbers of at least 0; it has {len(counts)}")
    return counts


def line_entries(lines: Sequence[str]) -> list[tuple[str, str]]:
    """(name, mark) by class index; the mark tells apart classes that share a name."""
    words = [line.split() for line in lines]
    if all(len(row) >= 3 and WORDNET_ID.fullmatch(row[0]) for row in words):
        return [(spoken(row[-1]), row[0]) for row in sorted(words)]
    if all(len(row) >= 2 and row[-1].isdecimal() for row in words):
        order = {int(row[-1]): row[0] for row in words}
        if sorted(order) == list(range(len(words))):
            return [(spoken(order[index]), str(index)) for index in range(len(words))]
    return [(spoken(" ".join(row)), str(index)) for index, row in enumerate(words)]


def json_entries(file: Path) -> list[tuple[str, str]]:
    """(name, mark) by class index, of a list of names or of objects with a `name`."""
    found = read_json(file)
    if all(isinstance(one, str) for one in found):
        return [(spoken(name), str(index)) for index, name in enumerate(found)]
    if not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in found):
        raise UserError(f"{file} must be a list of names, or of objects with a name")
    ordered = sorted(found, key=lambda one: int(one["id"])) if all("id" in one for one in found) else found
    return [(spoken(one["name"]), str(one.get("id", index))) for index, one in enumerate(ordered)]


def spoken(name: str) -> str:
    """A name as words: `_` and `/` are spaces, and Places' leading `/a/` is no part of it."""
    return " ".join(re.sub(r"^/[a-z]/", "", name).replace("_", " ").replace("/", " ").split())


def read_json(file: Path) -> list[Any]:
    """A JSON list; else `UserError`."""
    try:
        found = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not JSON ({error})") from error
    if not isinstance(found, list):
        raise UserError(f"{file} must hold a list")
    return found


def read_lines(file: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    return [line for line in read_text(file).splitlines() if line.strip()]


def read_text(file: Path) -> str:
    """A UTF-8 file's text; else `UserError`."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
