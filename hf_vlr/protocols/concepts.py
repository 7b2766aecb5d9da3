"""Concept retrieval: the nearest other concepts of a concept, in the space of the features.

A query stands for a class that was trained on, the candidates for concepts that were not, or for the other classes.
Source of the experiment: Yang et al., UniCL, CVPR 2022, Fig. 4, which shows neighbours; here they are also counted:
the share of the query's attributes that its nearest concepts have, beside the share that any concept has by chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_vlr.cli.output import say, say_table
from hf_vlr.data.corpus import ClassTextCorpus, build_corpus
from hf_vlr.data.source import SPLITS
from hf_vlr.data.texts.names import name_key
from hf_vlr.errors import UserError
from hf_vlr.evaluation.arrays import read_names
from hf_vlr.evaluation.encoders import Encoder
from hf_vlr.protocols.attributes import known_attributes, shared_attributes
from hf_vlr.protocols.inputs import Inputs, Part
from hf_vlr.protocols.neighbours import nearest
from hf_vlr.protocols.options import ConceptsOptions
from hf_vlr.protocols.result import result_document, write_result
from hf_vlr.protocols.retrieval import by_group, say_groups
from hf_vlr.training.options import Recipe
from hf_vlr.training.run_data import load_split

UNSEEN = SPLITS[-1]


@dataclass(frozen=True)
class Concepts:
    """Names and the vector `[C, D]` that stands for each."""

    names: list[str]
    vectors: Tensor


def class_image_means(features: Tensor, labels: np.ndarray, num_classes: int) -> Tensor:
    """Unit vectors `[C, D]`: the normalised mean of a class's normalised image features; zeros without images."""
    unit = normalize(features, dim=-1)
    sums = unit.new_zeros(num_classes, unit.shape[1]).index_add_(0, torch.as_tensor(labels), unit)
    return normalize(sums, dim=-1)


def own_places(queries: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
    """The index of each query's own name among the candidates, int64 `[Q]`, -1 without."""
    place = {name_key(name): index for index, name in enumerate(candidates)}
    return np.array([place.get(name_key(name), -1) for name in queries], dtype=np.int64)


def nearest_concepts(queries: Concepts, candidates: Concepts, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines `[Q, k]`, falling, and indices `[Q, k]` of the nearest candidates; a query does not find its own name.

    Raises `UserError` where a query's own name is the only candidate.
    """
    own = own_places(queries.names, candidates.names)
    skip = torch.as_tensor(own) if (own >= 0).any() else None
    k = min(top, len(candidates.names) - (skip is not None))
    if k == 0:
        raise UserError(f"there is no other concept to be near to {candidates.names[0]}; name more, candidates=FILE")
    cosines, places = nearest(queries.vectors, candidates.vectors, k, skip=skip)
    return cosines.numpy(), places.numpy()


def attribute_shares(shares: np.ndarray, places: np.ndarray, own: np.ndarray) -> dict[str, np.ndarray]:
    """By query `[Q]`: the share of its attributes that the nearest concept has, the nearest k on average, and any.

    shares `[Q, G]` as of `shared_attributes`, places `[Q, k]`, own `[Q]` the candidate that is the query itself or -1.
    """
    allowed = shares.copy()
    rows = np.flatnonzero(own >= 0)
    allowed[rows, own[rows]] = np.nan
    found = np.take_along_axis(allowed, places, axis=1)
    return {"nearest": found[:, 0], f"nearest {places.shape[1]}": _mean(found), "by chance": _mean(allowed)}


def run(encoder: Encoder, recipe: Recipe, settings: ConceptsOptions, out: Path | None) -> dict[str, Any]:
    """Print and write the nearest concepts of each class, and what they share where attributes are known."""
    inputs = Inputs(encoder, recipe)
    inputs.require_trained("concept retrieval, whose queries are trained classes,")
    queries = query_concepts(inputs, settings)
    candidates, kind = candidate_concepts(inputs, settings)
    cosines, places = nearest_concepts(queries, candidates, settings.top)
    names = [[candidates.names[place] for place in row] for row in places]
    numbers: dict[str, Any] = {"candidates": {"kind": kind, "number": len(candidates.names)}}
    both = known_attributes(settings.attributes, [*queries.names, *candidates.names], recipe.data.source)
    shown = [(name, ", ".join(f"{one} ({cosine:.2f})" for one, cosine in zip(row, values)))
             for name, row, values in zip(queries.names, names, cosines)]  # fmt: skip
    say(f"{len(queries.names)} concepts ({settings.query}); nearest of {len(candidates.names)} others ({kind})")
    say_table(shown[: settings.show])
    if both is not None:
        count = len(queries.names)
        shares = shared_attributes(both[:count], both[count:])
        found = attribute_shares(shares, places, own_places(queries.names, candidates.names))
        counts, rule = inputs.train_counts(), recipe.eval.rule
        numbers["shared_attributes"] = {
            name: by_group([None if np.isnan(value) else float(value) for value in values], counts, rule)
            for name, values in found.items()
        }
        say("share of a concept's attributes that others have, in percent")
        say_groups(numbers["shared_attributes"])
    numbers["nearest"] = {
        name: [{"name": one, "cosine": float(cosine)} for one, cosine in zip(row, values)]
        for name, row, values in zip(queries.names, names, cosines)
    }
    result = result_document("concepts", settings, inputs.stated(inputs.reference(), inputs.texts()), numbers)
    write_result(out, result)
    return result


def query_concepts(inputs: Inputs, settings: ConceptsOptions) -> Concepts:
    """The trained classes, by their texts or by the images of the reported split."""
    if settings.query == "images":
        return _by_images(inputs.part(inputs.split))
    return Concepts(inputs.reference().class_names, inputs.class_vectors(inputs.corpus()))


def candidate_concepts(inputs: Inputs, settings: ConceptsOptions) -> tuple[Concepts, str]:
    """The other concepts, and what they are: "unseen", "classes" or the file."""
    kind = settings.candidates
    if kind == "auto":
        kind = UNSEEN if _has_unseen(inputs.recipe) else "classes"
    if kind == "classes":
        return query_concepts(inputs, ConceptsOptions(query=settings.against)), kind
    if kind == UNSEEN:
        source = load_split(inputs.recipe, UNSEEN)
        if settings.against == "images":
            return _by_images(inputs.encoded(source)), kind
        return _by_texts(inputs, source.class_names, build_corpus(inputs.recipe.data.texts, source)), kind
    if settings.against == "images":
        raise UserError(f"candidates={kind} has names and no images; use against=texts")
    names = candidate_names(Path(kind).expanduser())
    return _by_texts(inputs, names, ClassTextCorpus.from_templates(names)), kind


def candidate_names(path: Path) -> list[str]:
    """The different names in a file, one a line; `UserError` where it cannot be read or has fewer than two."""
    if not path.is_file():
        raise UserError(f"candidates={path} is neither classes, unseen nor a text file of names")
    names = list(dict.fromkeys(line.strip() for line in read_names(path) if line.strip()))
    if len(names) < 2:
        raise UserError(f"candidates={path} holds {len(names)} names; give one a line, two at least")
    return names


def _by_texts(inputs: Inputs, names: list[str], corpus: ClassTextCorpus) -> Concepts:
    corpus.require_every_class(names)
    return Concepts(names, inputs.class_vectors(corpus))


def _by_images(part: Part) -> Concepts:
    source = part.source
    return Concepts(source.class_names, class_image_means(part.features, part.labels, source.num_classes))


def _has_unseen(recipe: Recipe) -> bool:
    return recipe.data.source == "shapes-lt" and recipe.data.options.get("unseen", 1) > 0


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean of each row over what is known, NaN where nothing is."""
    known = ~np.isnan(values)
    counts = known.sum(axis=1)
    sums = np.where(known, values, 0.0).sum(axis=1)
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)
