# SPDX-License-Identifier: MIT
"""Configuration of CLIP's modified ResNet, the one vision tower of the papers that transformers lacks."""

from transformers.configuration_utils import PreTrainedConfig, strict

# one position of the last stage is this many pixels wide
REDUCTION = 32


@strict
class CLIPResNetConfig(PreTrainedConfig):
    """Configuration of `CLIPResNetModel`.

    Args:
        layers: blocks in each of the four stages; (3, 4, 6, 3) is RN50.
        width: channels after the stem; 64 is RN50's. The last stage has K = 32 · width.
        num_attention_heads: heads of the attention pooling; CLIP's rule is K / 64.
        image_size: side of the square that the pooling has positions for, in pixels, a multiple of 32.
    """

    model_type = "clip_resnet"

    layers: list | tuple = (3, 4, 6, 3)
    width: int = 64
    num_attention_heads: int = 32
    image_size: int = 224
    initializer_range: int | float = 0.02

    @property
    def hidden_size(self) -> int:
        return REDUCTION * self.width

    def validate_architecture(self) -> None:
        """Checks across fields; called by the strict dataclass."""
        if len(self.layers) != 4 or min(self.layers) < 1:
            raise ValueError(f"layers must name four stages of at least one block, not {self.layers}")
        if self.width < 2 or self.width % 2:
            raise ValueError(f"width must be even, not {self.width}")
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(f"num_attention_heads must divide {self.hidden_size}, not {self.num_attention_heads}")
        if self.image_size < REDUCTION or self.image_size % REDUCTION:
            raise ValueError(f"image_size must be a multiple of {REDUCTION}, not {self.image_size}")


__all__ = ["CLIPResNetConfig"]
