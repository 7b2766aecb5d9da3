"""WordNet's words and explanations for classes that are its synsets, from timm's tables."""

import logging
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hf_vlr.data.texts.labels import class_wnids
from hf_vlr.data.texts.names import shown
from hf_vlr.data.texts.row import TextRow
from hf_vlr.errors import UserError

if TYPE_CHECKING:
    from timm.data import ImageNetInfo

SOURCE, LICENSE = "WordNet 3.0", "WordNet 3.0 license"
logger = logging.getLogger(__name__)


def wordnet_rows(labels: str | Path | None, class_names: Sequence[str]) -> Iterator[TextRow]:
    """For each class `LEMMA: GLOSS.` with its name and every lemma, and one sentence of all its lemmas.

    labels: a list of the classes' WordNet ids, as in `class_wnids`; None where the class names hold them. Classes
    whose id the tables lack are named in a warning and get nothing. Raises `UserError` where they lack every id.
    """
    entries = class_wnids(class_names, labels)
    unknown = []
    for label, (wnid, name) in enumerate(entries):
        synset = synset_of(wnid)
        if synset is None:
            unknown.append(wnid)
            continue
        lemmas, gloss = synset
        for word in dict.fromkeys(filter(None, (name, *lemmas))):
            yield TextRow(label, f"{word}: {gloss}.", f"{SOURCE} {wnid}", LICENSE)
        if len(lemmas) > 1:
            others = ", ".join(lemmas[1:-1])
            others = f"{others} or {lemmas[-1]}" if others else lemmas[-1]
            yield TextRow(label, f"{lemmas[0]}, also called {others}.", f"{SOURCE} {wnid}", LICENSE)
    if len(unknown) == len(entries):
        raise UserError(f"none of the {len(entries)} WordNet ids is a synset timm knows, such as {unknown[0]}")
    if unknown:
        logger.warning("no WordNet gloss for %d of %d classes: %s", len(unknown), len(entries), shown(unknown))


def synset_of(wnid: str) -> tuple[list[str], str] | None:
    """(lemmas, gloss) of a noun synset of ImageNet-21k, the gloss without its examples; None for another."""
    try:
        lemmas = _tables().label_name_to_description(wnid)
        gloss = _tables().label_name_to_description(wnid, detailed=True)[len(lemmas) + 2 :]
    except KeyError:
        return None
    gloss = re.sub(r"\"[^\"]*\"", "", gloss)
    return lemmas.split(", "), " ".join(gloss.split()).strip(" ;:.,")


@cache
def _tables() -> "ImageNetInfo":
    from timm.data import ImageNetInfo

    return ImageNetInfo()
