# SPDX-License-Identifier: MIT
"""Language-guided recognition, exact and folded: an image attends to the sentences of every class.

For an image feature x and the M frozen anchor sentences T_c [M, D] of class c, the head of VL-LTR is

    Q = Wq LN_q(x),  K = Wk LN_k(T_c),  a = softmax_m(Q . K_m / sqrt(D)),  G = sum_m a_m T_cm,
    logit_c = scale cos(x, G).

Because the anchors are frozen, neither K nor G has to exist:

* Q . K_m = r_m (p . t_m) + const with p = centred(gain_k * (Wk^T Q)) / sqrt(D) and r_m the reciprocal
  standard deviation of t_m: Wk and the gain act on B queries and not on C M anchors, and the bias of LN_k
  cancels in the softmax. Centring p over D takes the place of centring t_m;
* x . G = sum_m a_m (x . t_m) and ||G||^2 = a^T (T_c T_c^T) a, a quadratic form in the class's Gram matrix.

p and the unit image vector are stacked, so one matrix product a tile of classes reads T once. The backward
pass recomputes each tile: memory is O(B (C + D) + tile) beside the anchors and their Gram matrices.

Source: VL-LTR (Tian et al., ECCV 2022), language-guided recognition.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .backend import kernels_for
from .derivatives import first_derivative_only
from .log_sums import full_precision
from .products import add_weighed_rows, inner_products

# A tile stays in a CPU's cache; an accelerator wants few large ones.
TILE_BYTES_CPU = 4 << 20
TILE_BYTES_ACCELERATOR = 256 << 20

# An attended text vector is divided by at least this length, as in F.normalize.
SMALLEST_NORM = 1e-12


def anchor_gram(anchors: Tensor) -> Tensor:
    """Inner products of a class's anchors: [C, M, D] -> T_c T_c^T [C, M, M], float32 (float64 for float64).

    Depends on frozen data alone, so a caller computes it once and passes it to `language_guided_logits`.
    """
    anchors = anchors.detach()
    with full_precision(anchors):
        dtype = torch.promote_types(anchors.dtype, torch.float32)
        gram = torch.empty(*anchors.shape[:2], anchors.shape[1], dtype=dtype, device=anchors.device)
        for start, stop in _tiles(anchors, 0, dtype, None):
            tile = anchors[start:stop].to(dtype)
            torch.matmul(tile, tile.mT, out=gram[start:stop])
        return gram


def anchor_rstd(anchors: Tensor, eps: float = 1e-5) -> Tensor:
    """1 / sqrt(var_D(t) + eps) of each anchor: [C, M, D] -> [C, M], float32 (float64 for float64).

    Depends on frozen data alone, like `anchor_gram`.
    """
    anchors = anchors.detach()
    dtype = torch.promote_types(anchors.dtype, torch.float32)
    rstd = torch.empty(anchors.shape[:2], dtype=dtype, device=anchors.device)
    for start, stop in _tiles(anchors, 0, dtype, None):
        # On a CPU the statistics of a layer norm come several times faster than a variance.
        rstd[start:stop] = torch.native_layer_norm(anchors[start:stop].to(dtype), anchors.shape[-1:], None, None, eps)[
            2
        ].squeeze(-1)
    return rstd


def language_guided_logits(
    x: Tensor,
    anchors: Tensor,
    anchor_mask: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    norm_query_weight: Tensor,
    norm_query_bias: Tensor,
    norm_key_weight: Tensor,
    norm_key_bias: Tensor,
    logit_scale: Tensor,
    *,
    detach_norm: bool = False,
    gram: Tensor | None = None,
    rstd: Tensor | None = None,
    eps: float = 1e-5,
    chunk_size: int | None = None,
    return_attention: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """scale cos(x, G_c), G_c the text of class c that the image attends to (equations above).

    A class without a real anchor gets the lowest cosine, logit = -scale, and attention 0.

    Args:
        x: [B, D] image features, not normalised.
        anchors: [C, M, D] text features, not normalised, finite where masked. Frozen: they get no gradient.
            In bfloat16 they are multiplied as they are where no gradient is asked for, which rounds each inner product
            to 8 bits, and in float32 otherwise; all after that is float32 in both cases.
        anchor_mask: [C, M] bool, True where there is a real sentence.
        query_weight, key_weight: [D, D] Wq and Wk, applied as ``F.linear``.
        norm_query_weight, norm_query_bias, norm_key_weight, norm_key_bias: [D] LayerNorm gains and biases.
            The gradient of norm_key_bias is zero: the bias shifts all scores of an image alike.
        logit_scale: one number, already exponentiated.
        detach_norm: take ||G|| as a constant in the backward pass (same value, another gradient).
        gram: `anchor_gram(anchors)`, computed here if None.
        rstd: `anchor_rstd(anchors, eps)`, computed here if None.
        eps: of both LayerNorms.
        chunk_size: classes in a tile; by default a tile takes a few MiB (more on an accelerator).
        return_attention: also return the attention a [B, C, M], for inspection: it carries no gradient.

    Returns:
        logits [B, C], and the attention if asked for; float32, or float64 for float64 features.

    Raises:
        ValueError: shapes that do not fit each other.

    Source: VL-LTR, language-guided recognition; ``detach_norm`` as in its iNaturalist models.
    """
    _check_shapes(x, anchors, anchor_mask, chunk_size, query_weight=query_weight, key_weight=key_weight)
    with full_precision(x):
        dtype = torch.promote_types(x.dtype, torch.float32)
        width = x.shape[1]
        x = x.to(dtype)
        normed = F.layer_norm(x, (width,), norm_query_weight.to(dtype), norm_query_bias.to(dtype), eps)
        query = F.linear(normed, query_weight.to(dtype)) @ key_weight.to(dtype) / math.sqrt(width)
        query = query * norm_key_weight.to(dtype)
        query = query - query.mean(-1, keepdim=True)
        gram = anchor_gram(anchors) if gram is None else gram.detach()
        rstd = anchor_rstd(anchors, eps) if rstd is None else rstd.detach()
        real = anchor_mask.any(1, keepdim=True)
        # An empty class takes part as if it were full, so that nothing is undefined, and is overruled.
        bias = torch.zeros_like(rstd, dtype=dtype).masked_fill_(~anchor_mask & real, -torch.inf)
        frozen = (anchors.detach(), rstd.to(dtype), bias, gram.to(dtype), ~real)
        cosines, attention = _AttendedCosine.apply(
            torch.cat([query, F.normalize(x, dim=-1)]),
            norm_key_bias,
            frozen,
            detach_norm,
            chunk_size,
            return_attention,
        )
        logits = logit_scale.to(dtype).reshape(()) * cosines.T
        return (logits, attention.permute(2, 0, 1)) if return_attention else logits


def language_guided_logits_reference(
    x: Tensor,
    anchors: Tensor,
    anchor_mask: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    norm_query_weight: Tensor,
    norm_query_bias: Tensor,
    norm_key_weight: Tensor,
    norm_key_bias: Tensor,
    logit_scale: Tensor,
    *,
    detach_norm: bool = False,
    eps: float = 1e-5,
    return_attention: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`language_guided_logits` by its definition, with K [C, M, D] and G [B, C, D] in memory."""
    width = x.shape[1]
    query = F.linear(F.layer_norm(x, (width,), norm_query_weight, norm_query_bias, eps), query_weight)
    key = F.linear(F.layer_norm(anchors, (width,), norm_key_weight, norm_key_bias, eps), key_weight)
    scores = torch.einsum("bd,cmd->bcm", query, key) / math.sqrt(width)
    empty = ~anchor_mask.any(1)
    scores = scores.masked_fill(~(anchor_mask | empty[:, None]), -torch.inf)
    attention = scores.softmax(-1).masked_fill(empty[:, None], 0.0)
    guided = torch.einsum("bcm,cmd->bcd", attention, anchors)
    norm = guided.norm(dim=-1, keepdim=True).clamp_min(SMALLEST_NORM)
    guided = guided / (norm.detach() if detach_norm else norm)
    cosines = torch.einsum("bd,bcd->bc", F.normalize(x, dim=-1), guided).masked_fill(empty, -1.0)
    logits = logit_scale * cosines
    return (logits, attention.detach()) if return_attention else logits


def fuse_logits(visual_logits: Tensor, language_logits: Tensor, fusion_weight: float) -> Tensor:
    """Logits whose softmax is the mixture of the two predictions.

    logits = logaddexp(log a + log_softmax(visual), log(1 - a) + log_softmax(language)), so that
    softmax(logits) = a softmax(visual) + (1 - a) softmax(language). At a = 1 or 0 it is the one log_softmax.

    Args:
        visual_logits, language_logits: [B, C].
        fusion_weight: a in [0, 1], the share of the visual prediction.

    Returns:
        log-probabilities [B, C], float32 (float64 for float64).

    Raises:
        ValueError: a outside [0, 1], or shapes that differ.

    Source: VL-LTR, inference by the two branches' probabilities.
    """
    if visual_logits.shape != language_logits.shape:
        raise ValueError(f"logits differ in shape: {tuple(visual_logits.shape)} and {tuple(language_logits.shape)}")
    share = float(fusion_weight)
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"fusion_weight must lie in [0, 1], got {share}")
    dtype = torch.promote_types(visual_logits.dtype, language_logits.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    if share == 1.0:
        return visual_logits.log_softmax(-1, dtype=dtype)
    if share == 0.0:
        return language_logits.log_softmax(-1, dtype=dtype)
    return torch.logaddexp(
        visual_logits.log_softmax(-1, dtype=dtype) + math.log(share),
        language_logits.log_softmax(-1, dtype=dtype) + math.log1p(-share),
    )


class _AttendedCosine(torch.autograd.Function):
    """Cosines [C, B] (and attention [C, M, B]) from the stacked queries and unit image vectors [2B, D]."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        stacked: Tensor,
        norm_key_bias: Tensor,
        frozen: tuple[Tensor, ...],
        detach_norm: bool,
        chunk_size: int | None,
        return_attention: bool,
    ) -> tuple[Tensor, Tensor | None]:
        anchors, _, _, _, empty = frozen
        images = len(stacked) // 2
        # Without a gradient to be exact for, bfloat16 anchors are multiplied as they are.
        short = anchors.dtype == torch.bfloat16 and not ctx.needs_input_grad[0]
        factors = stacked.to(anchors.dtype) if short else stacked
        kernels = None if return_attention else kernels_for(stacked)
        ctx.kernels = kernels if kernels is not None and anchors.shape[1] <= kernels.MOST_SENTENCES else None
        attention = stacked.new_empty(*anchors.shape[:2], images) if return_attention else None
        if ctx.kernels is not None:
            cosines = ctx.kernels.attended_cosines(factors, *frozen[:4])
        else:
            cosines = stacked.new_empty(len(anchors), images)
            for start, stop in _tiles(anchors, len(stacked), factors.dtype, chunk_size):
                _, weights, _, dots, squared_norm = _attend(factors, *(t[start:stop] for t in frozen[:4]))
                cosines[start:stop] = dots * squared_norm.rsqrt_()
                if attention is not None:
                    attention[start:stop] = weights
        cosines.masked_fill_(empty, -1.0)
        if attention is not None:
            attention.masked_fill_(empty[:, :, None], 0.0)
            ctx.mark_non_differentiable(attention)
        ctx.save_for_backward(stacked, norm_key_bias, *frozen)
        ctx.detach_norm, ctx.chunk_size = detach_norm, chunk_size
        return cosines, attention

    @staticmethod
    @first_derivative_only
    def backward(
        ctx: FunctionCtx, cosines_gradient: Tensor, _attention_gradient: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        stacked, norm_key_bias, *frozen = ctx.saved_tensors
        anchors, rstd, _, _, empty = frozen
        cosines_gradient = cosines_gradient.masked_fill(empty, 0.0)
        if ctx.kernels is not None:
            stacked_gradient = ctx.kernels.attended_cosines_gradient(
                cosines_gradient, stacked, *frozen[:4], ctx.detach_norm, ctx.chunk_size
            )
            return stacked_gradient, torch.zeros_like(norm_key_bias), None, None, None, None
        stacked_gradient = torch.zeros_like(stacked)
        with full_precision(stacked):
            for start, stop in _tiles(anchors, len(stacked), stacked.dtype, ctx.chunk_size):
                tile = _attend(stacked, *(t[start:stop] for t in frozen[:4]))
                products = _products_gradient(*tile, rstd[start:stop], cosines_gradient[start:stop], ctx.detach_norm)
                rows = anchors[start:stop].to(stacked.dtype).flatten(0, 1)
                add_weighed_rows(stacked_gradient, products.flatten(0, 1), rows)
        return stacked_gradient, torch.zeros_like(norm_key_bias), None, None, None, None


def _attend(
    stacked: Tensor, anchors: Tensor, rstd: Tensor, bias: Tensor, gram: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One tile of c classes, forward.

    Returns the products [c, M, 2B] of the anchors with the stacked vectors, the attention a [c, M, B], G_c a
    [c, M, B], the dot product of image and attended text [c, B] and the latter's squared norm [c, B].
    """
    rows = anchors.to(stacked.dtype).flatten(0, 1)
    products = inner_products(rows, stacked).to(rstd.dtype).unflatten(0, anchors.shape[:2])
    scores, similarities = products.chunk(2, -1)
    scores = torch.addcmul(bias[:, :, None], scores, rstd[:, :, None])
    weights = scores.softmax(1)
    gram_weights = _gram_weights(gram, weights)
    dots = (weights * similarities).sum(1)
    # Rounding can leave a^T G a below the square of the projection on a unit vector, where anchors cancel.
    squared_norm = torch.maximum((weights * gram_weights).sum(1), dots.square())
    squared_norm.clamp_(min=SMALLEST_NORM**2)
    return products, weights, gram_weights, dots, squared_norm


def _products_gradient(
    products: Tensor,
    weights: Tensor,
    gram_weights: Tensor,
    dots: Tensor,
    squared_norm: Tensor,
    rstd: Tensor,
    gradient: Tensor,
    detach_norm: bool,
) -> Tensor:
    """Gradient of one tile with respect to its products [c, M, 2B], which it overwrites."""
    dots_gradient = gradient * squared_norm.rsqrt()
    scores, similarities = products.chunk(2, -1)
    weights_gradient = similarities * dots_gradient[:, None]
    torch.mul(weights, dots_gradient[:, None], out=similarities)
    if detach_norm:
        weights_gradient.sub_((dots * dots_gradient)[:, None])
    else:
        # A cosine does not change with the length of a, so this gradient has mean zero under a already.
        weights_gradient.addcmul_(gram_weights, -(dots_gradient * dots / squared_norm)[:, None])
    weights_gradient.mul_(weights)
    torch.mul(weights_gradient, rstd[:, :, None], out=scores)
    return products


def _gram_weights(gram: Tensor, weights: Tensor) -> Tensor:
    """G_c a [c, M, B] of inner products [c, M, M] and attention [c, M, B]."""
    if weights.shape[2] != 1 or gram.device.type != "cpu":
        return gram @ weights
    # Of one image this only reads the inner products: a weighed sum of rows does it at the speed of memory.
    rows = torch.arange(weights.numel()).view(weights.shape[:2])
    sums = F.embedding_bag(rows, gram.flatten(0, 1), mode="sum", per_sample_weights=weights.view(rows.shape))
    return sums[:, :, None]


def _tiles(anchors: Tensor, vectors: int, dtype: torch.dtype, chunk_size: int | None) -> Iterator[tuple[int, int]]:
    """Ranges of classes whose products with that many vectors (and whose cast anchors) fit a tile."""
    classes, sentences, width = anchors.shape
    if chunk_size is None:
        budget = TILE_BYTES_CPU if anchors.device.type == "cpu" else TILE_BYTES_ACCELERATOR
        numbers = vectors + (width if anchors.dtype != dtype or vectors == 0 else 0)
        chunk_size = max(1, budget // (sentences * numbers * dtype.itemsize))
    for start in range(0, classes, chunk_size):
        yield start, min(start + chunk_size, classes)


def _check_shapes(x: Tensor, anchors: Tensor, anchor_mask: Tensor, chunk_size: int | None, **square: Tensor) -> None:
    if x.ndim != 2 or anchors.ndim != 3 or x.shape[1] != anchors.shape[2] or 0 in anchors.shape:
        raise ValueError(f"x must be [B, D] and anchors [C, M, D], got {tuple(x.shape)} and {tuple(anchors.shape)}")
    if anchor_mask.shape != anchors.shape[:2] or anchor_mask.dtype != torch.bool:
        raise ValueError(
            f"anchor_mask must be bool {tuple(anchors.shape[:2])}, got {anchor_mask.dtype} {tuple(anchor_mask.shape)}"
        )
    for name, weight in square.items():
        if tuple(weight.shape) != (x.shape[1], x.shape[1]):
            raise ValueError(f"{name} must be [{x.shape[1]}, {x.shape[1]}], got {tuple(weight.shape)}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
