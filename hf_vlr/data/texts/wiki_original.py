"""VL-LTR's corpora read exactly as its code reads them, defects and all, to compare with its results.

Source: Tian et al., VL-LTR: Learning Class-wise Visual-Linguistic Representation for Long-Tailed Visual Recognition,
ECCV 2022, and the behaviour of the published program.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hf_vlr.data.texts import clip_templates
from hf_vlr.data.texts.files import read_text
from hf_vlr.data.texts.names import require_same_order
from hf_vlr.data.texts.row import TextRow
from hf_vlr.data.texts.wiki import LICENSE, description_files, require_every_file
from hf_vlr.data.texts.wiki_labels import corpus_names

DROPPED = ("External links", "References", "Further reading", "Bibliography")
# Between "." or "?" and white space or a capital; not after an initial ("J.") nor after "e.g." and its like.
_BREAK = re.compile(r"(?<=[.?])(?<!\w\.\w.)(?<![A-Z]\.)(?=[\sA-Z])")


def wiki_original_rows(folder: str | Path, class_names: Sequence[str]) -> Iterator[TextRow]:
    """Prompts and wiki text of each class as VL-LTR makes its sentences, in its order, line breaks within included.

    The 80 prompts have a space after the name, and the last one runs into a wiki text that begins with a small
    letter. Names are those of the corpus's own list, else `class_names`. (A corpus made of the rows keeps a
    sentence that a class has twice only once, and one space for any white space.) Raises `UserError` for a class
    without a file, and as `wiki_rows` does.
    """
    files = description_files(folder, len(class_names))
    require_every_file(folder, files, len(class_names))
    names = corpus_names(folder)
    if names is None:
        names = [name.replace("_", " ").replace("/", " ") for name in class_names]
    require_same_order(folder, names, class_names)
    for label, file in files.items():
        prompts = original_prompts(names[label])
        wiki = original_text(parse_original(read_text(file, ("utf-8", "gbk"))))
        for end, sentence in split_original(prompts + wiki):
            if end <= len(prompts):
                yield TextRow(label, sentence, clip_templates.SOURCE, clip_templates.LICENSE)
            else:
                yield TextRow(label, sentence, f"VL-LTR wiki {file.name}", LICENSE)


def parse_original(page: str) -> dict[str, str]:
    """The sections of a page by title: `summary` for what stands before the first heading, whatever its rank.

    Of two sections with one title the later takes the earlier's place.
    """
    sections: dict[str, str] = {}
    title, lines = "summary", []
    for line in filter(None, (line.strip() for line in page.split("\n"))):
        if line.startswith("=="):
            sections[title] = "\n".join(lines)
            title, lines = line.strip("= "), []
        else:
            lines.append(line)
    return sections | {title: "\n".join(lines)}


def original_text(sections: dict[str, str]) -> str:
    """The sections that are used, one after another; titles are not."""
    skipped = ("summary", *DROPPED)
    return sections["summary"] + "\n" + "\n".join(text for title, text in sections.items() if title not in skipped)


def original_prompts(name: str) -> str:
    """CLIP's 80 templates filled with the name and a space, a line each."""
    return "\n".join(template(name + " ") for template in clip_templates.clip_templates())


def split_original(text: str) -> Iterator[tuple[int, str]]:
    """(where it ends in `text`, sentence) of every sentence; `!` and line breaks end none."""
    start = 0
    for end in [*(match.start() for match in _BREAK.finditer(text)), len(text)]:
        if sentence := text[start:end].strip():
            yield end, sentence
        start = end
