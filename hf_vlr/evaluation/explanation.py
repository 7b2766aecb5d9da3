"""Test images for the report: what a predictor made of them, and the sentences that spoke for it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from hf_vlr.data.shots import shot_names
from hf_vlr.data.source import ImageSource
from hf_vlr.evaluation.main_predictor import main_predictor
from hf_vlr.evaluation.predictions import Predictions
from hf_vlr.evaluation.predictors import log_softmax
from hf_vlr.evaluation.subject import Sentences

if TYPE_CHECKING:
    from hf_vlr.report.examples import Example

# what spoke for class `classes[i]` on image i of a source
Explain = Callable[[ImageSource, Sequence[int]], list[Sentences]]
COUNT = 12
THUMBNAIL = 160


def make_examples(
    predictions: Predictions,
    source: ImageSource,
    rule: str,
    sentences: Explain | None = None,
    count: int = COUNT,
) -> list["Example"]:
    """At most `count` successes and failures of the main predictor on a source's images.

    `sentences(source, classes)` gives what spoke for `classes[i]` on image i of those shown.
    """
    from hf_vlr.report.examples import Example, pick_examples

    name = main_predictor(predictions)
    rows = pick_examples(predictions, name, count)
    if not rows or predictions.scores[name].ndim != 2:
        return []
    probabilities = np.exp(log_softmax(predictions.scores[name][rows]))
    predicted = probabilities.argmax(axis=1)
    chosen = source.subset(rows)
    said = sentences(chosen, predicted.tolist()) if sentences else [()] * len(rows)
    shots = shot_names(predictions.train_counts, rule)
    return [
        Example(
            image=thumbnail(chosen.images[index]),
            true=predictions.class_names[label],
            predicted=predictions.class_names[guess],
            shot=shots[label],
            confidence=float(probabilities[index, guess]),
            true_probability=float(probabilities[index, label]),
            sentences=said[index],
        )
        for index, (label, guess) in enumerate(zip(chosen.labels.tolist(), predicted.tolist(), strict=True))
    ]


def thumbnail(image: Image.Image) -> Image.Image:
    """A copy of at most 160 pixels a side."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small
