"""What every protocol reads: a split's images as features, and its classes as texts.

Letters: `N` images, `C` classes, `S` sentences, `D` width.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hf_vlr.data.corpus import ClassTextCorpus
from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.evaluation.caching import evaluation_cache
from hf_vlr.evaluation.class_texts import class_texts
from hf_vlr.evaluation.encoders import Encoder
from hf_vlr.evaluation.image_rows import image_rows
from hf_vlr.evaluation.predictions import Predictions
from hf_vlr.evaluation.predictors import Scores, class_vectors
from hf_vlr.evaluation.protocol import NO_SPLIT, stated_of
from hf_vlr.training.options import Recipe
from hf_vlr.training.run_data import labelled, load_split


@dataclass(frozen=True)
class Part:
    """The images of one split: features, float32 `[N, D]`, not normalised, and labels, int64 `[N]`."""

    source: ImageSource
    features: Tensor
    labels: np.ndarray

    def take(self, rows: np.ndarray) -> "Part":
        """The images at `rows`, in that order."""
        return Part(self.source.subset(rows), self.features[rows], self.labels[rows])


@dataclass(frozen=True)
class Inputs:
    """A model and a dataset; splits are opened and encoded when they are asked for."""

    encoder: Encoder
    recipe: Recipe

    @property
    def split(self) -> str:
        """The split that is reported: the first of `eval.splits`; `UserError` without any."""
        if not self.recipe.eval.splits:
            raise UserError(NO_SPLIT)
        return self.recipe.eval.splits[0]

    def source(self, split: str) -> ImageSource:
        """The images of a split that have a class; `UserError` where none has."""
        source = labelled(load_split(self.recipe, split))
        if len(source) == 0:
            raise UserError(f"{source.name}: no image of the split {split} has a class; this protocol needs classes")
        return source

    def part(self, split: str) -> Part:
        """A split and its features."""
        return self.encoded(self.source(split))

    def encoded(self, source: ImageSource) -> Part:
        """A source with its features."""
        return Part(source, self.encoder.image_features(source), source.labels)

    def reference(self) -> ImageSource:
        """Where class names, training counts and captions come from: the training split, or the unseen classes."""
        return self.source("unseen" if self.split == "unseen" else "train")

    def train_counts(self) -> np.ndarray:
        """Training images per class of the reported split, int64 `[C]`; zeros for unseen classes."""
        source = self.reference()
        return source.class_counts() * (source.split == "train")

    def require_trained(self, why: str) -> None:
        """Raise `UserError` where the reported split has other classes than the training images."""
        if self.split == "unseen":
            raise UserError(f"eval.splits=unseen has classes without training images; {why} needs them")

    def require_apart(self, split: str, what: str) -> None:
        """Raise `UserError` where the reported split is also the one that something was fitted or chosen on."""
        if self.split == split:
            raise UserError(f"eval.splits={split} is what {what} on; report another split, e.g. eval.splits=test")

    def corpus(self, texts: str | None = None) -> ClassTextCorpus:
        """The class texts: `texts`, else `data.texts`, else those beside the model, else the dataset's own.

        Raises `UserError` for a model that reads no texts, and for a class without any sentence.
        """
        if not self.encoder.has_texts:
            raise UserError(f"model {self.encoder.location} has no text tower; linear-probe and knn need none")
        source = self.reference()
        corpus, _ = class_texts(self.encoder.location, texts or self.recipe.data.texts, source)
        corpus.require_every_class(source.class_names)
        return corpus

    def texts(self) -> str:
        """Where the sentences of `corpus` come from, in words."""
        return class_texts(self.encoder.location, self.recipe.data.texts, self.reference())[1]

    def class_vectors(self, corpus: ClassTextCorpus) -> Tensor:
        """Unit vectors `[C, D]`: the normalised mean of each class's normalised sentences."""
        return class_vectors(self.encoder.text_features(corpus.texts), corpus.labels, corpus.num_classes)

    def predictions(self, part: Part, scores: Scores, texts: str | None, **stated: object) -> Predictions:
        """Scores of a split as `Predictions`, with what a reader must know."""
        return Predictions(
            scores,
            part.labels,
            self.train_counts(),
            tuple(part.source.class_names),
            self.stated(part.source, texts, **stated),
            image_rows(part.source, evaluation_cache(self.recipe.data).folder),
        )

    def stated(self, source: ImageSource, texts: str | None, **more: object) -> dict[str, object]:
        """What a reader must know before comparing the numbers with others."""
        location = self.encoder.location
        stated = stated_of(location, self.recipe, source.split, self.encoder.image_size)
        return stated | {"model": location, "texts": texts} | more
