"""`hf-vlr eval`: a checkpoint measured on a dataset, by shot groups."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

from hf_vlr.data.batches import Collator
from hf_vlr.data.corpus import ClassTextCorpus, build_corpus
from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.evaluation.predictors import Scores, class_vectors, image_vectors, project, recognise, zero_shot
from hf_vlr.features import Transform, text_states
from hf_vlr.modeling import UniCLModel, VLLTRForImageClassification, VLLTRModel
from hf_vlr.training.contrast import unique_names
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import load_recipe, override_recipe
from hf_vlr.training.run_data import labelled, load_split, transforms
from hf_vlr.training.run_folder import RECIPE_FILE, TEXTS_FILE, Measurement, write_measurement
from hf_vlr.training.tower_specs import UNLOADABLE, first_line


def evaluate_checkpoint(model_dir: str, overrides: list[str] | None = None, out: str | None = None) -> list[dict]:
    """Measure a checkpoint on the splits of `eval.splits`; returns one metrics document per split.

    A recogniser is measured by its branches and their fusion; a dual encoder by zero-shot classification against the
    mean of each class's texts (`data.texts`, else the `texts.jsonl` beside the model, else the dataset's own). The
    settings of the run that made the folder hold unless `overrides` say otherwise. Documents go to `eval/SPLIT` in
    `out`, or in the model's folder. Raises `UserError` for a model that is neither, and for other classes
    than the model knows.
    """
    recipe = recipe_of(model_dir, overrides or [])
    checkpoint = Checkpoint.read(model_dir, recipe)
    target = out or (model_dir if Path(model_dir).is_dir() else None)
    documents = []
    for split in recipe.eval.splits:
        source = labelled(load_split(recipe, split))
        counts, scores = checkpoint.measure(source)
        measured = Measurement(source, scores, counts, checkpoint.image_size, {})
        documents.append(write_measurement(recipe, measured, Path(target) / "eval" / split if target else None))
    return documents


def recipe_of(model_dir: str, overrides: list[str]) -> Recipe:
    """The recipe the folder was made by, with `overrides`; a bare one for a model from elsewhere."""
    path = Path(model_dir) / RECIPE_FILE
    return load_recipe(path, overrides) if path.is_file() else override_recipe(Recipe(task="recognition"), overrides)


@dataclass(frozen=True)
class Checkpoint:
    """A model to be measured, with its transform."""

    location: str
    model: UniCLModel | VLLTRForImageClassification
    recipe: Recipe
    transform: Transform
    image_size: int

    @classmethod
    def read(cls, location: str, recipe: Recipe) -> "Checkpoint":
        """Load a recogniser or a dual encoder; raises `UserError` for anything else."""
        try:
            config = AutoConfig.from_pretrained(location, trust_remote_code=False)
        except UNLOADABLE as error:
            raise UserError(f"model {location} cannot be read: {first_line(error)}") from error
        classes = {"unicl": UniCLModel, "vlltr": VLLTRModel}
        if config.model_type not in classes:
            raise UserError(f"model {location} is a {config.model_type!r} checkpoint; eval reads unicl and vlltr")
        recogniser = "VLLTRForImageClassification" in (config.architectures or [])
        model_class = VLLTRForImageClassification if recogniser else classes[config.model_type]
        try:
            processor = AutoImageProcessor.from_pretrained(location, trust_remote_code=False)
            model = model_class.from_pretrained(location)
        except UNLOADABLE as error:
            raise UserError(f"model {location} cannot be loaded: {first_line(error)}") from error
        transform, _ = transforms(recipe.data, processor)
        return cls(location, model, recipe, transform, processor.crop_size["height"])

    def measure(self, source: ImageSource) -> tuple[np.ndarray, Scores]:
        """Training images per class [C], and each predictor's log-probabilities of the source."""
        batch_size, workers = self.recipe.eval.batch_size, self.recipe.data.workers
        if isinstance(self.model, VLLTRForImageClassification):
            known = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
            if unique_names(source.class_names) != known:
                raise UserError(
                    f"{source.name} has other classes ({source.num_classes}) than the model {self.location} "
                    f"({len(known)}), or in another order"
                )
            encoder = self.model.vlltr
        else:
            encoder = self.model
        features = image_vectors(encoder, source, self.transform, batch_size=batch_size, workers=workers)
        if encoder is not self.model:
            return self.model.head.class_counts.numpy(), recognise(self.model, features)
        train = None if source.split == "unseen" else load_split(self.recipe, "train")
        counts = train.class_counts() if train else np.zeros(source.num_classes, dtype=np.int64)
        vectors = self.text_vectors(self.corpus(train or source))
        # not `language`, which in a training run is the mean of the anchors chosen on training images
        scores = zero_shot(features, vectors, encoder.logit_scale.exp().item())
        return counts, {"all texts": scores["language"]}

    def corpus(self, source: ImageSource) -> ClassTextCorpus:
        """`data.texts`, else the texts beside the model where they fit the classes, else the dataset's own."""
        beside = Path(self.location) / TEXTS_FILE
        if self.recipe.data.texts is None and beside.is_file() and source.split == "train":
            return ClassTextCorpus.from_file(beside, source.class_names)
        return build_corpus(self.recipe.data.texts, source)

    def text_vectors(self, corpus: ClassTextCorpus) -> Tensor:
        """Unit vectors [C, D]: the mean of each class's sentences."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.location, trust_remote_code=False)
        except UNLOADABLE as error:
            raise UserError(f"model {self.location} has no tokenizer beside it, so it cannot read texts") from error
        tokenize = Collator(tokenizer, self.recipe.data.max_text_length).tokenize
        states = text_states(self.model, corpus.texts, tokenize)
        features = project(self.model.text_projection, states, self.model.device)
        return class_vectors(features, corpus.labels, corpus.num_classes)
