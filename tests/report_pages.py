"""Predictions to report on, and a reader of the pages that come out."""

from html.parser import HTMLParser

import numpy as np

from hf_vlr.evaluation.document import PROTOCOL_FIELDS
from hf_vlr.evaluation.predictions import Predictions

COUNTS = (300, 150, 60, 25, 8, 3)
PROTOCOL = dict.fromkeys(PROTOCOL_FIELDS) | {"split": "test", "resolution": 32, "seed": 7}
VOID = {"meta", "link", "img", "br"}
INLINE = {"bdi", "strong", "span", "a"}


def predictions(
    counts: tuple[int, ...] = COUNTS,
    per_class: int = 12,
    names: tuple[str, ...] | None = None,
    signal: tuple[tuple[str, float], ...] = (("fused", 2.0), ("visual", 1.6), ("language", 1.4)),
    seed: int = 0,
) -> Predictions:
    """Log-probabilities of noise plus `signal` on the true class, by predictor; `per_class` images of each class."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), per_class)
    scores = {}
    for name, strength in signal:
        logits = generator.standard_normal((labels.size, len(counts)))
        logits[np.arange(labels.size), labels] += strength
        scores[name] = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)
    names = names or tuple(f"class {index}" for index in range(len(counts)))
    return Predictions(scores, labels, np.asarray(counts, dtype=np.int64), names, PROTOCOL)


class Reader(HTMLParser):
    """What a page is made of; elements that are opened and not closed are an error."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag
            self.texts.append("" if tag in INLINE else " ")

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.elements if attributes.get(attribute) is not None]

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).replace("\xa0", " ").split())
