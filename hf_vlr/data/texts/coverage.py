"""What a class-text corpus holds: by source, by licence, by group of classes."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from hf_vlr.data.corpus import ClassTextCorpus


class GroupCoverage(NamedTuple):
    """A group of classes: how many there are, how many of them have no text, and the mean number of sentences."""

    group: str
    classes: int
    without_text: int
    mean_sentences: float


def by_source(corpus: "ClassTextCorpus") -> list[tuple[str, str, int]]:
    """(source, licence, sentences), the largest first; pages of one site, and files but for a number, count as one."""
    pairs = Counter((_family(source), license) for source, license in zip(corpus.sources, corpus.licenses))
    return [(source, license, times) for (source, license), times in pairs.most_common()]


def by_group(corpus: "ClassTextCorpus", groups: Mapping[str, npt.NDArray[np.bool_]]) -> list[GroupCoverage]:
    """The coverage of all classes and of each group, a mask `[C]`; a group without classes has mean 0."""
    sentences = corpus.coverage()
    rows = []
    for group, mask in {"all": np.ones(len(sentences), dtype=bool), **groups}.items():
        inside = sentences[mask]
        mean = float(inside.mean()) if len(inside) else 0.0
        rows.append(GroupCoverage(group, len(inside), int((inside == 0).sum()), mean))
    return rows


def least_covered(corpus: "ClassTextCorpus", most: int = 10) -> list[int]:
    """The classes with the fewest sentences, fewest first, lower index first among equals."""
    return np.argsort(corpus.coverage(), kind="stable")[:most].tolist()


def _family(source: str) -> str:
    site = urlsplit(source) if source.startswith(("http://", "https://")) else None
    return site.netloc if site else re.sub(r"\d{4,}|\d+(?=\.txt$)", "*", source)
