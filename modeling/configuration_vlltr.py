# SPDX-License-Identifier: MIT
"""Configuration of VL-LTR: the dual encoder of stage 1 and the recogniser of stage 2 share it."""

from transformers.configuration_utils import strict

from .configuration_unicl import UniCLConfig

VISUAL_HEADS = ("mlp", "linear", "cosine")


@strict
class VLLTRConfig(UniCLConfig):
    """Configuration of `VLLTRModel` and `VLLTRForImageClassification`.

    Args:
        num_anchors: M, anchor sentences kept per class; 0 makes a visual-only recogniser (the baseline).
        fusion_weight: α in [0, 1], the weight of the *visual* branch in the fused probability.
        detach_norm: whether the norm of the attended sentence vector is held constant in the backward pass (the
            variant of the paper's code for iNaturalist); the forward value is the same.
        visual_head: `mlp` (D -> 4D -> C with ReLU), `linear` (D -> C), or `cosine` (`visual_scale` times the cosines
            with C class vectors, as margins need it).
        visual_scale: inverse temperature of the cosine classifier, > 0.
        num_sentence_bytes: size of the UTF-8 buffer that holds the anchor sentences.
        anchor_selection: where the anchors came from (split, images per class, text sources and their licenses).

    The number of classes C is `num_labels`, at least 2; the class names are `id2label`.
    """

    model_type = "vlltr"

    num_anchors: int = 64
    fusion_weight: int | float = 0.2
    detach_norm: bool = False
    visual_head: str = "mlp"
    visual_scale: int | float = 30.0
    num_sentence_bytes: int = 0
    anchor_selection: dict | None = None

    def validate_architecture(self) -> None:
        """Checks across fields; called by the strict dataclass."""
        super().validate_architecture()
        if self.visual_head not in VISUAL_HEADS:
            raise ValueError(f"visual_head {self.visual_head!r} is none of {', '.join(VISUAL_HEADS)}")
        if self.visual_scale <= 0.0:
            raise ValueError(f"visual_scale must be above 0, not {self.visual_scale}")
        if not 0.0 <= self.fusion_weight <= 1.0:
            raise ValueError(f"fusion_weight must lie in [0, 1], not {self.fusion_weight}")
        if self.num_anchors < 0 or self.num_sentence_bytes < 0:
            raise ValueError("num_anchors and num_sentence_bytes must not be negative")
        if self.num_anchors and not self.has_text_model and self.anchor_selection is None:
            # a converted checkpoint has anchors but no text tower; a fresh one would have no way to make them
            self.anchor_selection = {"source": "unknown"}


__all__ = ["VLLTRConfig"]
