"""Concept queries: the images that match a rare concept best.

Each class's text vector ranks all images of the reported split by cosine; precision@k and average precision say how
many of the first are of the class, by shot group. A contact sheet shows them for the rare classes.
"""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hf_vlr.cli.output import say
from hf_vlr.data.shots import shot_groups
from hf_vlr.disk import writing
from hf_vlr.errors import UserError
from hf_vlr.evaluation.encoders import Encoder
from hf_vlr.evaluation.text_file import write_text
from hf_vlr.protocols.contact_sheet import AGAIN, Hit, SheetRow, sheet_page, write_sheet
from hf_vlr.protocols.inputs import Inputs, Part
from hf_vlr.protocols.neighbours import nearest
from hf_vlr.protocols.options import QueriesOptions
from hf_vlr.protocols.result import result_document, write_result
from hf_vlr.protocols.retrieval import by_group, class_precisions, say_groups
from hf_vlr.training.options import Recipe

SHEET, PAGE = "queries.png", "queries.html"


def run(encoder: Encoder, recipe: Recipe, settings: QueriesOptions, out: Path | None) -> dict[str, Any]:
    """Measure every class, show those of `settings.group`, the rarest first."""
    inputs = Inputs(encoder, recipe)
    part, corpus = inputs.part(inputs.split), inputs.corpus()
    vectors, counts, rule = inputs.class_vectors(corpus), inputs.train_counts(), recipe.eval.rule
    found = class_precisions(part.features, vectors, part.labels, settings.top)
    groups = {
        f"precision@{settings.top}": by_group(found["precision"], counts, rule),
        "average precision": by_group(found["average_precision"], counts, rule),
        "by chance": by_group(chances(part.labels, len(counts)), counts, rule),
    }
    say(f"{part.source.split}: {len(part.labels)} images, {len(counts)} classes")
    say_groups(groups)
    shown = shown_classes(counts, part.labels, rule, settings)
    numbers: dict[str, Any] = {**groups, "per_class": found, "shown": [part.source.class_names[c] for c in shown]}
    if not shown:
        say(f"no class of the group {settings.group} has images; nothing to show")
    elif out is not None:
        rows = sheet_rows(part, vectors, counts, found, shown, settings)
        _write_sheets(rows, out, part, settings)
    result = result_document("queries", settings, inputs.stated(part.source, inputs.texts()), numbers)
    write_result(out, result)
    return result


def chances(labels: np.ndarray, num_classes: int) -> list[float | None]:
    """The share of each class among the images, which a random order has at every place; None without images."""
    counts = np.bincount(labels, minlength=num_classes)
    return [float(count / len(labels)) if count else None for count in counts]


def shown_classes(counts: np.ndarray, labels: np.ndarray, rule: str, settings: QueriesOptions) -> list[int]:
    """The classes of the group that have images, the rarest in training first, at most `settings.show`."""
    groups = shot_groups(counts, rule) | {"all": np.ones(len(counts), dtype=bool)}
    if settings.group not in groups:
        raise UserError(f"group={settings.group} is no group of eval.rule={rule}; there are {', '.join(groups)}")
    members = np.flatnonzero(groups[settings.group] & (np.bincount(labels, minlength=len(counts)) > 0))
    return members[np.argsort(counts[members], kind="stable")][: settings.show].tolist()


def sheet_rows(
    part: Part,
    vectors: Tensor,
    counts: np.ndarray,
    found: dict[str, list[float | None]],
    classes: list[int],
    settings: QueriesOptions,
) -> list[SheetRow]:
    """The best images of each class, with its numbers."""
    names, rows = part.source.class_names, []
    cosines, places = nearest(vectors[classes], part.features, min(settings.top, len(part.labels)))
    for label, values, images in zip(classes, cosines.tolist(), places.tolist()):
        hits = tuple(
            Hit(part.source.images[image], names[part.labels[image]], cosine, bool(part.labels[image] == label))
            for image, cosine in zip(images, values)
        )
        right = sum(hit.right for hit in hits)
        tested = int((part.labels == label).sum())
        lines = (
            f"{counts[label]} training images",
            f"{right} of {len(hits)} right ({tested} there are)",
            f"AP {100 * found['average_precision'][label]:.1f}",
        )
        rows.append(SheetRow(names[label], lines, hits))
    return rows


def _write_sheets(rows: list[SheetRow], out: Path, part: Part, settings: QueriesOptions) -> None:
    kind = "" if settings.group == "all" else f"{settings.group}-shot "
    title = f"{part.source.name}, {part.source.split}: images that match {kind}classes best"
    lead = f"The {settings.top} images with the highest cosine to each class's texts."
    say(f"written to {write_sheet(rows, out / SHEET, settings.thumbnail)}")
    with writing(out / PAGE, AGAIN):
        write_text(out / PAGE, sheet_page(rows, title, lead, settings.thumbnail))
    say(f"written to {out / PAGE}")
