"""From a recipe's model options to a dual encoder with its processor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedConfig,
)
from transformers.utils.logging import get_logger

from hf_vlr.errors import UserError, first_line
from hf_vlr.modeling import UniCLConfig, UniCLModel, VLLTRConfig, VLLTRModel
from hf_vlr.randomness import seed_for
from hf_vlr.training.options import Recipe
from hf_vlr.training.tower_specs import UNLOADABLE, resolve_text, resolve_vision

logger = get_logger(__name__)
DEFAULT_IMAGE_SIZE = 224
# vision towers whose learned positions fit one image size
FIXED_SIZE = ("clip_vision_model", "clip_resnet", "siglip_vision_model", "vit", "deit", "beit")
MODELS: dict[str, tuple[type[UniCLConfig], type[UniCLModel]]] = {
    "unicl": (UniCLConfig, UniCLModel),
    "vlltr": (VLLTRConfig, VLLTRModel),
}


@dataclass(frozen=True)
class DualEncoder:
    """A dual encoder and the stock `CLIPProcessor` that belongs to it (its image processor alone without text)."""

    model: UniCLModel
    processor: CLIPProcessor | CLIPImageProcessor

    @property
    def image_processor(self) -> CLIPImageProcessor:
        return getattr(self.processor, "image_processor", self.processor)

    @property
    def image_size(self) -> int:
        return self.image_processor.crop_size["height"]


def build_dual_encoder(recipe: Recipe, model_type: str, sentences: Sequence[str]) -> DualEncoder:
    """The model a run starts from: `model.init` if given, else composed from the two tower specs.

    `model_type` is "unicl" or "vlltr"; `sentences` teach a fresh text tower its vocabulary. Fresh weights depend on
    `recipe.seed` alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(recipe.seed, 0, 0, "init"))
        if recipe.model.init:
            encoder = load_dual_encoder(recipe.model.init, model_type)
            adapt_processor(recipe, encoder)
        else:
            encoder = compose_dual_encoder(recipe, model_type, sentences)
    if recipe.model.language and encoder.model.text_model is None:
        raise UserError(f"model.init={recipe.model.init} has no text tower; set model.language=false")
    if recipe.model.gradient_checkpointing:
        try:
            encoder.model.gradient_checkpointing_enable()
        except ValueError as error:
            raise UserError(f"model.gradient_checkpointing: {first_line(error)}; set it to false") from error
    return encoder


def load_dual_encoder(location: str, model_type: str) -> DualEncoder:
    """A `unicl`, `vlltr` or `clip` checkpoint (folder or Hub id) as a model of `model_type`, with its processor."""
    config_class, model_class = MODELS[model_type]
    try:
        found = AutoConfig.from_pretrained(location, trust_remote_code=False)
    except UNLOADABLE as error:
        raise UserError(f"model.init={location}: no checkpoint there ({first_line(error)})") from error
    if found.model_type not in ("unicl", "vlltr", "clip"):
        raise UserError(
            f"model.init={location} is a {found.model_type!r} checkpoint; it must be unicl, vlltr or clip "
            "(for one tower of another model use vision= or text=)"
        )
    try:
        if found.model_type == "clip":
            source = CLIPModel.from_pretrained(location)
            config = UniCLConfig.from_clip(source.config)
        else:
            # of a stage-2 checkpoint its dual encoder
            source = MODELS[found.model_type][1].from_pretrained(location)
            config = source.config
        read = AutoProcessor if getattr(config, "has_text_model", True) else AutoImageProcessor
        processor = read.from_pretrained(location, trust_remote_code=False)
    except UNLOADABLE as error:
        raise UserError(f"model.init={location} cannot be loaded: {first_line(error)}") from error
    config = config_class.from_dual_encoder(config)
    model = model_class(config)
    model.load_state_dict(source.state_dict())
    return DualEncoder(model, processor)


def adapt_processor(recipe: Recipe, encoder: DualEncoder) -> None:
    """Let `data.image_size`, `image_mean` and `image_std` hold for a loaded model too, where they are given."""
    data, processor = recipe.data, encoder.image_processor
    if data.image_size and data.image_size != encoder.image_size:
        check_image_size(data.image_size, encoder.model.config.vision_config, f"model.init={recipe.model.init}")
        square = {"height": data.image_size, "width": data.image_size}
        squashes = not processor.size.get("shortest_edge")
        processor.size = square if squashes else {"shortest_edge": data.image_size}
        processor.crop_size = square
    if data.image_mean:
        processor.image_mean = list(data.image_mean)
    if data.image_std:
        processor.image_std = list(data.image_std)


def check_image_size(size: int, config: PreTrainedConfig, where: str) -> None:
    """Raise `UserError` for a size that a tower with one learned position per patch cannot see."""
    made_for = getattr(config, "image_size", None)
    if config.model_type in FIXED_SIZE and made_for not in (None, size):
        raise UserError(f"data.image_size={size} does not fit {where}, which sees {made_for}; leave it out")


def compose_dual_encoder(recipe: Recipe, model_type: str, sentences: Sequence[str]) -> DualEncoder:
    """A dual encoder from `model.vision` and `model.text`, with fresh projections."""
    options, data = recipe.model, recipe.data
    for side, spec in (("vision", options.vision), ("text", options.text)):
        if spec.startswith("scratch:") and f"{side}_model" in options.freeze:
            logger.warning("model.%s=%s is untrained and stays so: %s_model is in model.freeze", side, spec, side)
    vision = resolve_vision(options.vision, options.vision_weights, data.image_size or DEFAULT_IMAGE_SIZE)
    size = data.image_size or vision.image_size or DEFAULT_IMAGE_SIZE
    check_image_size(size, vision.config, f"model.vision={options.vision}")
    text = resolve_text(options.text, sentences, data.max_text_length) if options.language else None
    config_class, model_class = MODELS[model_type]
    config = config_class(
        vision_config=vision.config.to_dict(),
        text_config=text.config.to_dict() if text else None,
        has_text_model=text is not None,
        projection_dim=options.projection_dim,
        logit_scale_init_value=options.logit_scale_init,
        text_pooling=options.text_pooling or (text.pooling if text else "pooler"),
    )
    model = model_class(config)
    load_tower(model.vision_model, vision.weights)
    if text:
        load_tower(model.text_model, text.weights)
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=list(data.image_mean or vision.mean),
        image_std=list(data.image_std or vision.std),
    )
    if text is None:
        return DualEncoder(model, image_processor)
    return DualEncoder(model, CLIPProcessor(image_processor=image_processor, tokenizer=text.tokenizer))


def load_tower(tower: nn.Module, weights: dict | None) -> None:
    """Copy pretrained weights into a tower; batch counters may be missing, nothing else."""
    if weights is None:
        return
    missing, unexpected = tower.load_state_dict(dict(weights), strict=False)
    missing = [key for key in missing if "num_batches_tracked" not in key]
    if missing or unexpected:
        raise UserError(f"pretrained tower does not fit: {[*missing, *unexpected][0]} is missing or unexpected")
