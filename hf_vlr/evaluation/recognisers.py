"""The recognisers of this package as subjects of an evaluation: visual branch, language branch and their fusion."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hf_vlr.data.source import ImageSource
from hf_vlr.evaluation.class_names import match_classes
from hf_vlr.evaluation.encoders import UniCLEncoder
from hf_vlr.evaluation.predictors import Scores, recognise
from hf_vlr.evaluation.protocol import RECIPE_FILE, training_of
from hf_vlr.evaluation.subject import Sentences, Subject, Train
from hf_vlr.features import Transform
from hf_vlr.modeling import VLLTRForImageClassification


class Recogniser(Subject):
    """A recogniser, and which of its outputs are the dataset's classes."""

    task = "recognition"

    def __init__(self, encoder: UniCLEncoder, same_order: bool = False) -> None:
        self.encoder, self.same_order = encoder, same_order
        self.location, self.transform, self.image_size = encoder.location, encoder.transform, encoder.image_size
        self.model: VLLTRForImageClassification = encoder.model
        self.num_params = encoder.num_params
        self.outputs = np.arange(self.model.config.num_labels)

    def prepare(self, source: ImageSource, train: Train) -> None:
        known = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
        self.outputs = match_classes(
            known, source.class_names, same_order=self.same_order, model=f"model {self.location}"
        )
        if len(self.outputs) < len(known):
            self.note = f"{len(self.outputs)} of the model's {len(known)}"

    def scores(self, source: ImageSource, transform: Transform) -> Scores:
        found = recognise(self.model, self.encoder.image_features(source, transform))
        return chosen_columns(found, self.outputs)

    def train_counts(self) -> npt.NDArray[np.int64] | None:
        counts = self.model.head.class_counts.cpu().numpy().astype(np.int64)
        # a converted checkpoint was not told
        return counts[self.outputs] if counts.any() else None

    def protocol(self) -> dict[str, Any]:
        """What the run that made it says of its task and its texts holds; else that it recognises."""
        stated = super().protocol()
        if (Path(self.location) / RECIPE_FILE).is_file():
            del stated["task"], stated["texts"]
        if self.model.config.num_anchors:
            # also where the run's own numbers are not there to tell
            weight = {"fusion_weight": self.model.config.fusion_weight}
            stated["training"] = training_of(self.location) | weight
        return stated

    def sentences(self, source: ImageSource, classes: Sequence[int], count: int = 3) -> list[Sentences]:
        features = self.encoder.image_features(source)
        return attended_sentences(self.model, features, self.outputs[np.asarray(classes, dtype=np.int64)], count)


@torch.no_grad()
def attended_sentences(
    model: VLLTRForImageClassification, features: torch.Tensor, outputs: Sequence[int], count: int = 3
) -> list[Sentences]:
    """The `count` anchor sentences of output `outputs[i]` that image i attends to most, with their attention.

    `features` [N, D], projected. Empty without anchors; sentences that a converted checkpoint was not told are left
    out.
    """
    if not model.config.num_anchors:
        return [()] * len(features)
    found: list[Sentences] = []
    # image by image: the attention of a whole batch is [N, C, M]
    for row, output in zip(features.to(model.device), outputs, strict=True):
        attention = model(image_features=row[None], output_anchor_attention=True).anchor_attention[0, int(output)]
        real = int(model.head.anchor_mask[int(output)].sum())
        weights, anchors = attention.topk(min(count, real))
        texts = [model.head.sentence(int(output), anchor) for anchor in anchors.tolist()]
        found.append(tuple((weight, text) for weight, text in zip(weights.tolist(), texts, strict=True) if text))
    return found


def chosen_columns(scores: Scores, columns: npt.NDArray[np.int64]) -> Scores:
    """The dataset's classes out of a model's outputs [N, K], in the dataset's order."""
    return {
        name: values
        if len(columns) == values.shape[1] and (columns == np.arange(len(columns))).all()
        else values[:, columns]
        for name, values in scores.items()
    }
