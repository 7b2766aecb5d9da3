"""Patch dropout: in training a vision transformer sees a random part of each image's patches (FLIP, Li et al., 2023).

Letters: `N` images, `P` patches, `K` width of the tower.
"""

from collections.abc import Callable
from dataclasses import dataclass

import timm
from timm.layers import PatchDropout, PatchDropoutWithIndices
from torch import Tensor, nn
from transformers import PreTrainedConfig

from hf_vlr.errors import UserError

# tokens before the patches (class, distillation) in what the module `embeddings` of a tower returns. Not here: towers
# whose attention knows where each patch lies (BEiT, DINOv3, Swin) or which patches there are (SigLIP 2)
PREFIX_TOKENS = {
    "clip_vision_model": 1,
    "metaclip_2_vision_model": 1,
    "siglip_vision_model": 0,
    "vit": 1,
    "deit": 2,
    "dinov2": 1,
    "dinov2_with_registers": 1,
}


@dataclass(frozen=True)
class PatchDropoutHandle:
    """What `apply_patch_dropout` did; `remove` undoes it."""

    remove: Callable[[], None]


def apply_patch_dropout(vision_model: nn.Module, probability: float) -> PatchDropoutHandle:
    """Let a vision transformer in training mode see max(1, ⌊(1 − p)·P⌋ of the P patches of each image.

    A uniform subset per image, drawn on the images' device from torch's global generator: the same seed, the same
    patches. Patches go after their positions were added and before the first block; class, distillation and register
    tokens stay, and the pooled feature keeps its shape [N, K]. In evaluation mode every patch is seen. Weights, their
    names and the configuration stay as they are.

    `vision_model`: a tower of `hf_vlr.modeling.towers.build_tower`; `probability` p in [0, 1). Raises `UserError` for
    a tower without patches, or with patches that its attention could not do without.
    """
    timm_model = getattr(vision_model, "timm_model", None)
    if timm_model is not None:
        return drop_in_timm(timm_model, probability)
    prefix = prefix_tokens(vision_model.config)
    if prefix is None:
        raise no_patches(vision_model.config.model_type, probability)
    # never in evaluation mode itself: the hook asks the tower's own module
    drop = PatchDropout(probability, num_prefix_tokens=prefix)

    def hook(module: nn.Module, _: tuple, embeddings: Tensor) -> Tensor:
        return drop(embeddings) if module.training else embeddings

    return PatchDropoutHandle(vision_model.embeddings.register_forward_hook(hook).remove)


def prefix_tokens(config: PreTrainedConfig) -> int | None:
    """How many tokens of a tower stand before its patches; None for a tower that cannot drop patches."""
    registers = config.num_register_tokens if config.model_type == "dinov2_with_registers" else 0
    prefix = PREFIX_TOKENS.get(config.model_type)
    return None if prefix is None else prefix + registers


def drop_in_timm(model: nn.Module, probability: float) -> PatchDropoutHandle:
    """timm's own patch dropout, switched on in a model that was built without it."""
    if isinstance(model, timm.models.VisionTransformer):
        kind = PatchDropout
    elif isinstance(model, timm.models.Eva):  # rotary positions, which are dropped with their patches
        kind = PatchDropoutWithIndices
    else:
        raise no_patches(type(model).__name__, probability)
    before = model.patch_drop
    model.patch_drop = kind(probability, num_prefix_tokens=model.num_prefix_tokens).train(model.training)

    def remove() -> None:
        model.patch_drop = before

    return PatchDropoutHandle(remove)


def no_patches(kind: str, probability: float) -> UserError:
    """The error of a tower that cannot drop patches."""
    return UserError(
        f"model.patch_dropout={probability:g}: a {kind} vision tower has no patches that can be dropped; set it to 0, "
        "or take a vision transformer (scratch:vit, CLIP, ViT, SigLIP, DINOv2)"
    )
