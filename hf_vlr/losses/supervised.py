"""Supervised contrast between images, exact and lean: no N x N matrix is kept.

With s_ij = τ u_i · u_j, A(i) all rows but i and P(i) the rows of its class but i, the loss of anchor i is

    log Σ_{a∈A(i)} exp s_ia − 1/|P(i)| Σ_{p∈P(i)} s_ip.

The second term is linear, τ u_i · (c_y(i) − u_i) / (n_y(i) − 1) with c_y the sum and n_y the number of the vectors of a
class. The first passes over tiles of similarities, computed again in the backward pass: O(N D + tile) memory. Where all
rows are anchors, s_ij = s_ji spares a matrix product: 6 N² D floating-point operations, as many as with N x N matrices;
else 8 n N D for n anchors.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.functional import normalize

from hf_vlr.losses.batch import (
    check_batch,
    class_sums,
    place_of_class,
    rows_per_tile,
    unit_vectors,
    wide_dtype,
)
from hf_vlr.modeling.derivatives import first_derivative_only
from hf_vlr.modeling.log_sums import full_precision
from hf_vlr.modeling.products import add_weighed_rows, inner_products


def supervised_contrastive_loss(
    features: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    *,
    views: Tensor | None = None,
    rows: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """SupCon: images of one class are positives of each other, all others of the batch negatives.

    L = 1/|I| Σ_{i∈I} −1/|P(i)| Σ_{p∈P(i)} log [exp s_ip / Σ_{a≠i} exp s_ia], I the rows with a positive, |P(i)| > 0.

    Args:
        features: [N, D] image vectors of the whole batch, not normalised (this function divides by their L2 norm).
            Two views of an image are two rows, in any order.
        labels: [N] integers; a class (>= 0), or -1 for an image without one: positive with its other views alone.
        logit_scale: τ, one positive number, the inverse of the paper's temperature (0.1 there: τ = 10).
        views: [N] integers >= 0, the same for the views of one image; only those of rows with label -1 are read.
            None: a row with label -1 has no positive. It is still a negative of every other row.
        rows: [n] integers in [0, N): the anchors that this process takes, where each takes a part; n may be 0. The
            value is that part of the sum, still over the |I| anchors of the batch: the parts add up to the loss of
            the batch, and so do their gradients. None: all.
        chunk_size: anchors in a tile; by default a tile takes a few MiB (more on an accelerator).

    Returns:
        The loss in nats, a scalar >= 0 up to rounding, 0 where no row has a positive; float32, or float64 for float64
        features. Gradients flow to the features and the scale.

    Raises:
        ValueError: a shape, label, view or row outside the above.

    Source: Khosla et al., Supervised Contrastive Learning (NeurIPS 2020), equation 2 (L_out) as a mean over anchors.
    All labels -1 with two views each is equation 1, NT-Xent of SimCLR (Chen et al., ICML 2020).
    """
    _check(features, labels, logit_scale, views, rows, chunk_size)
    with full_precision(features):
        vectors = unit_vectors(features, wide_dtype(features))
        vectors = vectors * logit_scale.to(vectors.dtype).reshape(()).sqrt()
        place = place_of_class(labels, views)
        sums, counts = class_sums(vectors, place)
        positives = counts.index_select(0, place) - 1.0
        anchors = torch.arange(len(labels), device=labels.device) if rows is None else rows.long()
        selected, own = vectors.index_select(0, anchors), positives.index_select(0, anchors)
        others = (sums.index_select(0, place.index_select(0, anchors)) - selected) / own.clamp(min=1)[:, None]
        chunk_size = rows_per_tile(vectors, vectors, chunk_size)
        spread = _LogSumExpOfOthers.apply(vectors, anchors, rows is None, chunk_size)
        losses = torch.where(own > 0, spread - (selected * others).sum(1), 0.0)
        return losses.sum() / (positives > 0).sum().clamp(min=1)


def supervised_contrastive_loss_reference(
    features: Tensor, labels: Tensor, logit_scale: Tensor, *, views: Tensor | None = None
) -> Tensor:
    """`supervised_contrastive_loss` by its definition, on dense [N, N] matrices."""
    vectors = normalize(features, dim=-1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = (labels[:, None] == labels[None, :]) & (labels[:, None] >= 0)
    if views is not None:
        unlabelled = (labels[:, None] < 0) & (labels[None, :] < 0)
        positive = positive | (unlabelled & (views[:, None] == views[None, :]))
    positive = positive & ~itself
    anchors = positive.any(1)
    if not anchors.any():
        return 0.0 * (features.sum() + logit_scale)
    log_p = (logit_scale * vectors @ vectors.T).masked_fill(itself, -torch.inf).log_softmax(1)
    return -(log_p.where(positive, 0.0).sum(1) / positive.sum(1))[anchors].mean()


class _LogSumExpOfOthers(torch.autograd.Function):
    """log Σ_{j≠i} exp(w_i · w_j) for i in anchors [n], of vectors w [N, D]; `every`: the anchors are 0 … N - 1."""

    @staticmethod
    def forward(ctx: FunctionCtx, vectors: Tensor, anchors: Tensor, every: bool, chunk_size: int) -> Tensor:
        highest, totals = (vectors.new_empty(len(anchors)) for _ in range(2))
        # the only row of a batch has no others; finite numbers keep its gradient 0 and not undefined
        limits = torch.finfo(vectors.dtype)
        for start in range(0, len(anchors), chunk_size):
            part = slice(start, start + chunk_size)
            tile = _logits_of_others(vectors, anchors[part])
            torch.amax(tile, 1, out=highest[part]).clamp_(min=limits.min)
            torch.sum(tile.sub_(highest[part, None]).exp_(), 1, out=totals[part]).clamp_(min=limits.tiny)
        # kept apart: their sum is of the size of τ, and its rounding would act on every weight of a row
        ctx.save_for_backward(vectors, anchors, highest, totals)
        ctx.every, ctx.chunk_size = every, chunk_size
        return totals.log() + highest

    @staticmethod
    @first_derivative_only
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        vectors, anchors, highest, totals = ctx.saved_tensors
        scale = gradient / totals
        result = torch.zeros_like(vectors)
        with full_precision(vectors):
            for start in range(0, len(anchors), ctx.chunk_size):
                part = slice(start, start + ctx.chunk_size)
                tile = _logits_of_others(vectors, anchors[part])
                if ctx.every:
                    # row i as an anchor, and as one of the others of every anchor j: the logit is the same
                    as_other = (tile - highest).exp_().mul_(scale)
                    weights = as_other.addcmul_(tile.sub_(highest[part, None]).exp_(), scale[part, None])
                    result[part] = inner_products(weights, vectors.T)
                else:
                    weights = tile.sub_(highest[part, None]).exp_().mul_(scale[part, None])
                    result.index_add_(0, anchors[part], inner_products(weights, vectors.T))
                    add_weighed_rows(result, weights, vectors[anchors[part]])
        return result, None, None, None


def _logits_of_others(vectors: Tensor, anchors: Tensor) -> Tensor:
    """w_i · w_j [n, N] of the anchors i, -inf where j = i."""
    return inner_products(vectors[anchors], vectors).scatter_(1, anchors[:, None], -torch.inf)


def _check(
    features: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    views: Tensor | None,
    rows: Tensor | None,
    chunk_size: int | None,
) -> None:
    check_batch(labels, logit_scale, rows, chunk_size, views=views)
    if features.ndim != 2 or len(features) != len(labels) or features.shape[1] == 0:
        raise ValueError(f"features must be [{len(labels)}, D], one row a label; got {tuple(features.shape)}")
    if views is not None and (views.dtype not in (torch.int64, torch.int32) or int(views.min()) < 0):
        raise ValueError(f"views must be integers >= 0, got {views.dtype} from {views.min().item()}")
