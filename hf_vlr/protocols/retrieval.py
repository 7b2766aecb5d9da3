"""Image-text retrieval: images by their captions and captions by their images, or images of a class by its texts.

Pairs: recall@K = share of queries with a positive among the K nearest, and the median place of the first positive, in
both directions. An image with several captions (rows of equal `group`) is found when any of them is, and a caption
that several images have is found when any of those is. Classes: average precision of all images ranked by their
cosine to the class's text vector, averaged over classes.
"""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize

from hf_vlr.cli.output import say, say_table
from hf_vlr.data.shots import shot_groups
from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.evaluation.encoders import Encoder
from hf_vlr.protocols.inputs import Inputs
from hf_vlr.protocols.options import RetrievalOptions
from hf_vlr.protocols.ranking import average_precision, pair_ranks, precision_at, recall_at
from hf_vlr.protocols.result import result_document, write_result
from hf_vlr.training.options import Recipe
from hf_vlr.training.run_data import load_split


def run(encoder: Encoder, recipe: Recipe, settings: RetrievalOptions, out: Path | None) -> dict[str, Any]:
    """Recall of pairs, or mean average precision of classes; `UserError` where the split has neither."""
    inputs = Inputs(encoder, recipe)
    source = load_split(recipe, inputs.split)
    captioned = any(source.captions)
    kind = settings.kind if settings.kind != "auto" else "pairs" if captioned else "classes"
    if kind == "pairs" and not captioned:
        raise UserError(f"{source.name}: no image of the split {source.split} has a caption; use kind=classes")
    result = _pairs(inputs, source, settings) if kind == "pairs" else _classes(inputs, settings)
    write_result(out, result)
    return result


def unique_rows(values: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each distinct value, rising, and for each row which of these its value is."""
    number: dict[Any, int] = {}
    firsts, index = [], np.empty(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        if value not in number:
            number[value] = len(firsts)
            firsts.append(row)
        index[row] = number[value]
    return np.array(firsts, dtype=np.int64), index


def _pairs(inputs: Inputs, source: ImageSource, settings: RetrievalOptions) -> dict[str, Any]:
    """Recall in both directions over distinct pictures and distinct captions."""
    rows = np.array([row for row, caption in enumerate(source.captions) if caption], dtype=np.int64)
    source = source.subset(rows)
    groups = np.arange(len(source)) if source.groups is None else source.groups
    firsts, image_of = unique_rows(groups.tolist())
    texts, text_of = unique_rows(source.captions)
    images = inputs.encoder.image_features(source.subset(firsts))
    sentences = inputs.encoder.text_features([source.captions[row] for row in texts])
    to_text, to_image = pair_ranks(images, sentences, image_of, text_of)
    numbers: dict[str, Any] = {
        "kind": "pairs",
        "images": len(firsts),
        "texts": len(texts),
        "pairs": len(source),
        "image to text": recall_at(to_text, settings.ranks),
        "text to image": recall_at(to_image, settings.ranks),
    }
    say(f"{source.split}: {len(firsts)} images, {len(texts)} texts, {len(source)} pairs")
    say_recall({way: numbers[way] for way in ("image to text", "text to image")})
    stated = inputs.stated(source, "captions")
    return result_document("retrieval", settings, stated, numbers)


def say_recall(rows: dict[str, dict[str, float]]) -> None:
    """Print results of `recall_at`: recall in percent, the median rank as it is."""
    header = ("", *(key.replace("_", " ") for key in next(iter(rows.values()))))
    cells = [
        (name, *(f"{value:g}" if key == "median_rank" else f"{100 * value:.1f}" for key, value in values.items()))
        for name, values in rows.items()
    ]
    say_table([header, *cells])


def class_precisions(images: Tensor, vectors: Tensor, labels: np.ndarray, place: int) -> dict[str, list[float | None]]:
    """Average precision and precision@`place` of each class, all images `[N, D]` ranked by its vector of `[C, D]`.

    None for a class without images.
    """
    similarity = (normalize(vectors, dim=-1) @ normalize(images, dim=-1).t()).numpy()
    found: dict[str, list[float | None]] = {"average_precision": [], "precision": []}
    for label, scores in enumerate(similarity):
        positive = labels == label
        found["average_precision"].append(average_precision(scores, positive))
        found["precision"].append(precision_at(scores, positive, place) if positive.any() else None)
    return found


def by_group(values: list[float | None], train_counts: np.ndarray, rule: str) -> dict[str, float | None]:
    """The mean over all classes that have a value, and over those of each shot group; None for an empty group."""
    numbers = np.array([np.nan if value is None else value for value in values])
    masks = {"all": np.ones(len(numbers), dtype=bool), **shot_groups(train_counts, rule)}
    kept = {name: numbers[mask & ~np.isnan(numbers)] for name, mask in masks.items()}
    return {name: float(part.mean()) if len(part) else None for name, part in kept.items()}


def say_groups(rows: dict[str, dict[str, float | None]]) -> None:
    """Print means by group in percent, "-" for none."""
    header = ("", *next(iter(rows.values())))
    cells = [
        (name, *("-" if value is None else f"{100 * value:.1f}" for value in values.values()))
        for name, values in rows.items()
    ]
    say_table([header, *cells])


def _classes(inputs: Inputs, settings: RetrievalOptions) -> dict[str, Any]:
    """Mean average precision of images ranked for each class, and the place of an image's own class."""
    part = inputs.part(inputs.split)
    vectors = inputs.class_vectors(inputs.corpus())
    place = max(settings.ranks)
    found = class_precisions(part.features, vectors, part.labels, place)
    counts = inputs.train_counts()
    groups = {
        "text to image, mean AP": by_group(found["average_precision"], counts, inputs.recipe.eval.rule),
        f"text to image, precision@{place}": by_group(found["precision"], counts, inputs.recipe.eval.rule),
    }
    ranks, _ = pair_ranks(part.features, vectors, np.arange(len(part.labels)), part.labels)
    recall = recall_at(ranks, settings.ranks)
    say(f"{part.source.split}: {len(part.labels)} images, {len(vectors)} classes")
    say_groups(groups)
    say_recall({"image to its class's text": recall})
    numbers = {"kind": "classes", **groups, "image to text": recall, "per_class": found}
    return result_document("retrieval", settings, inputs.stated(part.source, inputs.texts()), numbers)
