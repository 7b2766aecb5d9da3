"""Collecting class texts from Wikipedia: one page per class, by name, lemma or species."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_vlr.data.texts.labels import class_wnids
from hf_vlr.data.texts.names import WORDNET_ID, plain_name
from hf_vlr.data.texts.page import LookUp, title_key
from hf_vlr.data.texts.row import TextRow
from hf_vlr.data.texts.wiki import page_sentences
from hf_vlr.data.texts.wordnet import synset_of
from hf_vlr.errors import UserError

LICENSE = "CC-BY-SA-4.0"


@dataclass
class Collection:
    """What was found: sentences, the page of each class, and the classes without one by the reason.

    unnamed: no title is the class's alone. missing: no page. disambiguation: only pages that list meanings. shared:
    a page that another class leads to as well. empty: a page without sentences.
    """

    rows: list[TextRow] = field(default_factory=list)
    pages: dict[int, str] = field(default_factory=dict)
    unnamed: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    disambiguation: list[int] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)


def candidate_titles(class_names: Sequence[str], labels: str | Path | None = None) -> list[list[str]]:
    """The titles under which each class may have its page, the likeliest first.

    The class's name (a species, for iNaturalist), then the lemmas of its WordNet id, where its name holds one or
    `labels` lists it. A title that several classes could claim belongs to none.
    """
    holds_ids = all(WORDNET_ID.search(name) for name in class_names)
    entries = class_wnids(class_names, labels) if labels or holds_ids else [("", "")] * len(class_names)
    found: list[list[str]] = []
    for name, (wnid, listed) in zip(class_names, entries):
        plain = plain_name(name)
        words = [] if WORDNET_ID.fullmatch(plain) else [plain]
        lemmas = (synset_of(wnid) or ([], ""))[0] if wnid else []
        found.append(list({title_key(word): word for word in [*words, listed, *lemmas] if word}.values()))
    claims = Counter(title_key(title) for titles in found for title in titles)
    return [[title for title in titles if claims[title_key(title)] == 1] for titles in found]


def collect(candidates: Iterable[Sequence[str]], look_up: LookUp) -> Collection:
    """The sentences of each class's page: that of its first candidate which is an article.

    No page is used for two classes. The source of a sentence is the page's address, its licence CC BY-SA 4.0.
    """
    collection = Collection()
    articles: dict[int, tuple[str, str]] = {}
    for label, titles in enumerate(candidates):
        kinds = []
        for title in titles:
            page = look_up(title)
            kinds.append(page.kind)
            if page.kind == "article":
                articles[label] = (page.url or page.title, page.text)
                break
        else:
            ambiguous = collection.disambiguation if "disambiguation" in kinds else collection.missing
            (ambiguous if titles else collection.unnamed).append(label)
    _add_pages(collection, articles)
    return collection


def wikipedia_endpoint(language: str) -> str:
    """The address of a Wikipedia's API; `UserError` for what cannot be a language."""
    if not re.fullmatch(r"[a-z]{2,}(-[a-z]+)*", language):
        raise UserError(f"language {language!r} is none of Wikipedia's; they are written like en, de or zh-yue")
    return f"https://{language}.wikipedia.org/w/api.php"


def _add_pages(collection: Collection, articles: dict[int, tuple[str, str]]) -> None:
    users = defaultdict(list)
    for label, (source, _) in articles.items():
        users[source].append(label)
    for label, (source, text) in articles.items():
        sentences = page_sentences(text)
        if len(users[source]) > 1:
            collection.shared.append(label)
        elif not sentences:
            collection.empty.append(label)
        else:
            collection.pages[label] = source
            collection.rows += [TextRow(label, sentence, source, LICENSE) for sentence in sentences]
