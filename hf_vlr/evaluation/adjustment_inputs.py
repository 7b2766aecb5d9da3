"""What post-hoc methods work on, read from the folders and files that a user names."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_vlr.errors import UserError
from hf_vlr.evaluation.adjustment import Material
from hf_vlr.evaluation.adjustment_bench import Array
from hf_vlr.evaluation.arrays import SUFFIXES, check_sizes, read_array, whole_numbers
from hf_vlr.evaluation.document import PROTOCOL_FIELDS
from hf_vlr.evaluation.predictions import Predictions, read_predictions
from hf_vlr.posthoc.tau_norm import logits

PREDICTOR = "logits"


@dataclass(frozen=True)
class Places:
    """Where one split lies: a folder of predictions, or files of arrays.

    zero_shot: predictions of a second model on the same images, or a file of its logits. option: what the command line
    puts before the names, "--" or "--tune-".
    """

    option: str
    predictions: str | None = None
    logits: str | None = None
    labels: str | None = None
    features: str | None = None
    zero_shot: str | None = None


@dataclass(frozen=True)
class Layer:
    """A linear classifier: weight [C, D] and bias [C]."""

    weight: Array
    bias: Array | None = None

    @classmethod
    def read(cls, weight: str | None, bias: str | None) -> "Layer | None":
        """From files; None without a weight."""
        if weight is None:
            if bias is not None:
                raise UserError("--bias goes with --classifier, the weight of the same layer")
            return None
        return cls(read_array(weight, "weights"), None if bias is None else read_array(bias, "bias"))


def read_material(places: Places, train_counts: str | None, layer: Layer | None) -> Material:
    """The predictions, features and zero-shot predictions of one split.

    Without predictions and logits, the scores are those of `layer` on the features. Raises `UserError` where something
    is missing, given twice, or does not fit.
    """
    features = None if places.features is None else read_array(places.features, "features")
    if places.predictions is None:
        predictions = _from_arrays(places, train_counts, features, layer)
    else:
        for name in ("logits", "labels"):
            if getattr(places, name):
                raise UserError(f"{places.option}{name} goes in place of {places.predictions}, not with it")
        predictions = read_predictions(places.predictions)
    zero_shot = None
    if places.zero_shot is not None and Path(places.zero_shot).suffix in SUFFIXES[:1]:
        scores = read_array(places.zero_shot, "logits")
        check_sizes(places.zero_shot, scores, predictions.labels, predictions.train_counts, predictions.class_names)
        zero_shot = predictions.with_scores({"zero-shot": scores})
    elif places.zero_shot is not None:
        zero_shot = read_predictions(places.zero_shot)
    return Material(predictions, zero_shot, features)


def _from_arrays(places: Places, train_counts: str | None, features: Array | None, layer: Layer | None) -> Predictions:
    missing = {f"{places.option}labels": places.labels, "--train-counts": train_counts}
    for option, place in missing.items():
        if place is None:
            raise UserError(f"arrays need labels and training counts: give {option} FILE")
    if places.logits is not None:
        place, scores = places.logits, read_array(places.logits, "logits")
    elif features is not None and layer is not None:
        place, scores = places.features, logits(features, layer.weight, layer.bias)
    else:
        raise UserError(f"there are no scores: give {places.option}logits, or {places.option}features and --classifier")
    labels, counts = whole_numbers(places.labels, "labels"), whole_numbers(train_counts, "train counts")
    names = tuple(f"class {index}" for index in range(len(counts)))
    check_sizes(place, scores, labels, counts, names)
    # arrays have no name of their own for a split
    protocol = dict.fromkeys(PROTOCOL_FIELDS) | {"split": Path(place).stem}
    return Predictions({PREDICTOR: np.asarray(scores)}, labels, counts, names, protocol)
