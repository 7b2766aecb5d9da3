"""VL-LTR's corpora of Wikipedia pages, `wiki/desc_INDEX.txt`, cleaned."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hf_vlr.data.texts.files import read_text
from hf_vlr.data.texts.names import require_same_order, shown
from hf_vlr.data.texts.row import TextRow
from hf_vlr.data.texts.sentences import sentences_of
from hf_vlr.data.texts.wiki_labels import corpus_names
from hf_vlr.errors import UserError

# Wikipedia's licence until June 2023; these corpora are older.
LICENSE = "CC-BY-SA-3.0"
APPENDICES = frozenset(
    {
        "bibliography", "citations", "external links", "footnotes", "further reading", "gallery", "notes",
        "notes and references", "references", "references and notes", "see also", "works cited",
    }
)  # fmt: skip


def wiki_rows(folder: str | Path, class_names: Sequence[str]) -> Iterator[TextRow]:
    """The sentences of `FOLDER/wiki/desc_INDEX.txt` (or `FOLDER/desc_INDEX.txt`), cleaned by `page_sentences`.

    No prompts are among them: join `clip-templates`. A class without a file has no sentences. Raises `UserError` for
    a folder without such files, for a number that is no class, and where a list of classes beside them (`labels.txt`,
    `categories.json`) contradicts `class_names`.
    """
    files = description_files(folder, len(class_names))
    names = corpus_names(folder)
    if names is not None:
        require_same_order(folder, names, class_names)
    for label, file in files.items():
        for sentence in page_sentences(read_text(file, ("utf-8-sig", "gbk"))):
            yield TextRow(label, sentence, f"VL-LTR wiki {file.name}", LICENSE)


def description_files(folder: str | Path, num_classes: int) -> dict[int, Path]:
    """The files `desc_INDEX.txt` of a corpus, by class index."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; wiki:DIR is the one with desc_0.txt or wiki/desc_0.txt")
    home = root / "wiki" if (root / "wiki").is_dir() else root
    files = {int(file.stem[5:]): file for file in home.glob("desc_*.txt") if file.stem[5:].isdecimal()}
    if not files:
        raise UserError(f"{home}: no files desc_0.txt, desc_1.txt, … in it; check the folder of the wiki corpus")
    strange = [label for label in files if label >= num_classes]
    if 0 not in files and strange == [num_classes]:
        raise UserError(f"{home}: numbered from 1; class 0 is desc_0.txt, so subtract 1 from every number")
    if strange:
        raise UserError(f"{home}: desc_{max(strange)}.txt, but the dataset has {num_classes} classes; wrong corpus?")
    return dict(sorted(files.items()))


def require_every_file(folder: str | Path, files: dict[int, Path], num_classes: int) -> None:
    """Raise `UserError` naming the files of a corpus that are not there."""
    missing = [f"desc_{label}.txt" for label in range(num_classes) if label not in files]
    if missing:
        raise UserError(f"{folder}: {len(missing)} files are missing: {shown(missing)}; use wiki: to go without them")


def page_sentences(page: str) -> list[str]:
    """The sentences of an encyclopedia page in plain text, without headings and appendices.

    Where headings are marked (`== Title ==`), an appendix ends at the next heading of its rank or above. Where they
    are lines like any other, an appendix is all from its title on, and a line without an end mark is not used.
    """
    lines = [line.strip() for line in page.split("\n")]
    marked = any(line.startswith("==") for line in lines)
    kept, dropped_rank = [], 0
    for line in lines:
        rank = len(line) - len(line.lstrip("=")) if line.startswith("==") else 0
        if not rank:
            if not marked and line.casefold() in APPENDICES:
                break
            kept += [] if dropped_rank else [line]
        elif not dropped_rank or rank <= dropped_rank:
            dropped_rank = rank if re.sub(r"\s+", " ", line.strip("= ")).casefold() in APPENDICES else 0
    return sentences_of("\n".join(kept), whole_only=not marked)
