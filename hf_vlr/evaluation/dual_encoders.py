"""Dual encoders as subjects of an evaluation: zero-shot classification by the texts of the classes."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_vlr.data.corpus import ClassTextCorpus
from hf_vlr.data.source import ImageSource
from hf_vlr.evaluation.encoders import Encoder
from hf_vlr.evaluation.predictors import Scores, class_vectors, text_logits
from hf_vlr.evaluation.subject import Sentences, Subject, Train
from hf_vlr.features import Transform

# not `language`, which in a training run is the mean of the anchors chosen on training images
PREDICTOR = "all texts"


class ZeroShot(Subject):
    """A dual encoder against one vector for each class: the normalised mean of its normalised sentences."""

    task = "zero-shot by class texts"

    def __init__(self, encoder: Encoder, texts_of: Callable[[ImageSource], tuple[ClassTextCorpus, str]]) -> None:
        self.encoder, self.texts_of = encoder, texts_of
        self.location, self.transform, self.image_size = encoder.location, encoder.transform, encoder.image_size
        self.num_params = encoder.num_params
        self.corpus = ClassTextCorpus([], 0)
        self.features = self.vectors = torch.empty(0)

    def prepare(self, source: ImageSource, train: Train) -> None:
        self.corpus, self.texts = self.texts_of(train() or source)
        self.corpus.require_every_class(source.class_names)
        self.features = self.encoder.text_features(self.corpus.texts)
        self.vectors = class_vectors(self.features, self.corpus.labels, self.corpus.num_classes)

    def scores(self, source: ImageSource, transform: Transform) -> Scores:
        images = self.encoder.image_features(source, transform)
        return {PREDICTOR: text_logits(images, self.vectors, self.encoder.scale, self.encoder.bias)}

    def sentences(self, source: ImageSource, classes: Sequence[int], count: int = 3) -> list[Sentences]:
        """Weights are the softmax of τ cos(image, sentence) over the sentences of the class."""
        images = normalize(self.encoder.image_features(source), dim=-1)
        return [self._closest(image, label, count) for image, label in zip(images, classes, strict=True)]

    def _closest(self, image: Tensor, label: int, count: int) -> Sentences:
        begin, end = self.corpus.offsets[label : label + 2]
        cosines = normalize(self.features[begin:end], dim=-1) @ image
        weights = (self.encoder.scale * cosines).softmax(0).numpy()
        best = np.argsort(-weights, kind="stable")[:count]
        return tuple((float(weights[index]), self.corpus.texts[begin + index]) for index in best)
