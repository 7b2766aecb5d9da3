"""VL-LTR's evaluation after stage 1: all sentences as one gallery.

Four readings: an image is the class of its nearest sentence; of the majority of its 5 nearest (among equals the class
that is ranked highest); of its nearest class mean; and a sentence is the class of its nearest image. Source: Tian et
al., VL-LTR, ECCV 2022, and its published evaluation of the pre-training stage.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_vlr.cli.output import say
from hf_vlr.evaluation.encoders import Encoder
from hf_vlr.evaluation.metrics import evaluate_predictions
from hf_vlr.evaluation.record import record
from hf_vlr.evaluation.table import render_table
from hf_vlr.protocols.inputs import Inputs
from hf_vlr.protocols.neighbours import majority_vote, nearest
from hf_vlr.protocols.options import GalleryOptions
from hf_vlr.protocols.result import result_document, summary, write_result
from hf_vlr.protocols.retrieval import unique_rows
from hf_vlr.protocols.zero_shot import zero_shot_scores
from hf_vlr.training.options import Recipe


def sentence_classes(
    images: Tensor, sentences: Tensor, labels: np.ndarray, columns: np.ndarray, num_classes: int, neighbours: int
) -> tuple[np.ndarray, np.ndarray]:
    """The class of each image's nearest sentence, and of the majority of its nearest ones, int64 `[N]` each.

    images `[N, D]`; sentences `[U, D]`, the distinct ones; sentence s of the gallery has the text `columns[s]` and the
    class `labels[s]` (both int64 `[S]`, class by class). A sentence that several classes have is as near in each of
    them: the lower class comes first. `neighbours` above S count as S.
    """
    k = min(neighbours, len(labels))
    _, places = nearest(images, sentences, k, columns=torch.as_tensor(columns))
    found = torch.as_tensor(labels)[places]
    return found[:, 0].numpy(), majority_vote(found, num_classes).numpy()


def image_classes(sentences: Tensor, columns: np.ndarray, images: Tensor, labels: np.ndarray) -> np.ndarray:
    """The class of the nearest image of each sentence of the gallery, int64 `[S]`.

    sentences `[U, D]` distinct, columns int64 `[S]`, images `[N, D]` with labels int64 `[N]`.
    """
    _, places = nearest(sentences, images, 1)
    return labels[places[:, 0].numpy()][columns]


def run(encoder: Encoder, recipe: Recipe, settings: GalleryOptions, out: Path | None) -> dict[str, Any]:
    """Three predictors of the images and one of the sentences, by shot groups."""
    inputs = Inputs(encoder, recipe)
    corpus = inputs.corpus()
    part = inputs.part(inputs.split)
    counts, rule = inputs.train_counts(), recipe.eval.rule
    firsts, columns = unique_rows(corpus.texts)
    sentences = encoder.text_features([corpus.texts[row] for row in firsts])
    one, several = sentence_classes(
        part.features, sentences, corpus.labels, columns, corpus.num_classes, settings.neighbours
    )
    scores = {
        "nearest sentence": one,
        f"{min(settings.neighbours, len(corpus))} nearest sentences": several,
        "class mean": zero_shot_scores(encoder, part.features, inputs.class_vectors(corpus)),
    }
    predictions = inputs.predictions(part, scores, inputs.texts(), task="sentence gallery", sentences=len(corpus))
    document = record(predictions, out, recipe.eval)
    by_sentence = evaluate_predictions(
        image_classes(sentences, columns, part.features, part.labels), corpus.labels, counts, rule
    )
    say(f"{part.source.split}: {len(corpus)} sentences, {len(firsts)} of them distinct")
    say(render_table({"nearest image": by_sentence}))
    numbers = {
        "predictors": summary(document),
        "sentences": summary({"predictors": {"nearest image": by_sentence}}),
    }
    result = result_document("gallery", settings, predictions.protocol, numbers)
    write_result(out, result)
    return result
