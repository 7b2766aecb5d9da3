"""Lists of classes by WordNet id: `labels.txt`, `LOC_synset_mapping.txt`, or ids alone."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hf_vlr.data.texts.files import read_text
from hf_vlr.data.texts.names import WORDNET_ID, require_same_order
from hf_vlr.errors import UserError


class LabelEntry(NamedTuple):
    """A class of a list: its WordNet id, and its name or ''."""

    wnid: str
    name: str


def read_labels(path: str | Path) -> list[LabelEntry]:
    """The classes of a file of lines `WNID`, `WNID NAME, …` or `WNID NUMBER NAME`, by class index.

    Classes are ordered by WordNet id, as ImageNet's are, whatever the order of the lines. Of several names the
    first counts; `_` is a space. Raises `UserError` for another kind of line and for an id that occurs twice.
    """
    file = Path(path).expanduser()
    entries = [_entry(file, line.split()) for line in read_text(file).split("\n") if line.strip()]
    if not entries:
        raise UserError(f"{file}: no classes in it; it needs a line `WNID NAME` for each class")
    wnid, times = Counter(entry.wnid for entry in entries).most_common(1)[0]
    if times > 1:
        raise UserError(f"{file}: {wnid} occurs {times} times; keep one line per class")
    return sorted(entries)


def class_wnids(class_names: Sequence[str], labels: str | Path | None) -> list[LabelEntry]:
    """The WordNet id and name of each class of a dataset, C entries.

    Ids in the class names themselves (`n01440764`, `missile (n04008634)`) count before the file `labels`, whose names
    they then look up. Raises `UserError` where neither tells, or where the file is of other classes.
    """
    entries = read_labels(labels) if labels else []
    found = [WORDNET_ID.search(name) for name in class_names]
    if all(found):
        names = {entry.wnid: entry.name for entry in entries}
        return [LabelEntry(match[0], names.get(match[0], "")) for match in found]
    if not labels:
        raise UserError("the class names hold no WordNet ids; give a list of them: wordnet:LABELS, lines `WNID NAME`")
    require_same_order(labels, [entry.name for entry in entries], class_names)
    return entries


def _entry(file: Path, words: list[str]) -> LabelEntry:
    if not WORDNET_ID.fullmatch(words[0]):
        raise UserError(f"{file}: {words[0]!r} is no WordNet id like n01440764; lines are `WNID NAME`")
    rest = words[2:] if len(words) > 2 and words[1].isdecimal() else words[1:]
    return LabelEntry(words[0], " ".join(rest).split(",")[0].replace("_", " ").strip())
