"""Files about the classes of a recogniser that its checkpoint says nothing of: names, and numbers per class."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from hf_vlr.errors import UserError
from hf_vlr.pickles import shown

WORDNET_ID = re.compile(r"n\d{8}")
PLACE = re.compile(r"/[a-z]/.")
MAX_COUNT = 2**63 - 1
MAX_DIGITS = len(str(MAX_COUNT))
EXAMPLES = 2
# control characters, halves of a pair that UTF-8 cannot write, separators of lines and paragraphs
UNWRITABLE = ("Cc", "Cs", "Zl", "Zp")


class Entry(NamedTuple):
    """A class's name, and the mark that tells it apart from another of that name."""

    name: str
    mark: str


def read_labels(path: str, num_classes: int) -> tuple[list[str], str]:
    """C unique class names, by index, and a note that says how the file was read.

    JSON, whose names stay as they are: a list of names, a list of objects with `name` and perhaps `id` (iNaturalist's
    `categories.json`), or a mapping of `"0"`, `"1"`, … to names (`id2label`). Text, where `_` means a space:

    - lines `WNID INDEX NAME` or `WNID NAME` (ImageNet), in the order of the WordNet ids, names up to their first comma;
    - lines `NAME INDEX` (Places), whose indices are 0 … C - 1 in any order: where all names begin with `/x/`, or where
      every line is two words and the names are unique;
    - else a name a line, numbers and all.

    Names that repeat are told apart by their WordNet id or their index, in brackets. Raises `UserError` naming the
    file and what is wrong with it: another number of classes, indices that contradict the order of the WordNet ids, a
    name that is empty or holds control characters.
    """
    file = Path(path).expanduser()
    entries, form = json_entries(file) if file.suffix.lower() == ".json" else line_entries(file, read_lines(file))
    if len(entries) != num_classes:
        raise UserError(f"{path} names {len(entries)} classes, the checkpoint has {num_classes}")
    for index, (name, _) in enumerate(entries):
        if not name.strip():
            raise UserError(f"{path}: the name of class {index} is empty")
        check_writable(name, f"{path}: the name of class {index}")
    times = Counter(name for name, _ in entries)
    names = [name if times[name] == 1 else f"{name} ({mark})" for name, mark in entries]
    if len(set(names)) != len(names):
        raise UserError(f"{path} names a class twice: {Counter(names).most_common(1)[0][0]}")
    return names, label_note(file, names, form)


def check_writable(text: str, what: str) -> None:
    """Raise `UserError` for a text with a character that no name has; `what` says where it stands."""
    found = next((one for one in text if unicodedata.category(one) in UNWRITABLE), None)
    if found is not None:
        raise UserError(f"{what} holds the control character U+{ord(found):04X}: {shown(text)}")


def label_note(file: Path, names: Sequence[str], form: str) -> str:
    """`class names from FILE, read as FORM: 0 NAME, 1 NAME, …`."""
    examples = [f"{index} {name}" for index, name in enumerate(names[:EXAMPLES])]
    more = ["…"] if len(names) > EXAMPLES else []
    return f"class names from {file.name}, read as {form}: {', '.join([*examples, *more])}"


def read_counts(path: str, num_classes: int, what: str) -> list[int]:
    """One whole number from 0 to 2^63 - 1 per class: a JSON list, or a number a line."""
    file = Path(path).expanduser()
    if file.suffix.lower() == ".json":
        numbers = read_json(file)
        if not isinstance(numbers, list):
            raise UserError(f"{path}: {what} must be a list")
    else:
        numbers = [whole_number(line.strip()) for line in read_lines(file)]
    if len(numbers) != num_classes:
        raise UserError(f"{path}: {what} must be {num_classes} numbers, one for each class; it has {len(numbers)}")
    for index, number in enumerate(numbers):
        if type(number) is not int or not 0 <= number <= MAX_COUNT:
            raise UserError(f"{path}: {what} must be whole numbers from 0 to 2^63 - 1; that of class {index} is not")
    return numbers


def line_entries(file: Path, lines: Sequence[str]) -> tuple[list[Entry], str]:
    """The classes of a text file, by index, and its form."""
    for number, line in enumerate(lines, 1):
        check_writable(line.replace("\t", " "), f"{file}: line {number}")  # before splitting, which drops some
    words = [line.split() for line in lines]
    if words and all(len(row) > 1 and WORDNET_ID.fullmatch(row[0]) for row in words):
        return wordnet_entries(file, words)
    places = bool(words) and all(PLACE.match(row[0]) for row in words)
    spoken = place if places else plain
    if words and all(len(row) > 1 if places else len(row) == 2 for row in words):
        order = {whole_number(row[-1]): row[0] for row in words}
        permuted = order.keys() == set(range(len(words)))
        if permuted and (places or len(set(order.values())) == len(words)):
            return [Entry(spoken(order[index]), str(index)) for index in range(len(words))], "NAME INDEX"
        if places and None not in order:
            raise UserError(f"{file}: the indices of its lines NAME INDEX must be 0 to {len(words) - 1}, each once")
    return [Entry(spoken(line), str(index)) for index, line in enumerate(lines)], "a name a line"


def wordnet_entries(file: Path, words: Sequence[Sequence[str]]) -> tuple[list[Entry], str]:
    """The classes of lines `WNID INDEX NAME` or `WNID NAME`, in the order of their WordNet ids."""
    ordered = sorted(words, key=lambda row: row[0])
    for one, other in pairwise(ordered):
        if one[0] == other[0]:
            raise UserError(f"{file} names {one[0]} twice")
    if not all(len(row) > 2 and whole_number(row[1]) is not None for row in ordered):
        return [Entry(first_synonym(row[1:]), row[0]) for row in ordered], "WNID NAME, ordered by WNID"
    # indices that are not 0 … C - 1 are those of a development kit, from 1 and in an order of its own
    indices = [whole_number(row[1]) for row in ordered]
    if sorted(indices) == list(range(len(indices))):
        for index, (row, stated) in enumerate(zip(ordered, indices)):
            if index != stated:
                raise UserError(
                    f"{file} contradicts itself: {row[0]} has the index {stated}, and by the order of the WordNet ids "
                    f"it is class {index}; give the names alone, a line each, in the checkpoint's order"
                )
    return [Entry(first_synonym(row[2:]), row[0]) for row in ordered], "WNID INDEX NAME, ordered by WNID"


def json_entries(file: Path) -> tuple[list[Entry], str]:
    """The classes of a JSON file, by index, and its form."""
    found = read_json(file)
    if isinstance(found, dict):
        if found.keys() != {str(index) for index in range(len(found))}:
            raise UserError(f'{file}: its keys must be "0", "1", … to "{len(found) - 1}", one for each class')
        found, form = [found[str(index)] for index in range(len(found))], "INDEX: NAME"
        if not all(isinstance(name, str) for name in found):
            raise UserError(f"{file} must map indices to names")
    else:
        form = "a list of names"
    if all(isinstance(one, str) for one in found):
        return [Entry(name, str(index)) for index, name in enumerate(found)], form
    if not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in found):
        raise UserError(f"{file} must be a list of names, or of objects with a name")
    if not any("id" in one for one in found):
        return [Entry(one["name"], str(index)) for index, one in enumerate(found)], "a list of objects with a name"
    by_id: dict[int, str] = {}
    for one in found:
        number = whole_number(one["id"]) if isinstance(one.get("id"), str) else one.get("id")
        if type(number) is not int or number in by_id:
            raise UserError(f"{file}: the id of {shown(one['name'])} must be a whole number that no other class has")
        by_id[number] = one["name"]
    return [Entry(by_id[number], shown(number)) for number in sorted(by_id)], "objects with a name, ordered by id"


def plain(name: str) -> str:
    """A name of a text file, in which `_` is a space."""
    return " ".join(name.replace("_", " ").split())


def place(name: str) -> str:
    """A name of Places, whose leading `/x/` is no part of it and whose further `/` are spaces."""
    return plain(re.sub(r"^\s*/[a-z]/", "", name).replace("/", " "))


def first_synonym(words: Sequence[str]) -> str:
    """Of a WordNet entry's names, which commas separate, the first."""
    return plain(" ".join(words).partition(",")[0])


def whole_number(word: str) -> int | None:
    """The number that a word of at most 19 digits is; else None."""
    return int(word) if word.isascii() and word.isdecimal() and len(word) <= MAX_DIGITS else None


def read_json(file: Path) -> list[Any] | dict[str, Any]:
    """A JSON list or mapping; else `UserError`."""
    try:
        found = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not JSON ({error})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file} is not JSON of names or numbers: a number is too long, or lists lie too deep"
        ) from error
    if not isinstance(found, list | dict):
        raise UserError(f"{file} must hold a list")
    return found


def read_lines(file: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    return [line for line in read_text(file).split("\n") if line.strip()]


def read_text(file: Path) -> str:
    """A UTF-8 file's text; else `UserError`."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
