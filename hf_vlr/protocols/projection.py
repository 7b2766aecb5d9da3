"""Image features in the plane (t-SNE or UMAP), with the class texts among them.

A picture of neighbourhoods, not of distances: its numbers, the silhouette and the k-NN accuracy, are given for the
plane and for the features themselves, so that one can see what the plane adds or loses.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_vlr.cli.output import say, say_table
from hf_vlr.data.shots import SHOT_NAMES, shot_groups, shot_names
from hf_vlr.data.texts.names import NameIndex, shown
from hf_vlr.errors import UserError
from hf_vlr.evaluation.encoders import Encoder
from hf_vlr.protocols.inputs import Inputs
from hf_vlr.protocols.options import ProjectionOptions
from hf_vlr.protocols.plane import centred, separation, to_plane
from hf_vlr.protocols.probe import draw_shots
from hf_vlr.protocols.result import result_document, write_result
from hf_vlr.protocols.scatter import Scatter, write_coordinates, write_scatter
from hf_vlr.training.options import Recipe

PICTURE, TABLE = "projection.png", "projection.csv"


def run(encoder: Encoder, recipe: Recipe, settings: ProjectionOptions, out: Path | None) -> dict[str, Any]:
    """Draw the reported split; raises `UserError` without a folder to draw into, and as `to_plane`."""
    if out is None:
        raise UserError("projection draws a picture and needs a folder for it: --out DIR")
    inputs = Inputs(encoder, recipe)
    source = inputs.source(inputs.split)
    counts, rule = inputs.train_counts(), recipe.eval.rule
    classes = drawn_classes(source.class_names, counts, source.class_counts(), rule, settings)
    rows = drawn_images(source.labels, classes, settings.images, recipe.seed)
    part = inputs.encoded(source.subset(rows))
    vectors, labels = centred(part.features, settings.centre), part.labels
    texts = len(classes) if settings.texts and encoder.has_texts else 0
    if texts:
        class_texts = centred(inputs.class_vectors(inputs.corpus())[classes], settings.centre)
        vectors, labels = torch.cat([vectors, class_texts]), np.concatenate([labels, classes])
    points = to_plane(vectors.numpy(), settings.method, settings.perplexity, recipe.seed)
    scatter = Scatter(points, labels, texts, source.class_names, shot_names(counts, rule), settings.colour)
    images = ~scatter.is_text
    numbers: dict[str, Any] = {
        "images": int(images.sum()),
        "classes": [source.class_names[label] for label in classes],
        "plane": separation(points[images], labels[images]),
        "features": separation(vectors[images].numpy(), labels[images]),
    }
    if texts:
        numbers["texts_among_their_images"] = texts_among_images(points, labels, texts)
    _say_numbers(numbers)
    name = {"tsne": "t-SNE", "umap": "UMAP"}[settings.method]
    title = f"{name} of {numbers['images']} {source.split} images, {len(classes)} classes ({source.name})"
    say(f"written to {write_scatter(out / PICTURE, scatter, title)}")
    say(f"written to {write_coordinates(out / TABLE, scatter)}")
    stated = inputs.stated(source, inputs.texts() if texts else None)
    result = result_document("projection", settings, stated, numbers)
    write_result(out, result)
    return result


def drawn_classes(
    names: list[str], counts: np.ndarray, images: np.ndarray, rule: str, settings: ProjectionOptions
) -> np.ndarray:
    """The classes that are drawn, rising: those named; else equally many of each shot group, spread over its ranks.

    counts, images: int64 `[C]`, training images and images of the split; a class without the latter is not drawn.
    Raises `UserError` for a name that is no class, or that several have.
    """
    if settings.classes:
        index, chosen = NameIndex(names), []
        for name in settings.classes:
            found = index.find(name)
            if len(found) != 1:
                raise UserError(f"classes={name} is the name of {len(found)} classes; there are {shown(names)}")
            chosen += found
        return np.unique(chosen)
    there = images > 0
    if settings.most == 0 or settings.most >= there.sum():
        return np.flatnonzero(there)
    groups = shot_groups(counts, rule)
    members = [np.flatnonzero(groups[name] & there) for name in SHOT_NAMES]
    members = [own[np.argsort(-counts[own], kind="stable")] for own in members if len(own)]
    chosen, left = [], settings.most
    # the smallest group first: what it cannot give, the others do
    for rest, own in enumerate(sorted(members, key=len)):
        take = min(len(own), -(-left // (len(members) - rest)))
        chosen.append(own[np.linspace(0, len(own) - 1, take).round().astype(np.int64)])
        left -= take
    return np.sort(np.concatenate(chosen))


def drawn_images(labels: np.ndarray, classes: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Rows of the classes' images, rising: at most `most` of them, equally many of each class where they suffice."""
    rows = np.flatnonzero(np.isin(labels, classes))
    each = max(1, most // len(classes))
    if len(rows) <= most:
        return rows
    return rows[draw_shots(labels[rows], each, seed, "projection")]


def texts_among_images(points: np.ndarray, labels: np.ndarray, texts: int) -> float:
    """Share of class texts (the last `texts` points) whose nearest image in the plane is of their class."""
    places = torch.as_tensor(points, dtype=torch.float32)
    near = torch.cdist(places[-texts:], places[:-texts]).argmin(dim=1).numpy()
    return float((labels[:-texts][near] == labels[-texts:]).mean())


def _say_numbers(numbers: dict[str, Any]) -> None:
    rows = [("", "silhouette", "10-NN accuracy")]
    for where in ("plane", "features"):
        values = numbers[where]
        silhouette = "-" if values["silhouette"] is None else f"{values['silhouette']:.3f}"
        rows.append((f"in the {where}", silhouette, f"{100 * values['knn_accuracy']:.1f}"))
    say_table(rows)
    if "texts_among_their_images" in numbers:
        share = 100 * numbers["texts_among_their_images"]
        say(f"class texts whose nearest image in the plane is of their class: {share:.1f} %")
