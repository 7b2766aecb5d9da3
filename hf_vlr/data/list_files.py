"""What the published files of a list-based dataset say: which image is of which class, what the classes are called."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hf_vlr.data.corpus import ClassTextCorpus, TextRow, build_corpus
from hf_vlr.data.manifest import Entry
from hf_vlr.data.source import ImageSource
from hf_vlr.data.texts.files import read_text
from hf_vlr.data.texts.labels import read_labels
from hf_vlr.data.texts.names import WORDNET_ID, plain_name
from hf_vlr.errors import UserError

LABEL = re.compile(r"-?\d{1,9}")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# The second is what a Windows shell writes when a command's output goes into a file.
ENCODINGS = ("utf-8-sig", "utf-16")
# A label that no class has: the row is reported and left out.
UNREADABLE = "line of a list that cannot be used"
NO_CLASS = -1
PROBES = 64


class Line(NamedTuple):
    """A line of a list: the image's path below the images' folder and its class, or what is wrong with the line."""

    path: str
    label: int
    fault: str = ""


class ClassName(NamedTuple):
    """A class's name, and what tells it from others of that name: a WordNet id, a path, or an index."""

    name: str
    mark: str


class Place(NamedTuple):
    """Where a list's images lie: a folder, and how a line is spelled below it."""

    root: Path
    form: Callable[[Line], str]


class Known(NamedTuple):
    """What is known of a published file's SHA-256, and which file it is; `ends` is '' where `begins` is all of it."""

    begins: str
    ends: str
    what: str


def read_list(file: Path) -> list[Line]:
    """The lines `PATH LABEL` of a list, in their order.

    Separated by blanks or tabs, so that a path may hold blanks; any line ends, a byte-order mark and empty lines are
    understood. A line that cannot be understood, or that the file's end cuts off, stays as a fault with its number.
    Raises `UserError` for a file that cannot be read, one that is no such list, and for a path that leaves the
    images' folder (absolute, or with `..`), because a downloaded list must not reach the user's other files.
    """
    text = read_text(file, ENCODINGS)
    lines = []
    for number, row in enumerate(text.split("\n"), 1):
        if row.strip():
            lines.append(parse_line(row.strip(), f"{file.name} line {number}"))
    wrong = sum(bool(line.fault) for line in lines)
    if not lines or 2 * wrong > len(lines):
        raise UserError(f"{file}: {wrong} of {len(lines)} lines are not `PATH LABEL`; is it the list itself?")
    if not text.rstrip(" \t").endswith("\n"):
        lines[-1] = cut_line(lines, f"{file.name} line {number}")
    return lines


def parse_line(row: str, where: str) -> Line:
    """One line of a list. Raises `UserError` for a path that leaves the images' folder."""
    words = row.rsplit(None, 1)
    if len(words) < 2 or not LABEL.fullmatch(words[1]) or CONTROL.search(words[0]):
        return Line("", NO_CLASS, f"{where}: {row[:80]!r} is not `PATH LABEL`")
    return Line(safe_path(words[0], where), int(words[1]))


def safe_path(path: str, where: str) -> str:
    """A path of a list, if it stays below the folder it is joined to; else `UserError`."""
    if path.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", path) or ".." in re.split(r"[/\\]", path):
        raise UserError(f"{where}: {path!r} leaves the images' folder; a list holds paths below it, without ..")
    return path.removeprefix("./")


def cut_line(lines: Sequence[Line], where: str) -> Line:
    """The last line of a file that ends without a line end: a fault if its folder says that digits are missing."""
    *before, last = lines
    folder = last.path.rpartition("/")[0]
    labels = {line.label for line in before if line.path.rpartition("/")[0] == folder}
    if last.fault:
        return last._replace(fault=f"{last.fault}, the file is cut off there")
    if len(labels) != 1 or last.label in labels:
        return last
    return Line("", NO_CLASS, f"{where}: cut off after {last.path} {last.label}; its folder is class {labels.pop()}")


def find_lists(
    folder: Path, lists: str | Path | None, below: Sequence[str], wanted: Mapping[str, Sequence[str]], published: str
) -> dict[str, Path]:
    """The list of each split that is there, by the first of its names in the first folder that has one.

    Looked for in `lists` if it is given, else in `folder` and its sub-folders `below`. Raises `UserError` that names
    the files and where they are published if there is none for training.
    """
    homes = [source_folder(lists)] if lists is not None else [folder, *(folder / name for name in below)]
    found = {}
    for split, names in wanted.items():
        there = [home / name for home in homes for name in names if (home / name).is_file()]
        if there:
            found[split] = there[0]
    if "train" not in found:
        files = ", ".join(names[0] for names in wanted.values())
        raise UserError(f"{homes[0]}: {wanted['train'][0]} is not here; put {files} there, published {published}")
    return found


def source_folder(source_dir: str | Path) -> Path:
    """The folder of published files; `UserError` if it is not there."""
    folder = Path(source_dir).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; it must hold the published lists and images")
    return folder


def image_roots(folder: Path, images_dir: str | Path | None, below: Sequence[str]) -> list[Path]:
    """Where a list's images may lie: `images_dir` if it is given, else the folder and its sub-folders `below`."""
    if images_dir is not None:
        return [source_folder(images_dir)]
    return [folder, *(folder / name for name in below)]


def class_folders(lists: Iterable[Sequence[Line]], folder_of: Callable[[str], str]) -> dict[int, str]:
    """A folder for each class and no folder twice, as most lines have it; `folder_of` is '' where a path has none."""
    votes = Counter((line.label, folder_of(line.path)) for lines in lists for line in lines if not line.fault)
    found: dict[int, str] = {}
    taken = {""}
    for (label, folder), _ in votes.most_common():
        if label not in found and folder not in taken:
            found[label] = folder
            taken.add(folder)
    return found


def place_lists(
    lists: Mapping[str, Sequence[Line]], roots: Sequence[Path], forms: Sequence[Callable[[Line], str]]
) -> dict[str, list[Entry]]:
    """The entries of each list, with their images where most of some probed lines find them.

    A list whose images are nowhere takes the place of another list, and all of them will count as absent. Raises
    `UserError` that names the roots where no list finds an image.
    """
    places = {split: find_place(lines, roots, forms) for split, lines in lists.items()}
    known = next((place for place in places.values() if place is not None), None)
    if known is None:
        example = next((line.path for lines in lists.values() for line in lines if not line.fault), "those listed")
        tried = ", ".join(str(root) for root in roots)
        raise UserError(f"no image such as {example} below any of: {tried}; name the images' folder with images_dir=")
    return {split: entries(lines, places[split] or known) for split, lines in lists.items()}


def find_place(lines: Sequence[Line], roots: Sequence[Path], forms: Sequence[Callable[[Line], str]]) -> Place | None:
    """The root and the form that find most of some lines; None if none finds any, the first of equals."""
    probes = probed([line for line in lines if not line.fault])
    best, most = None, 0
    for root in filter(Path.is_dir, roots):
        for form in forms:
            found = sum((root / form(line)).is_file() for line in probes)
            if found > most:
                best, most = Place(root, form), found
            if most == len(probes):
                return best
    return best


def probed(lines: Sequence[Line]) -> list[Line]:
    """Lines evenly spaced over a list, and over the folders in it, because folders may be spelled in several ways."""
    firsts: dict[str, Line] = {}
    for line in lines:
        firsts.setdefault(line.path.rpartition("/")[0], line)
    chosen: dict[Line, None] = {}
    for some in (list(firsts.values()), lines):
        chosen |= dict.fromkeys(some[:: max(1, len(some) // PROBES)])
    return list(chosen)


def entries(lines: Sequence[Line], place: Place) -> list[Entry]:
    """The lines as entries; one that cannot be read becomes an entry of no class with its fault."""
    return [
        Entry(Path(), NO_CLASS, "", line.fault, UNREADABLE)
        if line.fault
        else Entry(place.root / place.form(line), line.label, "", line.path)
        for line in lines
    ]


def as_listed(line: Line) -> str:
    """The path as the list has it."""
    return line.path


def read_class_names(file: Path) -> list[ClassName]:
    """The classes that a text file names, by index.

    Understood: lines `WNID NAME`, `WNID NAME, SYNONYM` or `WNID NUMBER NAME` (in the order of the WordNet ids, as
    ImageNet's classes are); lines `NAME … NUMBER` (Places); else a name a line. `_` and `/` become spaces. Raises
    `UserError` for numbers that repeat and as its readers do.
    """
    rows = [line.split() for line in read_text(file, ENCODINGS).split("\n") if line.strip()]
    if not rows:
        raise UserError(f"{file}: it names no classes; it needs a line for each")
    if all(WORDNET_ID.fullmatch(row[0]) for row in rows):
        return [ClassName(plain_name(entry.name) or entry.wnid, entry.wnid) for entry in read_labels(file)]
    if all(len(row) > 1 and row[-1].isdecimal() for row in rows):
        by_number = {int(row[-1]): row[0] for row in rows}
        if len(by_number) != len(rows):
            raise UserError(f"{file}: two classes have one number; each line must be `NAME NUMBER`")
        return [ClassName(plain_name(name), folder_name(name)) for _, name in sorted(by_number.items())]
    return [ClassName(plain_name(" ".join(row)), str(index)) for index, row in enumerate(rows)]


def folder_name(name: str) -> str:
    """A scene's folder without its first letter: `/a/arena/hockey`, `arena-hockey` are `arena/hockey`."""
    parts = name.strip("/").split("/")
    if len(parts) > 1 and parts[0] == parts[1][:1]:
        parts = parts[1:]
    return "/".join(parts).replace("-", "/")


def class_texts(
    texts: str | Sequence[str] | None, name: str, class_names: Sequence[str], marks: Sequence[str]
) -> list[TextRow]:
    """The class texts that a spec like `data.texts` names (`wiki:DIR+templates`), by class; none for None.

    `wordnet` without a file takes the WordNet ids from the marks, `taxonomy:FILE` the categories' numbers, because
    names may repeat. Raises as `build_corpus` does.
    """
    if texts is None:
        return []
    named = {
        "wordnet": [f"{name} ({mark})" for name, mark in zip(class_names, marks, strict=True)],
        "taxonomy": list(marks if all(mark.isdecimal() for mark in marks) else class_names),
    }
    corpora = []
    for part in texts.split("+") if isinstance(texts, str) else texts:
        names = named.get(part.partition(":")[0], list(class_names))
        source = ImageSource(name, "train", [], np.zeros(0, np.int64), [], names)
        corpora.append(build_corpus([part], source))
    return list(ClassTextCorpus.merge(*corpora).rows())


def checksum_table(files: Iterable[Path], known: Mapping[str, Known]) -> str:
    """A Markdown table of the files' sizes and SHA-256, and whether they are the published ones."""
    rows = ["| file | bytes | SHA-256 | |", "|---|---:|---|---|"]
    for file in files:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        verdict = recognised(digest, known.get(file.name))
        rows.append(f"| `{file.name}` | {file.stat().st_size:,} | `{digest}` | {verdict} |")
    return "\n".join(rows)


def recognised(digest: str, known: Known | None) -> str:
    """What a checksum says about a file, in words."""
    if known is None:
        return "no checksum is on record"
    if not (digest.startswith(known.begins) and digest.endswith(known.ends)):
        return f"differs from {known.what}"
    return f"is {known.what}" if not known.ends else f"begins and ends like {known.what}"
