"""The parts of `data.texts` that name a source of class texts: `wiki:DIR`, `wordnet:LABELS` and their like."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hf_vlr.data.texts.clip_templates import clip_template_rows
from hf_vlr.data.texts.llm import llm_rows
from hf_vlr.data.texts.row import TextRow
from hf_vlr.data.texts.taxonomy import taxonomy_rows
from hf_vlr.data.texts.wiki import wiki_rows
from hf_vlr.data.texts.wiki_original import wiki_original_rows
from hf_vlr.data.texts.wordnet import wordnet_rows
from hf_vlr.errors import UserError

READERS: dict[str, tuple[str, Callable[[str, Sequence[str]], Iterator[TextRow]]]] = {
    "wiki": ("DIR", wiki_rows),
    "wiki-original": ("DIR", wiki_original_rows),
    "wordnet": ("LABELS", wordnet_rows),
    "llm": ("FILE", llm_rows),
    "taxonomy": ("FILE", taxonomy_rows),
}


def part_rows(part: str, class_names: Sequence[str]) -> Iterator[TextRow] | None:
    """The sentences that a part of `data.texts` names, for classes in this order; None where it is a plain path.

    Parts: `wiki:DIR`, `wiki-original:DIR`, `wordnet:LABELS` (`wordnet` where class names hold WordNet ids),
    `llm:FILE`, `taxonomy:FILE`, `clip-templates` (all 80), `clip-templates:1`, `clip-templates:7`. Raises `UserError`
    for a part without its file, and as its reader.
    """
    kind, _, place = part.partition(":")
    if kind == "clip-templates":
        return clip_template_rows(class_names, template_count(place))
    if kind not in READERS:
        return None
    what, reader = READERS[kind]
    if place:
        return reader(place, class_names)
    if Path(part).exists():
        return None
    if part == "wordnet":
        return wordnet_rows(None, class_names)
    raise UserError(f"data.texts={part} needs its place: {kind}:{what}")


def template_count(text: str) -> int:
    """How many of CLIP's templates `clip-templates:TEXT` asks for, "" for all 80."""
    if text not in ("", "1", "7", "80"):
        raise UserError(f"clip-templates:{text}: there are 1, 7 and 80 templates")
    return int(text or 80)
