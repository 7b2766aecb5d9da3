"""Cosines of images and the sentences that they attend to, class by class, and their gradient.

For a class with sentences T [M, D], and vectors p (query) and u (unit image) of an image: a = softmax_m(r_m t_m . p +
bias_m), cos = sum_m a_m (t_m . u) / sqrt(a^T G a), G = T T^T. One program holds a class and some images: it reads T
once for both products, and the softmax over M, the dot product and the quadratic form stay where they are made.
Nothing of size C M B is written forward. Backward, the gradient with respect to the products t_m . p and t_m . u is
made by the same kernel for as many classes as fit `GRADIENT_BYTES`, and multiplied by T.

Cost: 4 C M D B + 2 C M^2 B floating-point operations forward, twice that and 4 C M D B backward. No atomic sums.

Checked in Triton's interpreter and compiled ahead of time; not run on a GPU yet.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hf_vlr.kernels.products import add_dot, add_product, block_for, has_large_tiles, on_device, operand

# Sentences of a class that a program can hold.
MOST_SENTENCES = 128

# What the gradient of the products of a tile of classes may take.
GRADIENT_BYTES = 64 << 20

# A squared norm is at least this, as in `hf_vlr.modeling.recognition`.
LEAST_SQUARED_NORM = tl.constexpr(1e-24)


@triton.jit
def attend(
    stacked,
    anchors,
    rstd,
    bias,
    gram,
    one,
    images,
    image_count,
    sentence_count,
    width,
    OPERAND: tl.constexpr,
    BLOCK_SENTENCES: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Of class `one` and some images: t_m . u, a, G a and r [M, B] or [M], then a . (t . u) and a^T G a [B]."""
    sentences = tl.arange(0, BLOCK_SENTENCES)
    real, real_image = sentences < sentence_count, images < image_count
    row = one.to(tl.int64) * sentence_count + sentences
    scores = tl.zeros((BLOCK_SENTENCES, images.shape[0]), tl.float32)
    similarities = tl.zeros((BLOCK_SENTENCES, images.shape[0]), tl.float32)
    for start in range(0, width, BLOCK_WIDTH):
        inner = start + tl.arange(0, BLOCK_WIDTH)
        mask = real[:, None] & (inner < width)[None, :]
        tile = tl.load(anchors + row[:, None] * width + inner[None, :], mask=mask, other=0.0).to(OPERAND)
        place = images[None, :] * width + inner[:, None]
        mask = (inner < width)[:, None] & real_image[None, :]
        query_tile = tl.load(stacked + place, mask=mask, other=0.0).to(OPERAND)
        image_tile = tl.load(stacked + image_count * width + place, mask=mask, other=0.0).to(OPERAND)
        scores = add_dot(tile, query_tile, scores)
        similarities = add_dot(tile, image_tile, similarities)

    reciprocal = tl.load(rstd + row, mask=real, other=0.0)
    scores = scores * reciprocal[:, None] + tl.load(bias + row, mask=real, other=float("-inf"))[:, None]
    weights = tl.exp(scores - tl.max(scores, 0)[None, :])
    weights = weights / tl.sum(weights, 0)[None, :]
    mask = real[:, None] & real[None, :]
    inner_products = tl.load(gram + row[:, None] * sentence_count + sentences[None, :], mask=mask, other=0.0)
    gram_weights = add_dot(inner_products, weights, tl.zeros_like(weights))
    dots = tl.sum(weights * similarities, 0)
    # Rounding can leave a^T G a below the square of the projection on a unit vector, where anchors cancel.
    squared_norm = tl.maximum(tl.sum(weights * gram_weights, 0), dots * dots)
    squared_norm = tl.maximum(squared_norm, LEAST_SQUARED_NORM)
    return similarities, weights, gram_weights, reciprocal, dots, squared_norm


@triton.jit
def cosines_kernel(
    stacked,
    anchors,
    rstd,
    bias,
    gram,
    cosines,
    image_count,
    sentence_count,
    width,
    OPERAND: tl.constexpr,
    BLOCK_SENTENCES: tl.constexpr,
    BLOCK_IMAGES: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Cosines of one class with some images."""
    image_tiles = tl.cdiv(image_count, BLOCK_IMAGES)
    one = tl.program_id(0) // image_tiles
    images = (tl.program_id(0) % image_tiles) * BLOCK_IMAGES + tl.arange(0, BLOCK_IMAGES)
    _, _, _, _, dots, squared_norm = attend(
        stacked,
        anchors,
        rstd,
        bias,
        gram,
        one,
        images,
        image_count,
        sentence_count,
        width,
        OPERAND,
        BLOCK_SENTENCES,
        BLOCK_WIDTH,
    )
    place = one.to(tl.int64) * image_count + images
    tl.store(cosines + place, dots * tl.rsqrt(squared_norm), mask=images < image_count)


@triton.jit
def gradient_kernel(
    stacked,
    anchors,
    rstd,
    bias,
    gram,
    gradient,
    products,
    image_count,
    sentence_count,
    width,
    DETACH_NORM: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_SENTENCES: tl.constexpr,
    BLOCK_IMAGES: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Gradient of one class with respect to its products with queries and with images, [M, 2B]."""
    image_tiles = tl.cdiv(image_count, BLOCK_IMAGES)
    one = tl.program_id(0) // image_tiles
    images = (tl.program_id(0) % image_tiles) * BLOCK_IMAGES + tl.arange(0, BLOCK_IMAGES)
    similarities, weights, gram_weights, reciprocal, dots, squared_norm = attend(
        stacked,
        anchors,
        rstd,
        bias,
        gram,
        one,
        images,
        image_count,
        sentence_count,
        width,
        OPERAND,
        BLOCK_SENTENCES,
        BLOCK_WIDTH,
    )
    real_image = images < image_count
    of_cosine = tl.load(gradient + one.to(tl.int64) * image_count + images, mask=real_image, other=0.0)
    of_dots = of_cosine * tl.rsqrt(squared_norm)
    of_weights = similarities * of_dots[None, :]
    if DETACH_NORM:
        of_weights -= (dots * of_dots)[None, :]
    else:
        # A cosine does not change with the length of a, so this gradient has mean zero under a already.
        of_weights -= gram_weights * (of_dots * dots / squared_norm)[None, :]
    sentences = tl.arange(0, BLOCK_SENTENCES)
    row = one.to(tl.int64) * sentence_count + sentences
    place = row[:, None] * (2 * image_count) + images[None, :]
    mask = (sentences < sentence_count)[:, None] & real_image[None, :]
    tl.store(products + place, of_weights * weights * reciprocal[:, None], mask=mask)
    tl.store(products + image_count + place, weights * of_dots[None, :], mask=mask)


@torch.no_grad()
def attended_cosines(stacked: Tensor, anchors: Tensor, rstd: Tensor, bias: Tensor, gram: Tensor) -> Tensor:
    """Cosines [C, B] of B images and C classes.

    Args:
        stacked: [2B, D] queries, centred and scaled, then unit image vectors; float32, or bfloat16 to multiply
            bfloat16 anchors as they are.
        anchors: [C, M, D], M at most `MOST_SENTENCES`; float32, bfloat16 or float16.
        rstd: [C, M] reciprocal standard deviations of the anchors, float32.
        bias: [C, M] added to the scores, 0 or -inf, not all -inf in any class; float32.
        gram: [C, M, M] inner products of a class's anchors, float32.

    Returns:
        float32; sums and softmax are float32 whatever is multiplied.
    """
    stacked, anchors, rstd, bias, gram = (tensor.contiguous() for tensor in (stacked, anchors, rstd, bias, gram))
    (classes, sentences, width), images = anchors.shape, len(stacked) // 2
    cosines = stacked.new_empty(classes, images, dtype=torch.float32)
    blocks = _blocks(stacked, anchors)
    with on_device(stacked):
        cosines_kernel[(classes * triton.cdiv(images, blocks["BLOCK_IMAGES"]),)](
            stacked, anchors, rstd, bias, gram, cosines, images, sentences, width, **blocks
        )
    return cosines


@torch.no_grad()
def attended_cosines_gradient(
    gradient: Tensor,
    stacked: Tensor,
    anchors: Tensor,
    rstd: Tensor,
    bias: Tensor,
    gram: Tensor,
    detach_norm: bool = False,
    chunk_size: int | None = None,
) -> Tensor:
    """Gradient with respect to `stacked` [2B, D] from that with respect to the cosines [C, B].

    gradient: [C, B]. detach_norm: take ||a^T T|| as a constant. chunk_size: classes in a tile; by default as many as
    fit `GRADIENT_BYTES`. The rest as in `attended_cosines`, stacked in float32.
    """
    stacked, anchors, rstd, bias, gram = (tensor.contiguous() for tensor in (stacked, anchors, rstd, bias, gram))
    gradient = gradient.contiguous()
    (classes, sentences, width), images = anchors.shape, len(stacked) // 2
    chunk_size = chunk_size or max(1, GRADIENT_BYTES // (sentences * 2 * images * stacked.element_size()))
    blocks = _blocks(stacked, anchors)
    result = torch.zeros_like(stacked)
    for start in range(0, classes, chunk_size):
        part = slice(start, start + chunk_size)
        tile = anchors[part]
        products = stacked.new_empty(len(tile), sentences, 2 * images)
        with on_device(stacked):
            gradient_kernel[(len(tile) * triton.cdiv(images, blocks["BLOCK_IMAGES"]),)](
                stacked,
                tile,
                rstd[part],
                bias[part],
                gram[part],
                gradient[part],
                products,
                images,
                sentences,
                width,
                DETACH_NORM=detach_norm,
                **blocks,
            )
        add_product(result, products.flatten(0, 1).T, tile.flatten(0, 1))
    return result


def _blocks(stacked: Tensor, anchors: Tensor) -> dict[str, Any]:
    """The tile of a launch, and what it multiplies; more sentences leave room for fewer images."""
    block_sentences = block_for(anchors.shape[1])
    block_images = block_for(len(stacked) // 2, 64 if block_sentences <= 64 else 32)
    spills = block_sentences > 64 or (block_images == 64 and not has_large_tiles(stacked))
    return {
        "OPERAND": operand(stacked, anchors),
        "BLOCK_SENTENCES": block_sentences,
        "BLOCK_IMAGES": block_images,
        "BLOCK_WIDTH": 32,
        "num_warps": 8 if spills else 4,
        "num_stages": 3,
    }
