# SPDX-License-Identifier: MIT
"""Models that a stranger can load from the Hub: configs, towers, the exact maths. Flat, and free of training code."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "UniCLConfig": "configuration_unicl",
    "VLLTRConfig": "configuration_vlltr",
    "UniCLModel": "modeling_unicl",
    "UniCLOutput": "modeling_unicl",
    "VLLTRModel": "modeling_vlltr",
    "VLLTRForImageClassification": "modeling_vlltr",
    "VLLTRClassifierOutput": "modeling_vlltr",
    "image_text_label_loss": "contrastive",
    "distillation_loss": "contrastive",
    "clip_loss": "contrastive",
    "language_guided_logits": "recognition",
    "fuse_logits": "recognition",
}

__all__ = [*sorted(_EXPORTS), "register_auto_classes"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__


def register_auto_classes() -> None:
    """Make transformers' Auto classes know `unicl` and `vlltr`. Calling it again changes nothing."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForZeroShotImageClassification,
        AutoProcessor,
        CLIPProcessor,
    )

    from .configuration_unicl import UniCLConfig
    from .configuration_vlltr import VLLTRConfig
    from .modeling_unicl import UniCLModel
    from .modeling_vlltr import VLLTRForImageClassification, VLLTRModel

    for config, model in ((UniCLConfig, UniCLModel), (VLLTRConfig, VLLTRModel)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForZeroShotImageClassification.register(config, model, exist_ok=True)
        AutoProcessor.register(config, CLIPProcessor, exist_ok=True)
    AutoModelForImageClassification.register(VLLTRConfig, VLLTRForImageClassification, exist_ok=True)
