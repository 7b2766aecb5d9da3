"""Image classifiers of transformers and timm as subjects of an evaluation."""

from functools import cached_property

import numpy as np
from transformers import AutoModelForImageClassification, PreTrainedConfig

from hf_vlr.data.source import ImageSource
from hf_vlr.evaluation.caching import evaluation_cache
from hf_vlr.evaluation.class_names import match_classes
from hf_vlr.evaluation.encoders import best_device
from hf_vlr.evaluation.hub_encoders import read_model, read_transform, require_weights
from hf_vlr.evaluation.predictors import Scores
from hf_vlr.evaluation.recognisers import chosen_columns
from hf_vlr.evaluation.subject import Subject, Train
from hf_vlr.features import Tower, Transform, image_states
from hf_vlr.training.options import Recipe


class HubClassifier(Subject):
    """Any `AutoModelForImageClassification`, and which of its outputs are the dataset's classes."""

    task = "image classification"

    def __init__(self, location: str, recipe: Recipe, same_order: bool = False) -> None:
        self.location, self.recipe, self.same_order = location, recipe, same_order
        self.transform, self.image_size = read_transform(location, recipe)
        model, missing = read_model(location, AutoModelForImageClassification.from_pretrained)
        require_weights(location, set(missing))
        self.model = model.to(best_device()).eval()
        self.num_params = sum(parameter.numel() for parameter in model.parameters())
        self.cache = evaluation_cache(recipe.data)
        self.outputs = np.arange(model.config.num_labels)

    @cached_property
    def tower(self) -> Tower:
        return Tower(self.model, lambda pixels: self.model(pixel_values=pixels).logits, "logits")

    def prepare(self, source: ImageSource, train: Train) -> None:
        config = self.model.config
        # timm's configurations may say fewer names than there are outputs
        known = [config.id2label.get(index, f"LABEL_{index}") for index in range(config.num_labels)]
        self.outputs = match_classes(
            known, source.class_names, same_order=self.same_order, model=f"model {self.location}"
        )
        if len(self.outputs) < len(known):
            self.note = f"{len(self.outputs)} of the model's {len(known)}"

    def scores(self, source: ImageSource, transform: Transform) -> Scores:
        logits = image_states(
            self.tower,
            source.images,
            transform,
            batch_size=self.recipe.eval.batch_size,
            workers=self.recipe.data.workers,
            cache=self.cache,
            note=source.split,
        )[0]
        return chosen_columns({"visual": logits.numpy()}, self.outputs)


def is_classifier(config: PreTrainedConfig) -> bool:
    """Whether a checkpoint says that it classifies images."""
    named = any(name.endswith("ForImageClassification") for name in config.architectures or [])
    return named or config.model_type == "timm_wrapper"
