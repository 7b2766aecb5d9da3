"""Descriptions that a language model wrote, in JSON."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_vlr.data.texts.files import read_json
from hf_vlr.data.texts.names import NameIndex, name_key, shown
from hf_vlr.data.texts.row import TextRow
from hf_vlr.errors import UserError

logger = logging.getLogger(__name__)


class _Pairs(list):
    """A JSON object in its order, with the keys that occur twice."""


def llm_rows(path: str | Path, class_names: Sequence[str]) -> Iterator[TextRow]:
    """The descriptions in a JSON file: `{NAME: [sentence, …]}` (as CuPL's), `{INDEX: […]}`, or a list per class.

    Names are compared without regard to case, `_` and `/`. A name that means several classes, or occurs twice in the
    file, is refused, unless the file has exactly one entry for each class, in the order of the classes: then each
    entry is its class's own. Names that mean no class are counted in a warning. Raises `UserError` naming what cannot
    be assigned, and for a file in which no name is a class.
    """
    file = Path(path).expanduser()
    found = read_json(file, _Pairs)
    if isinstance(found, _Pairs):
        labels = _labels(file, [key for key, _ in found], class_names)
        entries = [(label, key, value) for label, (key, value) in zip(labels, found) if label is not None]
    elif isinstance(found, list):
        if len(found) != len(class_names):
            raise UserError(f"{file}: a list of {len(found)} entries, the dataset has {len(class_names)} classes")
        entries = [(label, str(label), value) for label, value in enumerate(found)]
    else:
        raise UserError(f"{file}: it must be an object or a list of lists of sentences")
    for label, key, value in entries:
        for sentence in _sentences(file, key, value):
            yield TextRow(label, sentence, f"llm {file.name}")


def _labels(file: Path, keys: list[str], class_names: Sequence[str]) -> list[int | None]:
    """The class of each key; None for a name that is no class."""
    index = NameIndex(class_names)
    places = [index.find(key) for key in keys]
    if keys and all(key.isdecimal() for key in keys):
        return _numbers(file, keys, places, len(class_names))
    if len(keys) == len(class_names) and all(label in found for label, found in enumerate(places)):
        return list(range(len(keys)))
    times = Counter(map(name_key, keys))
    several = [key for key, found in zip(keys, places) if len(found) > 1 or (found and times[name_key(key)] > 1)]
    if several:
        raise UserError(
            f"{file}: {len(several)} names do not tell which class they mean: {shown(several)}; key the file by index"
        )
    lost = [key for key, found in zip(keys, places) if not found]
    if len(lost) == len(keys):
        raise UserError(f"{file}: none of its {len(keys)} names is a class: {shown(lost)}")
    if lost:
        logger.warning("%s: %d of %d names are no class: %s", file, len(lost), len(keys), shown(lost))
    return [found[0] if found else None for found in places]


def _numbers(file: Path, keys: list[str], places: list[list[int]], num_classes: int) -> list[int | None]:
    labels = [int(key) for key in keys]
    if max(labels) >= num_classes:
        raise UserError(f"{file}: class {max(labels)} is outside 0 … {num_classes - 1}; it is of another dataset")
    label, times = Counter(labels).most_common(1)[0]
    if times > 1:
        raise UserError(f"{file}: class {label} occurs {times} times; join its sentences into one list")
    for key, number, found in zip(keys, labels, places):
        if found and found != [number]:
            raise UserError(f"{file}: {key!r} is a number of one class and the name of class {found[0]}; use a list")
    return list(labels)


def _sentences(file: Path, key: str, value: Any) -> list[str]:
    sentences = [value] if isinstance(value, str) else value
    if (
        isinstance(sentences, _Pairs)
        or not isinstance(sentences, list)
        or not all(isinstance(one, str) for one in sentences)
    ):
        raise UserError(f"{file}: the entry {key!r} is not a list of sentences; mend it")
    return sentences
