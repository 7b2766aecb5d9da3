"""Pairwise sigmoid contrast with classes, exact and lean: each image-text pair of a batch is a yes-or-no question.

With l_ij = τ u_i · v_t(j) + b and z_ij = +1 where pairs i and j are of one class, else -1, the loss of image i is

    Σ_j softplus(−z_ij l_ij) = Σ_j softplus(l_ij) − Σ_{j: z_ij = +1} l_ij,

because softplus(−l) = softplus(l) − l. The second sum is linear in the texts, so it needs one sum of vectors per
class; in the first a text that several pairs use is one column with a multiplicity. Similarities exist one tile at a
time and are computed again in the backward pass: O((N + U) D + tile) memory, 8 n U D floating-point operations.

The price of the identity is a difference of two numbers of the size of the logits: an image that is sure of all its
texts keeps an absolute rounding error of about one unit in the last place of Σ_{j: z_ij = +1} l_ij.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.functional import logsigmoid, normalize, softplus

from hf_vlr.losses.batch import (
    check_batch,
    check_places,
    class_sums,
    place_of_class,
    rows_per_tile,
    unit_vectors,
    wide_dtype,
)
from hf_vlr.modeling.contrastive import text_multiplicity
from hf_vlr.modeling.derivatives import first_derivative_only
from hf_vlr.modeling.log_sums import full_precision
from hf_vlr.modeling.products import add_weighed_rows, inner_products

# Beyond it log(1 + exp(x)) = x in float64 too; torch's default of 20 is off by 2e-9.
SOFTPLUS_THRESHOLD = 37.0


def unified_sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    text_index: Tensor | None = None,
    rows: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """SigLIP's loss in which all pairs of one class are positives of each other.

    L = 1/N Σ_i Σ_j softplus(−z_ij (τ u_i · v_t(j) + b)), z_ij = +1 if i = j or y_i = y_j >= 0, else -1; u and v are the
    features over their L2 norms.

    Args:
        image_features: [n, D] image vectors, not normalised. n = N unless `rows` is given.
        text_features: [U, D] vectors of the unique texts of the whole batch, not normalised.
        labels: [N] integers of the whole batch; a class (>= 0), or -1 for an image-text pair, positive with itself
            alone.
        logit_scale: τ, one positive number, already exponentiated (SigLIP starts at 10).
        logit_bias: b, one number (SigLIP starts at -10: most pairs are negative).
        text_index: [N] integers in [0, U): pair i uses text `text_index[i]`. None: U = N, one text a pair.
        rows: [n] integers in [0, N): the pairs whose images these are, where each process takes a part of the images
            and all texts. n may be 0. The value is that part of the sum, still over N: the parts add up to the loss
            of the batch, and so do their gradients. None: all pairs in order.
        chunk_size: images in a tile; by default a tile takes a few MiB (more on an accelerator).

    Returns:
        The loss in nats, a scalar, >= 0 up to rounding; float32, or float64 for float64 features. Gradients flow to
        the features, the scale and the bias.

    Raises:
        ValueError: a shape, label, text index or row outside the above.

    Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training (ICCV 2023), section 3.2, with the bias added as
    in algorithm 1. One positive a row becomes all of a class as in UniCL (Yang et al., CVPR 2022), without a division
    by their number: each pair is a question of its own.
    """
    _check(image_features, text_features, labels, logit_scale, logit_bias, text_index, rows, chunk_size)
    with full_precision(image_features):
        dtype = wide_dtype(image_features, text_features)
        queries = unit_vectors(image_features, dtype) * logit_scale.to(dtype).reshape(())
        keys = unit_vectors(text_features, dtype)
        bias = logit_bias.to(dtype).reshape(())
        texts = keys if text_index is None else keys.index_select(0, text_index)
        multiplicity = text_multiplicity(keys, text_index)
        place = place_of_class(labels)
        sums, counts = class_sums(texts, place)
        own = place if rows is None else place.index_select(0, rows)
        positive = (queries * sums.index_select(0, own)).sum(1) + bias * counts.index_select(0, own)
        every = _SoftplusSums.apply(queries, keys, bias, multiplicity, rows_per_tile(queries, keys, chunk_size))
        return (every - positive).sum() / len(labels)


def unified_sigmoid_loss_reference(
    image_features: Tensor,
    text_features: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    text_index: Tensor | None = None,
) -> Tensor:
    """`unified_sigmoid_loss` by its definition, on dense [N, N] matrices."""
    texts = text_features if text_index is None else text_features[text_index]
    logits = logit_scale * normalize(image_features, dim=-1) @ normalize(texts, dim=-1).T + logit_bias
    same = (labels[:, None] == labels[None, :]) & (labels[:, None] >= 0)
    same = same | torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return -logsigmoid(torch.where(same, logits, -logits)).sum() / len(labels)


class _SoftplusSums(torch.autograd.Function):
    """Σ_u m_u softplus(q_i · k_u + b) [n] of queries [n, D], keys [U, D], a bias [] and multiplicities [U]."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, queries: Tensor, keys: Tensor, bias: Tensor, multiplicity: Tensor, chunk_size: int
    ) -> Tensor:
        sums = queries.new_empty(len(queries))
        for start in range(0, len(queries), chunk_size):
            part = slice(start, start + chunk_size)
            tile = softplus(inner_products(queries[part], keys).add_(bias), threshold=SOFTPLUS_THRESHOLD)
            torch.mv(tile, multiplicity, out=sums[part])
        ctx.save_for_backward(queries, keys, bias, multiplicity)
        ctx.chunk_size = chunk_size
        return sums

    @staticmethod
    @first_derivative_only
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        queries, keys, bias, multiplicity = ctx.saved_tensors
        need_queries, need_keys, need_bias = ctx.needs_input_grad[:3]
        queries_gradient = torch.empty_like(queries) if need_queries else None
        keys_gradient = torch.zeros_like(keys) if need_keys else None
        bias_gradient = torch.zeros_like(bias) if need_bias else None
        with full_precision(queries):
            # both factors of the weights g_i m_u σ(l_iu) go to the narrow sides, so that a tile is passed over once
            scaled_queries, scaled_keys = queries * gradient[:, None], keys * multiplicity[:, None]
            for start in range(0, len(queries), ctx.chunk_size):
                part = slice(start, start + ctx.chunk_size)
                tile = inner_products(queries[part], keys).add_(bias).sigmoid_()
                if need_queries:
                    queries_gradient[part] = inner_products(tile, scaled_keys.T)
                if need_keys:
                    add_weighed_rows(keys_gradient, tile, scaled_queries[part])
                if need_bias:
                    bias_gradient += gradient[part] @ (tile @ multiplicity)
            if need_queries:
                queries_gradient.mul_(gradient[:, None])
            if need_keys:
                keys_gradient.mul_(multiplicity[:, None])
        return queries_gradient, keys_gradient, bias_gradient, None, None


def _check(
    image_features: Tensor,
    text_features: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    text_index: Tensor | None,
    rows: Tensor | None,
    chunk_size: int | None,
) -> None:
    check_batch(labels, logit_scale, rows, chunk_size, text_index=text_index)
    images, texts, pairs = tuple(image_features.shape), tuple(text_features.shape), len(labels)
    if len(images) != 2 or len(texts) != 2 or images[1] != texts[1] or 0 in (*texts, images[1]):
        raise ValueError(f"features must be [n, D] and [U, D], U and D not 0; got {images} and {texts}")
    if images[0] != (pairs if rows is None else len(rows)):
        raise ValueError(f"{images[0]} images do not fit {pairs} labels: give the rows that they are")
    if logit_bias.numel() != 1:
        raise ValueError(f"logit_bias must be one number, got shape {tuple(logit_bias.shape)}")
    if text_index is not None:
        check_places("text_index", text_index, texts[0])
    elif texts[0] != pairs:
        raise ValueError(f"{texts[0]} texts of {pairs} pairs need a text_index")
