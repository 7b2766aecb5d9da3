"""k-NN: an image is what the training images nearest to it are.

By cosine, with votes weighted by exp(cos/T) (Wu et al., CVPR 2018, §3.4) and by majority. k is chosen on validation
images unless one is given.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_vlr.cli.output import say, say_table
from hf_vlr.evaluation.encoders import Encoder
from hf_vlr.evaluation.record import record
from hf_vlr.protocols.inputs import Inputs, Part
from hf_vlr.protocols.neighbours import majority_vote, nearest, weighted_vote
from hf_vlr.protocols.options import KnnOptions
from hf_vlr.protocols.probe import CHOSEN_BY, chosen_score
from hf_vlr.protocols.result import result_document, summary, write_result
from hf_vlr.training.options import Recipe

VOTES = ("weighted", "majority")


def knn_predictions(
    train: Tensor, labels: np.ndarray, queries: Tensor, ks: list[int], num_classes: int, temperature: float
) -> dict[tuple[str, int], np.ndarray]:
    """Predicted classes, int64 `[Q]`, by (vote, k) for all of `ks`, from one search.

    train `[N, D]` with labels `[N]`, queries `[Q, D]`. A k above N counts as N.
    """
    cosines, places = nearest(queries, train, min(max(ks), len(train)))
    found = torch.as_tensor(labels)[places]
    predictions = {}
    for k in ks:
        predictions["weighted", k] = weighted_vote(cosines[:, :k], found[:, :k], num_classes, temperature).numpy()
        predictions["majority", k] = majority_vote(found[:, :k], num_classes).numpy()
    return predictions


def run(encoder: Encoder, recipe: Recipe, settings: KnnOptions, out: Path | None) -> dict[str, Any]:
    """Two predictors, `weighted` and `majority`, each with its k.

    Raises `UserError` for unseen classes, and where the reported split is one that is searched or chosen on.
    """
    inputs = Inputs(encoder, recipe)
    inputs.require_trained("k-NN")
    inputs.require_apart("train", "neighbours are searched")
    train = inputs.part("train")
    ks = possible_ks(settings.k, len(train.labels))
    validation: dict[str, dict[int, float]] = {}
    chosen = dict.fromkeys(VOTES, ks[0])
    if len(settings.k) > 1:
        inputs.require_apart("validation", "k is chosen")
        validation = validate(train, inputs.part("validation"), ks, settings)
        chosen = {vote: best_k(scores) for vote, scores in validation.items()}
    part = inputs.part(inputs.split)
    found = _predictions(train, part, sorted(set(chosen.values())), settings)
    scores = {f"{vote}, k={chosen[vote]}": found[vote, chosen[vote]] for vote in VOTES}
    stated = {"task": "k-NN", "knn": asdict(settings) | {"chosen": chosen, "training_images": len(train.labels)}}
    predictions = inputs.predictions(part, scores, None, **stated)
    document = record(predictions, out, recipe.eval)
    _say_choice(validation, ks, settings)
    kept = {vote: {str(k): score for k, score in scores.items()} for vote, scores in validation.items()}
    numbers = {"predictors": summary(document), "chosen": chosen, "validation": kept}
    result = result_document("knn", settings, predictions.protocol, numbers)
    write_result(out, result)
    return result


def possible_ks(ks: list[int], images: int) -> list[int]:
    """`ks` in their order, each at most the number of training images, and once."""
    return list(dict.fromkeys(min(k, images) for k in ks))


def validate(train: Part, validation: Part, ks: list[int], settings: KnnOptions) -> dict[str, dict[int, float]]:
    """By vote and k, the score of `settings.choose_by` on the validation images."""
    found = _predictions(train, validation, ks, settings)
    return {
        vote: {k: chosen_score(found[vote, k], validation.labels, settings.choose_by) for k in ks} for vote in VOTES
    }


def best_k(scores: dict[int, float]) -> int:
    """The k of the highest score, the smallest of equals."""
    return min(scores, key=lambda k: (-scores[k], k))


def _predictions(train: Part, part: Part, ks: list[int], settings: KnnOptions) -> dict[tuple[str, int], np.ndarray]:
    classes = train.source.num_classes
    return knn_predictions(train.features, train.labels, part.features, ks, classes, settings.temperature)


def _say_choice(validation: dict[str, dict[int, float]], ks: list[int], settings: KnnOptions) -> None:
    for k in settings.k:
        if k not in ks:
            say(f"k={k} is k={max(ks)}: there are no more training images")
    if not validation:
        say(f"k={ks[0]}, given")
        return
    rows = [(f"{CHOSEN_BY[settings.choose_by]} on validation images, by k", *map(str, ks))]
    rows += [(vote, *(f"{100 * scores[k]:.1f}" for k in ks)) for vote, scores in validation.items()]
    say_table(rows)
