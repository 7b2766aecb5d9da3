"""Encoders of transformers: dual encoders such as CLIP and SigLIP, and vision models."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_MAPPING, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from hf_vlr.errors import UserError, first_line
from hf_vlr.evaluation.encoders import Encoder, Tokenize, read_tokenizer
from hf_vlr.evaluation.preprocessing import transform_of
from hf_vlr.features import Tower, Transform
from hf_vlr.modeling.towers import encode_image, text_length
from hf_vlr.training.options import Recipe
from hf_vlr.training.tower_specs import UNLOADABLE

# trained on texts padded to their full length and without a mask
FULL_LENGTH = ("siglip", "siglip2")


class HubDualEncoder(Encoder):
    """A model of transformers with `get_image_features` and `get_text_features`."""

    def __init__(self, location: str, model: PreTrainedModel, transform: Transform, size: int, recipe: Recipe) -> None:
        super().__init__(location, model, transform, size, recipe)
        self.max_length = recipe.data.max_text_length
        self.scale, self.bias = scale_and_bias(model)

    @property
    def has_texts(self) -> bool:
        return True

    @cached_property
    def vision(self) -> Tower:
        return Tower(self.model, lambda pixels: self._vector(self.model.get_image_features(pixels)), "image features")

    @cached_property
    def text(self) -> Tower:
        return Tower(self.model, lambda **texts: self._vector(self.model.get_text_features(**texts)), "text features")

    @cached_property
    def tokenize(self) -> Tokenize:
        tokenizer = read_tokenizer(self.location)
        config = self.model.config
        limit = text_length(config.text_config) if hasattr(config, "text_config") else self.max_length
        full = config.model_type in FULL_LENGTH

        def tokenize(texts: list[str]) -> dict[str, Tensor]:
            length = limit if full else min(limit, self.max_length)
            padding = "max_length" if full else True
            batch = tokenizer(texts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
            return {"input_ids": batch["input_ids"]} if full else dict(batch)

        return tokenize

    def _vector(self, output: Any) -> Tensor:
        vectors = output if isinstance(output, Tensor) else output.pooler_output
        if vectors.ndim != 2:
            raise UserError(f"model {self.location} gives no single vector of an image or a text; eval cannot use it")
        return vectors


class HubVision(Encoder):
    """A vision model of transformers or timm: its pooled features, without a classifier."""

    def __init__(
        self,
        location: str,
        model: PreTrainedModel,
        transform: Transform,
        size: int,
        recipe: Recipe,
        pooling: str,
    ) -> None:
        super().__init__(location, model, transform, size, recipe)
        self.pooling = pooling

    @cached_property
    def vision(self) -> Tower:
        return Tower(
            self.model, lambda pixels: encode_image(self.model, pixels, self.pooling), f"features {self.pooling}"
        )


def open_hub_encoder(location: str, config: PreTrainedConfig, recipe: Recipe) -> Encoder:
    """See `encoders.open_encoder`; raises `UserError` for a model that encodes no images."""
    kind = MODEL_MAPPING.get(type(config), None)
    if not is_dual(kind) and getattr(kind, "main_input_name", None) != "pixel_values":
        raise UserError(f"model {location} ({config.model_type}) encodes no images; eval cannot use it")
    transform, size = read_transform(location, recipe)
    model, missing = read_model(location, AutoModel.from_pretrained)
    # a classifier's checkpoint has no weights of the pooler that its bare model would use
    untrained = [name for name in missing if name.startswith("pooler.")]
    require_weights(location, set(missing) - set(untrained))
    if is_dual(type(model)):
        return HubDualEncoder(location, model, transform, size, recipe)
    if untrained:
        # random, and so another model at every loading
        model.pooler = None
    return HubVision(location, model, transform, size, recipe, "cls" if untrained else "pooler")


def is_dual(kind: type | None) -> bool:
    """Whether a class of models encodes images and texts into one space."""
    return hasattr(kind, "get_image_features") and hasattr(kind, "get_text_features")


def read_model(location: str, load: Callable[..., Any]) -> tuple[PreTrainedModel, list[str]]:
    """(model in float32, names of its weights that the checkpoint lacks); raises `UserError` as it cannot be loaded."""
    loud = logging.get_verbosity()
    # weights that are missing are the caller's to judge, and those of a head that is not used are no news
    logging.set_verbosity_error()
    try:
        model, info = load(location, trust_remote_code=False, dtype=torch.float32, output_loading_info=True)
    except (*UNLOADABLE, ImportError) as error:
        raise UserError(f"model {location} cannot be loaded: {first_line(error)}") from error
    finally:
        logging.set_verbosity(loud)
    return model, sorted(info["missing_keys"])


def require_weights(location: str, missing: set[str]) -> None:
    """Raise `UserError` where some weights would be random."""
    if missing:
        raise UserError(
            f"model {location} lacks {len(missing)} weights, such as {min(missing)}: it would predict at random"
        )


def read_transform(location: str, recipe: Recipe) -> tuple[Transform, int]:
    """(transform, side of the picture) of the image processor beside a model."""
    try:
        processor = AutoImageProcessor.from_pretrained(location, trust_remote_code=False)
    except (*UNLOADABLE, ImportError) as error:
        raise UserError(f"model {location} has no image processor beside it: {first_line(error)}") from error
    transform, size = transform_of(processor)
    if recipe.data.image_size not in (None, size):
        raise UserError(f"data.image_size={recipe.data.image_size}: model {location} sees {size} px; leave it out")
    return transform, size


def scale_and_bias(model: PreTrainedModel) -> tuple[float, float]:
    """(τ, b) of logits τ cos + b; (1, 0) for a model without."""
    scale, bias = getattr(model, "logit_scale", None), getattr(model, "logit_bias", None)
    temperature = getattr(model, "temperature", None)
    if isinstance(scale, Tensor):
        factor = scale.exp().item()
    else:
        # ALIGN's
        factor = 1 / temperature.item() if isinstance(temperature, Tensor) else 1.0
    return factor, bias.item() if isinstance(bias, Tensor) else 0.0
