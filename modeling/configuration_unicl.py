# SPDX-License-Identifier: MIT
"""Configuration of the dual encoder: two tower configs, how they are pooled and projected."""

from typing import Any

from transformers import CONFIG_MAPPING
from transformers.configuration_utils import PreTrainedConfig, strict

from .configuration_clip_resnet import CLIPResNetConfig
from .configuration_embedding import TextEmbeddingConfig

TEXT_POOLINGS = ("pooler", "eot", "cls", "mean")
VISION_POOLINGS = ("pooler", "cls", "mean")
# towers that transformers lacks
OWN_CONFIGS = {"clip_resnet": CLIPResNetConfig, "text_embedding": TextEmbeddingConfig}


def tower_config(config: Any, default_type: str) -> PreTrainedConfig:
    """A tower's config object, from a config, a dictionary (its `model_type` names the class) or None (the default).

    Raises `ValueError` when `model_type` names no architecture of the installed transformers.
    """
    if isinstance(config, PreTrainedConfig):
        return config
    config = dict(config or {})
    # where a tower once came from: often a path of the machine that trained, and of no use to whoever loads it
    config.pop("_name_or_path", None)
    model_type = config.get("model_type", default_type)
    if model_type in OWN_CONFIGS:
        return OWN_CONFIGS[model_type].from_dict(config)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"tower model_type {model_type!r} is not known to the installed transformers")
    if model_type == "timm_wrapper":
        # its files keep the labels under other names, which from_dict reads, and cannot do without
        config.setdefault("num_classes", 2)
    return CONFIG_MAPPING[model_type].from_dict(config)


@strict
class UniCLConfig(PreTrainedConfig):
    """Configuration of `UniCLModel`, a dual encoder over any vision and any text tower.

    Args:
        text_config, vision_config: the towers' configurations (any `model_type` that `AutoModel` builds; CLIP's by
            default, `timm_wrapper` for timm's, `clip_resnet` for CLIP's modified ResNet, `text_embedding`
            for a linear text encoder).
        projection_dim: width D of the shared space.
        logit_scale_init_value: initial *log* of the inverse temperature. 2.6592 = ln(1/0.07); the released UniCL
            models start at 1.0.
        logit_bias_init_value: initial bias of the logits, as in SigLIP (-10); None: the model has none. The package's
            losses do not see it, so its parameter is frozen (`requires_grad` is False) until the user says otherwise.
        text_pooling: `pooler` (what the tower itself offers; CLIP's is its end-of-text state), `eot` (the state at the
            first `eos_token_id`), `cls` (first token) or `mean` (over attended tokens).
        vision_pooling: `pooler`, `cls` (first token) or `mean` (over all positions).
        visual_projection_bias: whether the visual projection has a bias (CLIP's ModifiedResNet has one).
        has_text_model: False for a checkpoint that was made without a text tower; calls with text then raise.
    """

    model_type = "unicl"
    sub_configs = {"text_config": PreTrainedConfig, "vision_config": PreTrainedConfig}

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    logit_scale_init_value: int | float = 2.6592
    logit_bias_init_value: int | float | None = None
    initializer_factor: int | float = 1.0
    initializer_range: int | float = 0.02
    text_pooling: str = "pooler"
    vision_pooling: str = "pooler"
    visual_projection_bias: bool = False
    has_text_model: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_config = tower_config(self.vision_config, "clip_vision_model")
        self.text_config = tower_config(self.text_config, "clip_text_model") if self.has_text_model else None
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Checks across fields; called by the strict dataclass."""
        if self.text_pooling not in TEXT_POOLINGS:
            raise ValueError(f"text_pooling {self.text_pooling!r} is none of {', '.join(TEXT_POOLINGS)}")
        if self.vision_pooling not in VISION_POOLINGS:
            raise ValueError(f"vision_pooling {self.vision_pooling!r} is none of {', '.join(VISION_POOLINGS)}")
        if self.projection_dim < 1:
            raise ValueError(f"projection_dim must be positive, not {self.projection_dim}")

    @classmethod
    def from_clip(cls, clip_config: PreTrainedConfig, **overrides: Any) -> "UniCLConfig":
        """This configuration for the weights of a `CLIPModel`, whose attribute names the model shares."""
        shared = {
            "text_config": clip_config.text_config.to_dict(),
            "vision_config": clip_config.vision_config.to_dict(),
            "projection_dim": clip_config.projection_dim,
            "logit_scale_init_value": clip_config.logit_scale_init_value,
        }
        return cls(**{**shared, **overrides})

    @classmethod
    def from_dual_encoder(cls, config: "UniCLConfig", **overrides: Any) -> "UniCLConfig":
        """This configuration around the towers and projections of another `unicl` or `vlltr` one, which it copies."""
        shared = {name: getattr(config, name) for name in UniCLConfig.__annotations__}
        for side in ("text_config", "vision_config"):
            shared[side] = None if shared[side] is None else shared[side].to_dict()
        return cls(**{**shared, **overrides})


__all__ = ["UniCLConfig"]
