"""Classes that exist only as sentences: free questions, and classes taught by a description.

Letters: `C` classes, `K` taught classes, `S` sentences, `D` width of the common space.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hf_vlr.data.templates import TEMPLATES
from hf_vlr.demo.recognition import Classes, Floats, Row, best
from hf_vlr.errors import UserError

MAX_LABELS = 200
MAX_SENTENCES = 64
MAX_TAUGHT = 20
# of one label or sentence; a text tower reads less
MAX_CHARACTERS = 1000

Encode = Callable[[list[str]], Floats]


@dataclass(frozen=True)
class Taught:
    """A class that a user described: its name, its sentences, and its unit vector [D]."""

    name: str
    sentences: tuple[str, ...]
    vector: Floats


def lines_of(text: str | None) -> list[str]:
    """The lines of a text box without blank ones, repeated ones and the space around them, in order."""
    return list(dict.fromkeys(line.strip() for line in (text or "").splitlines() if line.strip()))


def labels_of(text: str | None) -> list[str]:
    """The labels of a question, one a line. Raises `UserError` for none, too many, and too long ones."""
    labels = lines_of(text)
    if not labels:
        raise UserError("There is no label: write at least one, one a line.")
    if len(labels) > MAX_LABELS:
        raise UserError(f"{len(labels)} labels are too many: keep at most {MAX_LABELS}.")
    _require_short(labels, "label")
    return labels


def filled(template: str | None, labels: Sequence[str]) -> list[str]:
    """The template with each label in the place of `{}`; an empty template is the label itself.

    Raises `UserError` for a template without `{}`, or with another brace.
    """
    template = (template or "").strip() or "{}"
    if template.count("{}") != 1 or re.search(r"[{}]", template.replace("{}", "")):
        raise UserError("The template needs {} once, where the label goes, and no other brace: a photo of a {}.")
    _require_short([template], "template")
    return [template.replace("{}", label) for label in labels]


def usual_template(names: Sequence[str], sentences: Sequence[Sequence[str]]) -> str:
    """How the sentences of most classes speak of their class: the wording most classes share, with `{}` for the name.

    `a photo of a {}.` where no wording is that of at least half of the classes.
    """
    found: Counter[str] = Counter()
    for name, texts in zip(names, sentences, strict=True):
        found.update({text.replace(name, "{}") for text in texts if text.count(name) == 1 and "{" not in text})
    # of equally frequent ones the shortest: it says the least besides the name
    wording, times = max(found.items(), key=lambda one: (one[1], -len(one[0])), default=("", 0))
    return wording if times and 2 * times >= len(names) else TEMPLATES[0]


def class_vector(features: npt.NDArray[np.floating]) -> Floats:
    """The unit vector [D] of sentences [S, D]: the normalised mean of the normalised ones (CLIP's ensemble)."""
    mean = _unit(np.asarray(features, dtype=np.float64)).mean(axis=0)
    return _unit(mean).astype(np.float32)


def answers(feature: Floats, vectors: npt.NDArray[np.floating], labels: Sequence[str], scale: float) -> list[Row]:
    """All labels, best first, by softmax(τ cos(image, label)); `vectors` [labels, D] need not be normalised."""
    probabilities = _softmax(scale * _unit(vectors) @ _unit(feature))
    return [
        Row(index, labels[index], float(probabilities[index]), group="") for index in best(probabilities, len(labels))
    ]


def teach(name: str | None, description: str | None, encode: Encode, known: Sequence[str]) -> Taught:
    """A class out of a name and its description, one sentence a line; without one, `a NAME.`

    Its vector is the normalised mean of the normalised sentences. `known`: names that are taken. Raises `UserError`
    for a name that is empty, taken or too long, and for too many or too long sentences.
    """
    name = " ".join((name or "").split())
    if not name:
        raise UserError("The new class has no name: write one.")
    if name.casefold() in {one.casefold() for one in known}:
        raise UserError("There is a class of that name already: choose another name.")
    sentences = lines_of(description) or [f"a {name}."]
    if len(sentences) > MAX_SENTENCES:
        raise UserError(f"{len(sentences)} sentences are too many: keep at most {MAX_SENTENCES}.")
    _require_short([name, *sentences], "name or sentence")
    return Taught(name, tuple(sentences), class_vector(encode(sentences)))


def text_scores(
    feature: Floats, known: Floats, taught: Sequence[Taught], scale: float, advantage: float = 0.0
) -> npt.NDArray[np.float64]:
    """Probabilities [C + K] of known and taught classes on one scale: softmax(τ cos(image, class vector) + b).

    `known` [C, D] unit vectors, zero for a class without a sentence, which gets probability 0. b is `advantage` for
    taught classes and 0 for known ones: trained classes win against described ones by having been trained, and a
    constant evens that out (calibrated stacking, Chao et al., ECCV 2016).
    """
    vectors = np.concatenate([known, *(one.vector[None] for one in taught)]).astype(np.float64)
    logits = scale * vectors @ _unit(feature)
    logits[len(known) :] += advantage
    logits[: len(known)][~known.any(axis=1)] = -np.inf
    return _softmax(logits)


def ranked_with_taught(
    probabilities: npt.NDArray[np.float64], classes: Classes, taught: Sequence[Taught], top: int
) -> list[Row]:
    """The `top` best of probabilities [C + K], and every taught class wherever it comes."""
    size = len(classes.names)
    shown = best(probabilities, top)
    order = best(probabilities, len(probabilities))
    shown += [index for index in order if index >= size and index not in shown]
    counts = classes.train_counts
    return [
        Row(
            index=index,
            name=taught[index - size].name if index >= size else classes.names[index],
            score=float(probabilities[index]),
            group="taught" if index >= size else classes.groups[index],
            train_images=0 if index >= size else None if counts is None else int(counts[index]),
        )
        for index in shown
    ]


def rank_of(probabilities: npt.NDArray[np.float64], index: int) -> int:
    """The place of a class, 1 for the best; of equal ones the first comes first."""
    return best(probabilities, len(probabilities)).index(index) + 1


def _require_short(texts: Sequence[str], noun: str) -> None:
    if max(map(len, texts)) > MAX_CHARACTERS:
        raise UserError(f"A {noun} is longer than {MAX_CHARACTERS} characters: shorten it.")


def _unit(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
