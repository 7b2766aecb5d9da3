"""The class-text corpus: sentences by class index, from files, captions, templates or descriptions."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

from hf_vlr.data.shapes_text import shapes_sentences
from hf_vlr.data.source import ImageSource
from hf_vlr.data.templates import TEMPLATES, spoken_name
from hf_vlr.data.texts.own import own_rows
from hf_vlr.data.texts.parts import part_rows
from hf_vlr.data.texts.row import TextRow
from hf_vlr.errors import UserError

TEXT_SAMPLING = ("uniform", "distinctive")


class ClassTextCorpus:
    """S sentences of C classes in class-major flat lists: those of class c stand at
    `offsets[c]:offsets[c+1]`.

    labels: int64 `[S]`, ascending; texts, sources, licenses: S strings each; offsets: int64 `[C+1]`.
    Classes are keyed by index, so names may repeat. A sentence that occurs twice in a class is kept once.
    class_names: C names, or None where they are not known; files say them, so that a dataset that lists its classes
    in another order finds its own.
    Raises `UserError` for a label outside 0 … C-1.
    """

    def __init__(self, rows: Iterable[TextRow], num_classes: int, class_names: Sequence[str] | None = None) -> None:
        self.class_names = None if class_names is None else list(class_names)
        unique: dict[tuple[int, str], TextRow] = {}
        for row in rows:
            if not 0 <= row.label < num_classes:
                raise UserError(f"label {row.label} of the text {row.text[:40]!r} is outside 0 … {num_classes - 1}")
            text = " ".join(row.text.split())
            if text:
                unique.setdefault((row.label, text), row._replace(text=text))
        kept = sorted(unique.values(), key=lambda row: row.label)
        self.labels = np.array([row.label for row in kept], dtype=np.int64)
        self.texts = [row.text for row in kept]
        self.sources = [row.source for row in kept]
        self.licenses = [row.license for row in kept]
        self.offsets = np.searchsorted(self.labels, np.arange(num_classes + 1)).astype(np.int64)
        self._cumulative = self._cumulated(np.ones(len(kept)))

    @property
    def num_classes(self) -> int:
        return len(self.offsets) - 1

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self) -> Iterator[TextRow]:
        """All sentences, class by class."""
        return map(TextRow, self.labels.tolist(), self.texts, self.sources, self.licenses)

    def of(self, label: int) -> list[str]:
        """The sentences of one class."""
        return self.texts[self.offsets[label] : self.offsets[label + 1]]

    def draw(self, label: int, rng: np.random.Generator) -> str:
        """One sentence of a class, by the corpus's weights; `UserError` for a class without any."""
        if self.offsets[label] == self.offsets[label + 1]:
            raise UserError(f"class {label} has no text; add sentences for it or join '+templates' to data.texts")
        return self.texts[int(self.pick(np.array([label]), rng.random(1))[0])]

    def pick(self, labels: np.ndarray, chances: np.ndarray) -> np.ndarray:
        """Positions `[N]` in `texts` of one sentence for each of N labels; `chances` `[N]` are uniform in [0, 1)."""
        found = np.searchsorted(self._cumulative, labels + chances, side="right")
        return np.clip(found, self.offsets[labels], self.offsets[labels + 1] - 1)

    def weighted(self, scheme: str) -> "ClassTextCorpus":
        """The same corpus with other chances of its sentences, within each class.

        `uniform`: all the same (VL-LTR). `distinctive`: in inverse proportion to the number of classes that have the
        very same sentence, because what is said of every class tells nothing of one.
        """
        if scheme not in TEXT_SAMPLING:
            raise UserError(f"data.text_sampling={scheme!r} is unknown; there are: {', '.join(TEXT_SAMPLING)}")
        spread = Counter(self.texts)
        weights = [1.0 / spread[text] if scheme == "distinctive" else 1.0 for text in self.texts]
        corpus = copy(self)
        corpus._cumulative = self._cumulated(np.array(weights))
        return corpus

    def _cumulated(self, weights: np.ndarray) -> np.ndarray:
        """Class index plus the cumulative chance within the class: ascending over the whole corpus."""
        totals = np.bincount(self.labels, weights, minlength=self.num_classes)
        running = np.cumsum(weights)
        before = np.concatenate([[0.0], running])[self.offsets[:-1]]
        return self.labels + (running - before[self.labels]) / totals[self.labels]

    def coverage(self) -> np.ndarray:
        """Sentences per class, int64 `[C]`."""
        return np.diff(self.offsets)

    def require_every_class(self, class_names: Sequence[str]) -> None:
        """Raise `UserError` naming the classes that have no sentence."""
        if len(class_names) != self.num_classes:
            raise UserError(f"the texts are for {self.num_classes} classes, the images for {len(class_names)}")
        missing = [class_names[label] for label in np.flatnonzero(self.coverage() == 0)]
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise UserError(f"no text for class {shown}; add sentences for it or join '+templates' to data.texts")

    def save(self, path: str | Path) -> None:
        """Write one JSON object per line: `label`, `class_name` where it is known, `text, source, license`."""
        names = self.class_names
        named = ({} if names is None else {"class_name": names[label]} for label in self.labels.tolist())
        records = ({"label": row.label} | name | row._asdict() for row, name in zip(self.rows(), named))
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    @classmethod
    def from_file(cls, path: str | Path, class_names: Sequence[str]) -> "ClassTextCorpus":
        """Read JSONL or CSV (`label` or `class_name`, `text`, optionally `source`, `license`), or a folder of
        `.txt`.

        In a folder each file holds one class, a sentence a line, and is called `desc_INDEX.txt`, `INDEX.txt`
        or `CLASS_NAME.txt` (with `_` for `/`). Where a line says both, the name counts. Raises `UserError` naming the
        file and the line that is wrong.
        """
        path = Path(path).expanduser()
        try:
            return cls(_file_rows(path, class_names), len(class_names), class_names)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: a byte at {error.start} is not UTF-8; save the texts as UTF-8") from error
        except csv.Error as error:
            raise UserError(f"{path}: not a readable CSV file ({error}); mend it") from error

    @classmethod
    def from_templates(cls, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> "ClassTextCorpus":
        """Every template filled with every class's name, as words."""
        rows = [
            TextRow(label, template.format(spoken_name(name)), "templates", "CC0-1.0")
            for label, name in enumerate(class_names)
            for template in templates
        ]
        return cls(rows, len(class_names))

    @classmethod
    def from_captions(cls, source: ImageSource) -> "ClassTextCorpus":
        """The captions of training rows as texts of their class.

        Raises `UserError` for any other split: a text that belongs to a test image must not be trained on.
        """
        if source.split != "train":
            raise UserError(f"class texts come from captions of the split train only, not {source.split}")
        pairs = zip(source.labels.tolist(), source.captions)
        rows = [TextRow(label, text, f"{source.name} captions") for label, text in pairs if label >= 0 and text]
        return cls(rows, source.num_classes)

    @classmethod
    def from_shapes(cls, class_names: Sequence[str]) -> "ClassTextCorpus":
        """Descriptions of `shapes-lt` classes, seen or unseen, written from the attributes in their names."""
        rows = [
            TextRow(label, text, "shapes-lt", "CC0-1.0")
            for label, name in enumerate(class_names)
            for text in shapes_sentences(name)
        ]
        return cls(rows, len(class_names))

    @classmethod
    def merge(cls, *corpora: "ClassTextCorpus") -> "ClassTextCorpus":
        """All sentences of corpora over the same classes; the first of equal ones stays."""
        sizes = {corpus.num_classes for corpus in corpora}
        if len(sizes) != 1:
            raise UserError(f"corpora over different numbers of classes cannot be joined: {sorted(sizes)}")
        return cls((row for corpus in corpora for row in corpus.rows()), sizes.pop())


def default_texts(source: ImageSource) -> str:
    """What `data.texts` means when it is left out: descriptions for shapes, else captions, else templates."""
    if source.name == "shapes-lt":
        return "shapes"
    return "captions+templates" if any(source.captions) else "templates"


def build_corpus(texts: str | Sequence[str] | None, source: ImageSource) -> ClassTextCorpus:
    """The corpus for a training source.

    texts: `templates`, `captions`, `shapes`, `own` (the dataset's config `texts`), a part that
    `hf_vlr.data.texts.parts.part_rows` knows, or a path; several joined by `+` (or a list); None for `default_texts`.
    """
    texts = texts or default_texts(source)
    parts = [part.strip() for part in texts.split("+")] if isinstance(texts, str) else list(texts)
    corpus = ClassTextCorpus.merge(*[_part(part, source) for part in parts])
    corpus.class_names = list(source.class_names)
    return corpus


def _part(part: str, source: ImageSource) -> ClassTextCorpus:
    if part == "templates":
        return ClassTextCorpus.from_templates(source.class_names)
    if part == "captions":
        return ClassTextCorpus.from_captions(source)
    if part == "shapes":
        return ClassTextCorpus.from_shapes(source.class_names)
    if part == "own":
        return ClassTextCorpus(own_rows(source.name), source.num_classes)
    rows = part_rows(part, source.class_names)
    if rows is not None:
        return ClassTextCorpus(rows, source.num_classes)
    return ClassTextCorpus.from_file(part, source.class_names)


def _file_rows(path: Path, class_names: Sequence[str]) -> Iterator[TextRow]:
    if path.is_dir():
        return _folder_rows(path, class_names)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of class texts; check data.texts")
    readers = {".jsonl": _jsonl_records, ".csv": _csv_records}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: class texts come as .jsonl, .csv or a folder of .txt, not {path.suffix!r}")
    return _record_rows(path, readers[path.suffix.lower()](path), class_names)


def _jsonl_records(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{path} line {number}: not a JSON object ({error.msg}); mend it") from error


def _csv_records(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        for record in reader:
            yield reader.line_num, record


def _record_rows(path: Path, records: Iterator[tuple[int, Any]], class_names: Sequence[str]) -> Iterator[TextRow]:
    index = _index_of(class_names)
    for number, record in records:
        where = f"{path} line {number}"
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise UserError(f"{where}: needs a column 'text' and a column 'label' or 'class_name'")
        label = record.get("label")
        if label in (None, ""):
            label = index.get(str(record.get("class_name")))
            if label is None:
                raise UserError(f"{where}: {record.get('class_name')!r} is not the name of exactly one class")
        elif isinstance(label, bool) or not re.fullmatch(r"-?\d+", str(label)):
            raise UserError(f"{where}: label {label!r} is not a class number; use 'class_name' for names")
        elif record.get("class_name") not in (None, ""):
            label = _named_label(where, int(label), str(record["class_name"]), index, class_names)
        if not 0 <= int(label) < len(class_names):
            raise UserError(f"{where}: label {label} is outside 0 … {len(class_names) - 1}; mend or remove it")
        yield TextRow(int(label), record["text"], record.get("source") or path.name, record.get("license") or "")


def _named_label(where: str, label: int, name: str, index: dict[str, int], class_names: Sequence[str]) -> int:
    """The class of a line that says its number and its name, in a file that may be of another order."""
    if 0 <= label < len(class_names) and class_names[label] == name:
        return label
    if name not in index:
        raise UserError(f"{where}: {name!r} is not the name of exactly one class, nor that of class {label}; mend it")
    return index[name]


def _folder_rows(folder: Path, class_names: Sequence[str]) -> Iterator[TextRow]:
    index = _index_of(class_names) | {name.replace("/", "_"): at for name, at in _index_of(class_names).items()}
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise UserError(f"{folder}: no .txt files of class texts in this folder")
    for file in files:
        number = re.fullmatch(r"(?:desc_)?(\d+)", file.stem)
        label = int(number[1]) if number else index.get(file.stem)
        if label is None or label >= len(class_names):
            raise UserError(f"{file}: its name is neither a class name nor a class number below {len(class_names)}")
        for line in file.read_text(encoding="utf-8").splitlines():
            yield TextRow(label, line, file.name)


def _index_of(class_names: Sequence[str]) -> dict[str, int]:
    """Index by name, for names that occur once."""
    times = Counter(class_names)
    return {name: index for index, name in enumerate(class_names) if times[name] == 1}
