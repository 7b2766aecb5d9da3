"""What int8 costs: both models on the same test images."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from hf_vlr.data.source import ImageSource
from hf_vlr.evaluate import predict
from hf_vlr.evaluation.document import metrics_document
from hf_vlr.evaluation.predictions import Predictions
from hf_vlr.evaluation.predictors import Scores
from hf_vlr.evaluation.recognisers import Recogniser, chosen_columns
from hf_vlr.evaluation.subject import Subject, Train
from hf_vlr.export.sessions import Session
from hf_vlr.features import Transform, View, read_batches
from hf_vlr.training.options import Recipe

FLOAT, INT8 = "float32", "int8"


class Served(Subject):
    """Exported models in place of the one they were made of: predictors called "fused float32", "fused int8", …"""

    def __init__(self, subject: Subject, sessions: Mapping[str, Session], predictors: Mapping[str, str], batch: int):
        self.subject, self.sessions, self.predictors, self.batch = subject, sessions, predictors, batch
        self.location, self.task, self.transform = subject.location, subject.task, subject.transform
        self.image_size, self.num_params, self.texts = subject.image_size, subject.num_params, subject.texts

    def prepare(self, source: ImageSource, train: Train) -> None:
        # a zero-shot classifier has its classes in it
        if isinstance(self.subject, Recogniser):
            self.subject.prepare(source, train)
            self.note = self.subject.note

    def scores(self, source: ImageSource, transform: Transform) -> Scores:
        parts: dict[str, list] = {f"{name} {kind}": [] for name in self.predictors.values() for kind in self.sessions}
        loader = DataLoader(View(source.images, transform, None, 0), self.batch)
        for batch in tqdm(read_batches(loader), total=len(loader), desc="measuring", leave=False, disable=None):
            for kind, session in self.sessions.items():
                found = session.run(pixel_values=batch.numpy())
                for output, name in self.predictors.items():
                    parts[f"{name} {kind}"].append(found[output])
        scores = {name: np.concatenate(values) for name, values in parts.items()}
        return chosen_columns(scores, self.subject.outputs) if isinstance(self.subject, Recogniser) else scores

    def train_counts(self) -> Any:
        return self.subject.train_counts()


def measured_change(served: Served, recipe: Recipe, source: ImageSource, margin: float) -> dict[str, Any]:
    """The metrics of every predictor in both precisions, how far they agree, and the verdict, as plain numbers.

    `predictors`: by name and precision `accuracy`, `balanced_accuracy` and `groups` with `accuracy`, `classes` and
    `images` of many, medium and few, fractions under the rule `eval.rule`. `agreement`: by name the share of images
    that both name alike, and how many int8 alone gets right (`gained`) and wrong (`lost`). `falls`: see `falls_of`.
    """
    with torch.no_grad():
        predictions = predict(served, recipe, source)
    document = metrics_document(predictions, recipe.eval.rule)
    names = list(served.predictors.values())
    kept = ("accuracy", "classes", "images")
    entries = {
        name: {key: entry[key] for key in ("accuracy", "balanced_accuracy")}
        | {"groups": {group: {key: values[key] for key in kept} for group, values in entry["groups"].items()}}
        for name, entry in document["predictors"].items()
    }
    return {
        "source": source.name,
        "split": document["protocol"]["split"],
        "images": len(predictions.labels),
        "rule": document["protocol"]["rule"]["name"],
        "margin": margin,
        "predictors": entries,
        "agreement": {name: agreement(predictions, name) for name in names},
        "falls": falls_of(entries, names[0], margin),
    }


def agreement(predictions: Predictions, name: str) -> dict[str, Any]:
    """`share` of images that both precisions of a predictor name alike; images `gained` and `lost` by int8."""
    exact, rough = (predictions.scores[f"{name} {kind}"].argmax(1) for kind in (FLOAT, INT8))
    right, still = exact == predictions.labels, rough == predictions.labels
    return {
        "share": float((exact == rough).mean()),
        "gained": int((still & ~right).sum()),
        "lost": int((right & ~still).sum()),
    }


def falls_of(entries: Mapping[str, Mapping[str, float]], name: str, margin: float) -> dict[str, float]:
    """By how much a predictor's accuracy and balanced accuracy fall, of those that fall by more than the margin."""
    exact, rough = (entries[f"{name} {kind}"] for kind in (FLOAT, INT8))
    falls = {key: exact[key] - rough[key] for key in ("accuracy", "balanced_accuracy")}
    return {key: fall for key, fall in falls.items() if fall > margin}
