"""Anything that turns images, and maybe sentences, into vectors of one space: the dual encoders of this package and of
others, and towers without language.

Letters: `N` images, `S` sentences, `D` width of the space.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from hf_vlr.data.batches import Collator
from hf_vlr.data.places import HUB_NAME
from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError, first_line
from hf_vlr.evaluation.caching import evaluation_cache
from hf_vlr.evaluation.predictors import project
from hf_vlr.features import StateCache, Tower, Transform, image_states, sentence_states, text_tower, vision_tower
from hf_vlr.modeling import UniCLModel, VLLTRForImageClassification, VLLTRModel
from hf_vlr.training.options import Recipe
from hf_vlr.training.run_data import transforms
from hf_vlr.training.tower_specs import UNLOADABLE

OWN_TYPES = ("unicl", "vlltr")
NO_HUB_NAME = "a model on the Hub is called ORG/NAME"
Tokenize = Callable[[list[str]], dict[str, Tensor]]


class Encoder(ABC):
    """Vectors of images and sentences from one model, computed once and then found on disk by content.

    location: folder or Hub id. model: with its weights, in evaluation mode. transform: a picture to the pixels that the
    model was made for, of `image_size` a side. scale: inverse temperature τ of its cosines, 1 where it has none;
    bias: what it adds to them (SigLIP), else 0. Logits are `scale * cosine + bias`.
    """

    scale: float = 1.0
    bias: float = 0.0

    def __init__(
        self, location: str, model: PreTrainedModel, transform: Transform, image_size: int, recipe: Recipe
    ) -> None:
        self.location, self.transform, self.image_size = location, transform, image_size
        self.model = model.to(best_device()).eval()
        self.batch_size, self.workers = recipe.eval.batch_size, recipe.data.workers
        self.cache: StateCache = evaluation_cache(recipe.data)

    @property
    def num_params(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def has_texts(self) -> bool:
        """Whether the model reads texts."""
        return False

    def image_features(self, source: ImageSource, transform: Transform | None = None) -> Tensor:
        """Vectors [N, D] of a source's images, float32 on the CPU, not normalised; `transform` in place of its own."""
        states = image_states(
            self.vision,
            source.images,
            transform or self.transform,
            batch_size=self.batch_size,
            workers=self.workers,
            cache=self.cache,
            note=source.split,
        )[0]
        return self.projected(states, "visual_projection")

    def text_features(self, sentences: Sequence[str]) -> Tensor:
        """Vectors [S, D] of sentences, float32 on the CPU, not normalised.

        Raises `UserError` for a model without a text tower, without a tokenizer beside it, and without sentences.
        """
        if not self.has_texts:
            raise UserError(f"model {self.location} has no text tower, so it cannot read texts")
        if not sentences:
            raise UserError("there is no sentence to encode: give at least one")
        states = sentence_states(self.text, sentences, self.tokenize, batch_size=self.batch_size, cache=self.cache)
        return self.projected(states, "text_projection")

    @property
    @abstractmethod
    def vision(self) -> Tower:
        """The part that is run on images, whose results are kept."""

    @property
    def text(self) -> Tower:
        """The part that is run on sentences, whose results are kept."""
        raise NotImplementedError

    @property
    def tokenize(self) -> Tokenize:
        """Sentences to what `text` takes."""
        raise NotImplementedError

    def projected(self, states: Tensor, name: str) -> Tensor:
        """Vectors of the common space from what is kept."""
        return states


class UniCLEncoder(Encoder):
    """A dual encoder of this package, or the one inside a recogniser; it keeps tower states, as trainings do."""

    def __init__(
        self, location: str, model: UniCLModel | VLLTRForImageClassification, processor: Any, recipe: Recipe
    ) -> None:
        transform, _ = transforms(recipe.data, processor)
        super().__init__(location, model, transform, processor.crop_size["height"], recipe)
        self.inner: UniCLModel = getattr(model, "vlltr", model)
        self.max_length = recipe.data.max_text_length
        self.scale = self.inner.logit_scale.exp().item()
        self.bias = 0.0 if self.inner.logit_bias is None else self.inner.logit_bias.item()

    @property
    def has_texts(self) -> bool:
        return self.inner.text_model is not None

    @cached_property
    def vision(self) -> Tower:
        return vision_tower(self.inner)

    @cached_property
    def text(self) -> Tower:
        return text_tower(self.inner)

    @cached_property
    def tokenize(self) -> Tokenize:
        return Collator(read_tokenizer(self.location), self.max_length).tokenize

    def projected(self, states: Tensor, name: str) -> Tensor:
        return project(getattr(self.inner, name), states, self.inner.device)


def open_encoder(location: str, recipe: Recipe) -> Encoder:
    """The encoder in a folder or on the Hub: a dual encoder of this package (stage 1, or the one in a recogniser), one
    of transformers (CLIP, SigLIP and others with `get_image_features` and `get_text_features`), or a vision model.

    A vision model gives its pooled features before any classifier and reads no texts. `recipe` says the batch size
    (`eval.batch_size`), `data.workers`, `data.cache_dir` (see `evaluation_cache`) and, for our own models,
    `data.max_text_length`. Raises `UserError` for what cannot be read.
    """
    config = read_config(location)
    if config.model_type in OWN_TYPES:
        model, processor = read_own(location, config)
        return UniCLEncoder(location, model, processor, recipe)
    from hf_vlr.evaluation.hub_encoders import open_hub_encoder

    return open_hub_encoder(location, config, recipe)


def read_config(location: str) -> PreTrainedConfig:
    """The configuration of a model; raises `UserError` where there is none.

    What is neither a folder nor ORG/NAME is looked for among downloaded models only.
    """
    folder = Path(location).is_dir()
    named = re.fullmatch(HUB_NAME, location) is not None and not location.startswith((".", "~"))
    try:
        return AutoConfig.from_pretrained(location, trust_remote_code=False, local_files_only=not (folder or named))
    except UNLOADABLE as error:
        raise UserError(f"model {location} cannot be read: {_why(error, folder, named)}") from error


def _why(error: BaseException, folder: bool, named: bool) -> str:
    """Why a model cannot be read: a folder that is not there comes before what the Hub says."""
    if folder:
        return first_line(error)
    return f"there is no such folder, and {f'on the Hub: {first_line(error)}' if named else NO_HUB_NAME}"


def read_own(location: str, config: PreTrainedConfig) -> tuple[UniCLModel | VLLTRForImageClassification, Any]:
    """(model, image processor) of this package; raises `UserError` for weights that cannot be loaded."""
    recogniser = "VLLTRForImageClassification" in (config.architectures or [])
    kind = VLLTRForImageClassification if recogniser else {"unicl": UniCLModel, "vlltr": VLLTRModel}[config.model_type]
    try:
        processor = AutoImageProcessor.from_pretrained(location, trust_remote_code=False)
        return kind.from_pretrained(location), processor
    except UNLOADABLE as error:
        raise UserError(f"model {location} cannot be loaded: {first_line(error)}") from error


def read_tokenizer(location: str) -> Any:
    """The tokenizer beside a model; raises `UserError` where there is none."""
    try:
        return AutoTokenizer.from_pretrained(location, trust_remote_code=False)
    except UNLOADABLE as error:
        raise UserError(f"model {location} has no tokenizer beside it, so it cannot read texts") from error


def best_device() -> torch.device:
    """The machine's accelerator, else its CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
