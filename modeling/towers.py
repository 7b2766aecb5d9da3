# SPDX-License-Identifier: MIT
"""Towers: builds, pools and measures any vision or text encoder. The only place that knows their kinds.

Letters: `N` images or texts, `L` tokens, `H` height, `W` width, `K` tower width.
"""

import inspect

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoModel
from transformers.configuration_utils import PreTrainedConfig

from .modeling_clip_resnet import CLIPResNetModel
from .modeling_embedding import TextEmbeddingModel

# towers that transformers lacks
OWN_TOWERS = {"clip_resnet": CLIPResNetModel, "text_embedding": TextEmbeddingModel}
# towers that transformers has and AutoModel does not know
NAMED_TOWERS = {
    "siglip_text_model": "SiglipTextModel",
    "metaclip_2_text_model": "MetaClip2TextModel",
    "metaclip_2_vision_model": "MetaClip2VisionModel",
}
# text towers trained on texts padded to all their positions, padding attended to
FULL_LENGTH_TOWERS = ("siglip_text_model",)
# the most tokens a text tower is given when its config names no limit of positions
DEFAULT_TEXT_LENGTH = 512


def build_tower(config: PreTrainedConfig) -> nn.Module:
    """The encoder that `config` describes, with fresh weights (`from_pretrained` of the whole model loads them)."""
    if config.model_type in NAMED_TOWERS:
        return getattr(transformers, NAMED_TOWERS[config.model_type])(config)
    own = OWN_TOWERS.get(config.model_type)
    return AutoModel.from_config(config) if own is None else own(config)


def vision_width(tower: nn.Module) -> int:
    """K, the width of a vision tower's pooled feature; raises `ValueError` for a tower that states none."""
    timm_model = getattr(tower, "timm_model", None)
    if timm_model is not None:
        return getattr(timm_model, "head_hidden_size", None) or timm_model.num_features
    config = tower.config
    if isinstance(getattr(tower, "num_features", None), int):  # Swin, FocalNet
        return tower.num_features
    for name in ("neck_hidden_sizes", "hidden_sizes"):  # MobileViT has both; ResNet, RegNet, ConvNeXt
        if getattr(config, name, None):
            return getattr(config, name)[-1]
    for name in ("hidden_size", "hidden_dim"):  # ViT; EfficientNet
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    raise ValueError(f"cannot tell the feature width of a {config.model_type!r} vision tower")


def text_width(tower: nn.Module, pooling: str = "pooler") -> int:
    """K, the width of a text tower's pooled feature; raises `ValueError` for a tower that states none."""
    if pooling == "pooler" and tower.config.model_type == "siglip_text_model":  # its pooler has a linear head
        return tower.config.projection_size
    for name in ("hidden_size", "d_model", "dim"):
        if isinstance(getattr(tower.config, name, None), int):
            return getattr(tower.config, name)
    raise ValueError(f"cannot tell the feature width of a {tower.config.model_type!r} text tower")


def text_length(config: PreTrainedConfig) -> int:
    """L, the most tokens the text tower has positions for."""
    limit = getattr(config, "max_position_embeddings", None) or DEFAULT_TEXT_LENGTH
    # RoBERTa-like towers count positions from padding_idx + 1
    return limit - 2 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else limit


def encode_image(tower: nn.Module, pixel_values: Tensor, pooling: str) -> Tensor:
    """Pooled image feature [N, K] of `pixel_values` [N, 3, H, W].

    `pooler` takes what the tower pools itself (for a convolutional one its average over positions) and falls back to
    `mean` where it has no pooler.
    """
    outputs = tower(pixel_values.to(tower.dtype))
    pooled = getattr(outputs, "pooler_output", None)
    if pooling == "pooler" and pooled is not None:
        return pooled.flatten(1)
    states = outputs.last_hidden_state
    if states.ndim == 4:  # [N, K, H, W] of a convolutional tower
        states = states.flatten(2).transpose(1, 2)
    return states[:, 0] if pooling == "cls" else states.mean(dim=1)


def encode_text(
    tower: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    pooling: str,
) -> Tensor:
    """Pooled text feature [N, K] of `input_ids` [N, L]; over-long texts are cut to what the tower has positions for.

    A cut keeps the end-of-text token in the last place, because `eot` (and CLIP's `pooler`) reads the state there.
    SigLIP's tower, whose `pooler` reads the last of all positions, gets texts padded to its full length and no mask.
    """
    limit = text_length(tower.config)
    if input_ids.shape[1] > limit:
        input_ids = cut_texts(input_ids, limit, end_token(input_ids, tower.config))
        attention_mask = None if attention_mask is None else attention_mask[:, :limit]
        token_type_ids = None if token_type_ids is None else token_type_ids[:, :limit]
    if tower.config.model_type in FULL_LENGTH_TOWERS:
        input_ids = pad(input_ids, (0, limit - input_ids.shape[1]), value=tower.config.pad_token_id)
        attention_mask = None
    extra = {}
    if token_type_ids is not None and "token_type_ids" in inspect.signature(tower.forward).parameters:
        extra["token_type_ids"] = token_type_ids
    outputs = tower(input_ids=input_ids, attention_mask=attention_mask, **extra)
    if pooling == "pooler":
        pooled = getattr(outputs, "pooler_output", None)
        if pooled is None:
            raise ValueError(f"a {tower.config.model_type!r} text tower has no pooler; use text_pooling cls or mean")
        return pooled
    states = outputs.last_hidden_state
    if pooling == "cls":
        return states[:, 0]
    if pooling == "eot":
        return states[torch.arange(len(states), device=states.device), end_of_text(input_ids, tower.config)]
    if attention_mask is None:
        return states.mean(dim=1)
    weights = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1.0)


def end_token(input_ids: Tensor, config: PreTrainedConfig) -> Tensor | None:
    """Id [N, 1] of the token that ends each text [N, L]; None where the text config names no single `eos_token_id`."""
    eos = getattr(config, "eos_token_id", None)
    if config.model_type == "clip_text_model" and eos == 2:
        # OpenAI's published configs state a wrong id; their pooler takes the highest id of a text, and so it ends here
        return input_ids.amax(dim=1, keepdim=True)
    return torch.full_like(input_ids[:, :1], eos) if isinstance(eos, int) else None


def cut_texts(input_ids: Tensor, limit: int, end: Tensor | None) -> Tensor:
    """The first `limit` tokens of each text [N, L]; a text that loses its token `end` [N, 1] has it as its last."""
    kept = input_ids[:, :limit].clone()
    if end is not None:
        lost = ~(kept == end).any(dim=1) & (input_ids == end).any(dim=1)
        kept[:, -1] = torch.where(lost, end[:, 0], kept[:, -1])
    return kept


def end_of_text(input_ids: Tensor, config: PreTrainedConfig) -> Tensor:
    """Position [N] of the first end-of-text token of each text [N, L]."""
    end = end_token(input_ids, config)
    if end is None:
        raise ValueError(f"text_pooling eot needs one eos_token_id in the config of {config.model_type!r}")
    return (input_ids == end).int().argmax(dim=1)


def set_checkpointing(tower: nn.Module, enable: bool, **options) -> bool:
    """Switch activation checkpointing of one tower; returns whether the tower has any."""
    if not getattr(tower, "supports_gradient_checkpointing", False):
        return False
    tower._set_gradient_checkpointing(enable=enable, **options)
    return True
