"""The recognition head with everything that does not depend on the image multiplied out beforehand.

With the notation of `hf_vlr.modeling.recognition`: x̃ = (x − mean x) / std x is the image feature under LN_q without its
gain g_q and bias b_q. Then p = A x̃ + b with

    A = P diag(g_k) Wkᵀ Wq diag(g_q) / sqrt(D),   b = P diag(g_k) Wkᵀ Wq b_q / sqrt(D),   P = I − 1/D 1 1ᵀ,

and scores and cosines need no more than the anchors T [D, C M], their reciprocal deviations r [C, M] and their inner
products T_c T_cᵀ [C, M, M]. Keys [C, M, D] and attended texts [B, C, D] are never formed.

Letters: `B` images, `C` classes, `M` anchors of a class, `D` projection width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, normalize

from hf_vlr.modeling import VLLTRForImageClassification
from hf_vlr.modeling.recognition import SMALLEST_NORM

# masks a padded anchor: its weight is exactly 0 in float32, and no infinity has to be quantised
MASKED = -1e4


class FoldedLanguageHead(nn.Module):
    """Language logits [B, C] of raw image features [B, D], in operations that every ONNX runtime has.

    The anchors of `recogniser` must be set. Its constants are in float32; what is folded is multiplied in float64.
    """

    def __init__(self, recogniser: VLLTRForImageClassification) -> None:
        super().__init__()
        head = recogniser.head
        classes, self.sentences, width = head.anchors.shape
        query, key = head.query.weight.double(), head.key.weight.double()
        folded = head.norm_key.weight.double()[:, None] * (key.T @ query) / math.sqrt(width)
        folded = folded - folded.mean(0, keepdim=True)
        gram, rstd = head.constants()
        real = head.anchor_mask.any(1)
        self.eps = head.norm_query.eps
        self.scale = recogniser.vlltr.logit_scale.exp().item()
        self.register_buffer("weight", (folded * head.norm_query.weight.double()).float())
        self.register_buffer("bias", (folded @ head.norm_query.bias.double()).float())
        self.register_buffer("anchors", head.anchors.float().flatten(0, 1).T.contiguous())
        self.register_buffer("rstd", rstd.float())
        # an empty class takes part as if it were full, and is overruled
        self.register_buffer("masked", torch.where(head.anchor_mask | ~real[:, None], 0.0, MASKED))
        self.register_buffer("gram", gram.float())
        self.register_buffer("empty", ~real)
        self.has_empty = bool((~real).any())
        self.classes = classes

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, C]."""
        query = linear(layer_norm(features, features.shape[-1:], eps=self.eps), self.weight, self.bias)
        # one product reads the anchors once
        products = torch.cat([query, normalize(features, dim=-1)]) @ self.anchors
        # cut by a view: a number of chunks would fix the number of images in a traced graph
        scores, similarities = products.view(2, -1, self.classes, self.sentences).unbind(0)
        weights = (scores * self.rstd + self.masked).softmax(-1)
        dots = (weights * similarities).sum(-1)
        attended = (weights.transpose(0, 1) @ self.gram).transpose(0, 1)
        # rounding can leave aᵀ G a below the square of the projection on a unit vector
        squared_norm = torch.maximum((weights * attended).sum(-1), dots * dots).clamp_min(SMALLEST_NORM**2)
        cosines = dots / squared_norm.sqrt()
        if self.has_empty:
            cosines = torch.where(self.empty, -1.0, cosines)
        return self.scale * cosines


def fused_logits(visual_logits: Tensor, language_logits: Tensor, fusion_weight: float) -> Tensor:
    """`hf_vlr.modeling.recognition.fuse_logits` [B, C] without infinities, however unlikely a class is.

    log(e^u + e^v) = max + log(1 + e^(min − max)); a runtime's own logaddexp may leave float32's range on the way.
    """
    visual, language = visual_logits.log_softmax(-1), language_logits.log_softmax(-1)
    if fusion_weight in (0.0, 1.0):
        return visual if fusion_weight else language
    visual, language = visual + math.log(fusion_weight), language + math.log1p(-fusion_weight)
    high, low = torch.maximum(visual, language), torch.minimum(visual, language)
    return high + torch.log(1.0 + torch.exp(low - high))
