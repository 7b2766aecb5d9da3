"""What a dataset consists of, before anything is written: classes, listed images, texts, published totals."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from huggingface_hub import DatasetCardData

from hf_vlr.data.corpus import TextRow
from hf_vlr.errors import UserError

SHOWN = 5


class Entry(NamedTuple):
    """One image: a file or its pixels (uint8 [H, W, 3]), its class, its own text, its path as the list has it.

    fault: what the reader of the list found wrong with the line; such an entry is left out and reported under it.
    """

    image: Path | np.ndarray
    label: int
    text: str = ""
    file: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Manifest:
    """A dataset as its published files describe it.

    class_names: plain names by index; they may repeat. marks: what tells apart classes of one name (a WordNet id).
    splits: entries by split, in the published order. expected: published number of images by split. sources: the list
    files, whose change makes another dataset. card, about: metadata and text of the dataset card.
    """

    name: str
    class_names: Sequence[str]
    marks: Sequence[str]
    splits: Mapping[str, Sequence[Entry]]
    card: DatasetCardData
    about: str
    texts: Sequence[TextRow] = ()
    expected: Mapping[str, int] = field(default_factory=dict)
    sources: Sequence[Path] = ()

    def unique_names(self) -> list[str]:
        """C names that are all different: a mark in brackets where a name repeats (`missile (n04008634)`)."""
        times = Counter(self.class_names)
        return [
            name if times[name] == 1 else f"{name} ({mark})"
            for name, mark in zip(self.class_names, self.marks, strict=True)
        ]

    def counts(self, split: str = "train") -> np.ndarray:
        """Images per class in a split, int64 [C]."""
        labels = [entry.label for entry in self.splits.get(split, ()) if entry.label >= 0]
        return np.bincount(np.asarray(labels, dtype=np.int64), minlength=len(self.class_names))

    def fingerprint(self) -> str:
        """32 hex digits that change with the classes, texts, list files, and any image file's name, size or time."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.name, list(self.class_names), list(self.marks), list(self.texts)):
            digest.update(repr(part).encode())
        for split, entries in self.splits.items():
            digest.update(split.encode())
            for entry in entries:
                digest.update(repr((entry.label, entry.text, entry.file, identity(entry.image))).encode())
        return digest.hexdigest()


@dataclass
class Findings:
    """What was wrong with a dataset's files: kinds of faults, each with every case, and what was done about it.

    Faults that cost rows are `dropped`; others (a repeated name, a total that differs) are only told.
    """

    dropped: dict[str, list[str]] = field(default_factory=dict)
    told: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, kind: str, case: str) -> None:
        self.dropped.setdefault(kind, []).append(case)

    def tell(self, kind: str, case: str) -> None:
        self.told.setdefault(kind, []).append(case)

    def lines(self) -> list[str]:
        """A line for each kind of fault: its count and the first cases."""
        rows = [(f"{kind} (left out)", cases) for kind, cases in self.dropped.items()]
        rows += [(kind, cases) for kind, cases in self.told.items()]
        return [f"{kind}: {len(cases)}: {shown(cases)}" for kind, cases in rows]

    def require_none(self, name: str) -> None:
        """Raise `UserError` with all kinds of faults, for a strict build."""
        if self.dropped or self.told:
            rows = [f"{kind}: {len(cases)}: {shown(cases)}" for kind, cases in {**self.dropped, **self.told}.items()]
            raise UserError(f"{name}: {'; '.join(rows)}; mend the files, or build without strict")


def inspect(manifest: Manifest) -> tuple[Manifest, Findings]:
    """The manifest without rows that cannot be used, and what was found.

    Found: labels outside 0 … C-1, images listed but absent, images listed twice or in two splits (the training row
    goes), totals other than the published ones, class names that repeat, classes without training images.
    """
    findings = Findings()
    for split, number in manifest.expected.items():
        listed = sum(not entry.fault for entry in manifest.splits.get(split, ()))
        if listed != number:
            findings.tell("total differs from the published one", f"{split} {listed:,} instead of {number:,}")
    kept: dict[str, list[Entry]] = {}
    seen: dict[str, str] = {}
    # test before train: of an image in both, the training row is the one that must go
    for split in sorted(manifest.splits, key=lambda name: name == "train"):
        kept[split] = []
        for entry in manifest.splits[split]:
            fault = fault_of(entry, len(manifest.class_names), seen, split)
            if fault:
                findings.drop(fault, f"{split} {entry.file}")
                continue
            if entry.file:
                seen[entry.file] = split
            kept[split].append(entry)
    splits = {split: kept[split] for split in manifest.splits}
    found = replace(manifest, splits=splits)
    for name, times in Counter(manifest.class_names).items():
        if times > 1:
            findings.tell("class name that repeats", f"{name} ({times} classes)")
    if "train" in splits:
        for label in np.flatnonzero(found.counts() == 0):
            findings.tell("class without training images", manifest.class_names[label])
    return found, findings


def fault_of(entry: Entry, classes: int, seen: Mapping[str, str], split: str) -> str:
    """Why a row cannot be used, or ''."""
    if entry.fault:
        return entry.fault
    if not 0 <= entry.label < classes:
        return f"label outside 0 … {classes - 1}"
    if entry.file in seen:
        return "image listed twice" if seen[entry.file] == split else "image of another split too"
    if isinstance(entry.image, Path) and not entry.image.is_file():
        return "image listed but absent"
    return ""


def identity(image: Path | np.ndarray) -> tuple:
    """What changes when an image does: size and time of a file, the check sum of pixels."""
    if isinstance(image, np.ndarray):
        return (image.shape, hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=8).hexdigest())
    try:
        stat = image.stat()
    except OSError:
        return ("absent",)
    return (str(image), stat.st_size, stat.st_mtime_ns)


def shown(cases: Iterable[str]) -> str:
    """The first cases, and how many more there are."""
    cases = list(cases)
    more = f" and {len(cases) - SHOWN:,} more" if len(cases) > SHOWN else ""
    return ", ".join(cases[:SHOWN]) + more
