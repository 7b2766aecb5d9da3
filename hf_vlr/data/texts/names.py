"""Finding a class by its name: spelling aside, and never one class for another."""

import re
from collections import defaultdict
from collections.abc import Sequence

from hf_vlr.errors import UserError

WORDNET_ID = re.compile(r"\bn\d{8}\b")
# What tells apart classes of one name: `missile (n04008634)`, `missile (657)`.
_MARK = re.compile(r"\s*\((?:n\d{8}|\d+)\)$")


def bare_name(name: str) -> str:
    """A class name without the mark in brackets that tells it from another of the same name."""
    return _MARK.sub("", name) or name


def plain_name(name: str) -> str:
    """A class name as words: no mark, spaces for `_` and `/`, and without Places' leading `/a/`."""
    return " ".join(re.split(r"[\s_/]+", re.sub(r"^/[a-z]/", "", bare_name(name)))).strip()


def name_key(name: str) -> str:
    """What two spellings of one name have in common."""
    return " ".join(re.split(r"[\s_/]+", re.sub(r"^/[a-z]/", "", name))).strip().casefold()


class NameIndex:
    """The classes of a name, by index."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._marked: dict[str, list[int]] = defaultdict(list)
        self._bare: dict[str, list[int]] = defaultdict(list)
        for label, name in enumerate(class_names):
            self._marked[name_key(name)].append(label)
            self._bare[name_key(bare_name(name))].append(label)

    def find(self, name: str) -> list[int]:
        """All classes that `name` may mean: those of the whole name, else those of the name without its mark."""
        key = name_key(name)
        return self._marked.get(key) or self._bare.get(key) or []


def require_same_order(file: object, names: Sequence[str], class_names: Sequence[str]) -> None:
    """Raise `UserError` where a file's list of classes is not the dataset's: another number, or another order.

    Names may be spelled differently or be in another language; but a name that occurs once in each list must stand
    at the same index in both, or texts would go to the wrong classes.
    """
    if len(names) != len(class_names):
        raise UserError(f"{file}: {len(names)} classes, the dataset has {len(class_names)}; use the dataset's own list")
    ours, theirs = NameIndex(class_names), NameIndex(names)
    for label, name in enumerate(names):
        found = ours.find(name)
        if len(found) == 1 and len(theirs.find(name)) == 1 and found != [label]:
            raise UserError(
                f"{file}: {name!r} is class {label} there but class {found[0]} of the dataset; reorder one of them"
            )


def shown(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
