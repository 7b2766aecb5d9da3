"""What is exported, as modules of plain tensors: an encoder's images, its texts, and what names classes.

Letters: `B` images, `U` texts, `L` tokens, `S` side of a picture in pixels, `C` classes, `D` width of the space.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hf_vlr.export.folded_head import FoldedLanguageHead, fused_logits
from hf_vlr.modeling import VLLTRForImageClassification


class Graph(nn.Module):
    """A module whose `forward` takes the tensors named `inputs` and returns a tuple of those named `outputs`."""

    inputs: Sequence[str] = ("pixel_values",)
    outputs: Sequence[str]


class RecogniserGraph(Graph):
    """pixel_values [B, 3, S, S] to logits, visual_logits and language_logits [B, C].

    `logits` are fused log-probabilities. A recogniser without anchors has `logits` alone, which are the visual ones.
    """

    def __init__(self, recogniser: VLLTRForImageClassification) -> None:
        super().__init__()
        self.encoder, self.visual = recogniser.vlltr, recogniser.head.visual
        self.fusion_weight = float(recogniser.config.fusion_weight)
        self.language = FoldedLanguageHead(recogniser) if recogniser.config.num_anchors else None
        self.outputs = ("logits", "visual_logits", "language_logits") if self.language else ("logits",)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        features = self.encoder.get_image_features(pixel_values)
        visual = self.visual(features)
        if self.language is None:
            return (visual,)
        language = self.language(features)
        return fused_logits(visual, language, self.fusion_weight), visual, language


class ImageGraph(Graph):
    """pixel_values [B, 3, S, S] to image_features [B, D], not normalised; with class vectors also to logits [B, C].

    encode: images to features, by `model`. vectors: [C, D], one unit vector of each class. logits = scale cos + bias.
    """

    def __init__(
        self,
        model: nn.Module,
        encode: Callable[[Tensor], Tensor],
        vectors: Tensor | None = None,
        scale: float = 1.0,
        bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.encode, self.scale, self.bias = model, encode, scale, bias
        self.register_buffer("vectors", None if vectors is None else vectors.float().T.contiguous())
        self.outputs = ("image_features",) if vectors is None else ("logits", "image_features")

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        features = self.encode(pixel_values)
        if self.vectors is None:
            return (features,)
        return self.scale * (normalize(features, dim=-1) @ self.vectors) + self.bias, features


class TextGraph(Graph):
    """input_ids and attention_mask [U, L], int64, to text_features [U, D], not normalised.

    encode: tokens to features, by `model`. length: the most tokens of a text.
    """

    inputs = ("input_ids", "attention_mask")
    outputs = ("text_features",)

    def __init__(self, model: nn.Module, encode: Callable[..., Tensor], length: int) -> None:
        super().__init__()
        self.model, self.encode, self.length = model, encode, length

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        return (self.encode(input_ids=input_ids, attention_mask=attention_mask),)


@torch.no_grad()
def answers(graph: Graph, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """What a graph says in torch, by the outputs' names."""
    return dict(zip(graph.outputs, graph(*inputs), strict=True))
