"""The list of classes beside VL-LTR's corpora: `labels.txt` (ImageNet, Places) or `categories.json` (iNaturalist)."""

from pathlib import Path

from hf_vlr.data.texts.files import read_json, read_text
from hf_vlr.data.texts.names import WORDNET_ID
from hf_vlr.errors import UserError


def corpus_names(folder: str | Path) -> list[str] | None:
    """The class names in a corpus's own list, by index, spelled as VL-LTR spells them; None where it has no list.

    `labels.txt`: lines `WNID NUMBER NAME` ordered by id, or `NAME … INDEX` ordered by index; `_` is a space, and in
    Places' lines `/` too. `categories.json`: objects with a `name`, as they stand.
    """
    root = Path(folder).expanduser()
    if (root / "categories.json").is_file():
        return _categories(root / "categories.json")
    if not (root / "labels.txt").is_file():
        return None
    file = root / "labels.txt"
    rows = [line.split() for line in read_text(file).split("\n") if line.strip()]
    if rows and all(len(row) >= 2 and WORDNET_ID.fullmatch(row[0]) for row in rows):
        return [row[-1].replace("_", " ") for row in sorted(rows, key=lambda row: row[0])]
    if not rows or not all(len(row) >= 2 and row[-1].isdecimal() for row in rows):
        raise UserError(f"{file}: its lines are neither `WNID NUMBER NAME` nor `NAME … INDEX`; mend it or remove it")
    rows.sort(key=lambda row: int(row[-1]))
    if [int(row[-1]) for row in rows] != list(range(len(rows))):
        raise UserError(f"{file}: its indices are not 0 … {len(rows) - 1}, each once; mend it or remove it")
    return [row[0].replace("_", " ").replace("/", " ") for row in rows]


def _categories(file: Path) -> list[str]:
    found = read_json(file)
    named = isinstance(found, list) and all(isinstance(one, dict) for one in found)
    if not named or not all(isinstance(one.get("name"), str) for one in found):
        raise UserError(f"{file}: it must be a list of objects with a name; mend it or remove it")
    return [one["name"] for one in found]
