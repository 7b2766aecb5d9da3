# SPDX-License-Identifier: MIT
"""Image-text-label contrast, exact and lean: no N x N matrix is kept and no target matrix is built.

With u_i the unit image vector of pair i, v_t(j) the unit text vector of pair j and S_ij = tau u_i . v_t(j),
every loss here is a mean of log-sum-exps over the rows and the columns of S minus a term that is linear in S.
Three identities make that cheap:

* the positives of a pair enter only through their mean, so they cost O(N D): sum_i u_i . c_y(i) with c_y the
  mean text vector of class y, and both directions share this term;
* a text that several pairs use is one column with a multiplicity, so S has U columns, one a unique text;
* the log-sum-exps keep no S (`log_sums`): memory is O((N + U) D + tile) and work is 8 N U D floating-point
  operations.

Where the pairs of a batch are split over processes, each holds its own queries and the keys of all. The pieces
below that speak of own queries serve that case too; in a single process they are all N.

Sources: UniCL (Yang et al., CVPR 2022), equations 1-3; VL-LTR (Tian et al., ECCV 2022), class-wise
contrastive learning and distillation; CLIP (Radford et al., ICML 2021): the case of all labels different.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .log_sums import expected_logits, full_precision, log_sums, two_sided_log_sum_exp, widest

# Weights of the (image_to_text, text_to_image) directions.
DIRECTIONS = {"image_to_text": (1.0, 0.0), "text_to_image": (0.0, 1.0), "both": (0.5, 0.5)}


def image_text_label_loss(
    image_features: Tensor,
    text_features: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    *,
    text_index: Tensor | None = None,
    direction: str = "both",
    label_smoothing: float = 0.0,
    chunk_size: int | None = None,
) -> Tensor:
    """Cross-modal contrast in which all pairs of one class are positives of each other.

    With S_ij = tau u_i . v_t(j) over the N pairs, Y_ij = [y_i = y_j] and P = Y with rows summing to one:
    ``image_to_text`` = mean_i [-(1 - eps) sum_j P_ij log softmax_j(S)_ij - eps/N sum_j log softmax_j(S)_ij];
    ``text_to_image`` is the same on the transpose of S, ``both`` the mean of the two.

    Args:
        image_features: [N, D] image vectors, not normalised (this function divides by their L2 norm).
        text_features: [U, D] vectors of the unique texts, not normalised.
        labels: [N] integers; a class (>= 0), or -1 for an image-text pair, positive with itself alone.
        logit_scale: tau, one positive number, already exponentiated; it multiplies cosines.
        text_index: [N] integers in [0, U): pair i uses text ``text_index[i]``. None: U = N, one text a pair.
        direction: ``image_to_text``, ``text_to_image`` or ``both``.
        label_smoothing: eps in [0, 1).
        chunk_size: images in a tile; by default a tile takes a few MiB (more on an accelerator).

    Returns:
        The loss in nats, a scalar, mean over pairs; float32, or float64 for float64 features. Gradients flow
        to the features and to ``logit_scale``. Logits of float32 are rounded by tau 2^-24: a loss below about 1e-6 at
        tau = 100 is as good as 0, and may come out a little below.

    Raises:
        ValueError: a shape, label, text index, direction or smoothing outside the above.
        RuntimeError: in the backward pass, where a gradient of the gradient is asked for (``create_graph=True``).

    Source: UniCL equations 1-3 as batch means; VL-LTR's class-wise loss, with label smoothing.
    """
    check_pairs(image_features, text_features, logit_scale, text_index, chunk_size)
    check_labels(labels, len(image_features), direction, label_smoothing)
    rows_weight, columns_weight = DIRECTIONS[direction]
    with full_precision(image_features):
        queries, keys = scaled_vectors(image_features, text_features, logit_scale)
        multiplicity = text_multiplicity(keys, text_index)
        rows, columns = two_sided_log_sum_exp(queries, keys, multiplicity, chunk_size)
        target = target_logits(queries, keys, multiplicity, labels, text_index, label_smoothing)
        loss = rows_weight * rows.sum() + columns_weight * (multiplicity * columns).sum() - target
        return (loss / len(labels)).to(keys.dtype)


def image_text_label_loss_reference(
    image_features: Tensor,
    text_features: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    *,
    text_index: Tensor | None = None,
    direction: str = "both",
    label_smoothing: float = 0.0,
) -> Tensor:
    """`image_text_label_loss` by its definition, on dense [N, N] matrices."""
    logits = _dense_logits(image_features, text_features, logit_scale, text_index)
    same = (labels[:, None] == labels[None, :]) & (labels[:, None] >= 0)
    same = same | torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    targets = same.to(logits.dtype) / same.sum(1, keepdim=True)
    targets = (1.0 - label_smoothing) * targets + label_smoothing / len(labels)
    image_to_text = -(targets * logits.log_softmax(1)).sum(1).mean()
    text_to_image = -(targets * logits.T.log_softmax(1)).sum(1).mean()
    rows_weight, columns_weight = DIRECTIONS[direction]
    return rows_weight * image_to_text + columns_weight * text_to_image


def clip_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over N pairs ([N, D] each): `image_text_label_loss` with every pair its own class."""
    labels = torch.full((len(image_features),), -1, device=image_features.device)
    return image_text_label_loss(image_features, text_features, labels, logit_scale)


def distillation_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    teacher_image_features: Tensor,
    teacher_text_features: Tensor,
    teacher_logit_scale: Tensor,
    *,
    text_index: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Soft cross-entropy between the batch similarities of a frozen teacher and of the student.

    L = 1/2 [mean_i -sum_j softmax(S^t)_ij log softmax(S)_ij + the same on the transposes], S, S^t [N, N].

    Args:
        image_features, text_features, logit_scale, text_index, chunk_size: as in `image_text_label_loss`.
        teacher_image_features: [N, D'] image vectors of the teacher, not normalised; D' need not be D.
        teacher_text_features: [U, D'] text vectors of the teacher for the same texts.
        teacher_logit_scale: the teacher's tau, already exponentiated.

    Returns:
        The loss in nats, a scalar of the student's dtype (at least float32). The teacher gets no gradient.

    Raises:
        ValueError: shapes that do not fit each other.

    Source: VL-LTR, distillation of the class-wise pre-training (no temperature beside the two scales).
    """
    check_pairs(image_features, text_features, logit_scale, text_index, chunk_size)
    check_teacher(image_features, text_features, teacher_image_features, teacher_text_features)
    check_pairs(teacher_image_features, teacher_text_features, teacher_logit_scale, text_index, chunk_size)
    with full_precision(image_features):
        queries, keys = scaled_vectors(image_features, text_features, logit_scale)
        multiplicity = text_multiplicity(keys, text_index)
        with torch.no_grad():
            teacher = scaled_vectors(teacher_image_features, teacher_text_features, teacher_logit_scale)
            teacher = [vectors.to(keys.dtype) for vectors in teacher]
        teacher_sums = log_sums(*teacher, multiplicity, chunk_size)
        rows, columns = two_sided_log_sum_exp(queries, keys, multiplicity, chunk_size)
        agreement = expected_logits(*teacher, *teacher_sums, queries, keys, multiplicity, chunk_size)
        return (0.5 * (rows.sum() + (multiplicity * columns).sum() - agreement) / len(queries)).to(keys.dtype)


def distillation_loss_reference(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    teacher_image_features: Tensor,
    teacher_text_features: Tensor,
    teacher_logit_scale: Tensor,
    *,
    text_index: Tensor | None = None,
) -> Tensor:
    """`distillation_loss` by its definition, on dense [N, N] matrices."""
    student = _dense_logits(image_features, text_features, logit_scale, text_index)
    teacher = _dense_logits(teacher_image_features, teacher_text_features, teacher_logit_scale, text_index).detach()
    image_to_text = -(teacher.softmax(1) * student.log_softmax(1)).sum(1).mean()
    text_to_image = -(teacher.T.softmax(1) * student.T.log_softmax(1)).sum(1).mean()
    return 0.5 * (image_to_text + text_to_image)


def target_logits(
    queries: Tensor,
    keys: Tensor,
    multiplicity: Tensor,
    labels: Tensor,
    text_index: Tensor | None,
    label_smoothing: float,
    first: int = 0,
) -> Tensor:
    """sum_i [(1 - eps) mean_{j: y_j = y_i} S_ij + eps mean_j S_ij] over the own queries i, S_ij = q_i . k_t(j).

    Args:
        queries: [n, D], those of pairs first .. first + n - 1.
        keys: [U, D].
        multiplicity: [U], how many of the N pairs use each text.
        labels, text_index: [N], of all pairs; no text_index: pair i uses text i.
        label_smoothing: eps.
        first: the first own pair.
    """
    pairs = len(labels)
    fresh = labels.max() + 1 + torch.arange(pairs, device=labels.device)
    labels = torch.where(labels < 0, fresh, labels)
    # A class is known by the place of its first member in sorted order: shapes do not depend on the data.
    place = torch.searchsorted(labels.sort().values, labels)
    counts = queries.new_zeros(pairs).index_add_(0, place, queries.new_ones(pairs))
    texts = keys if text_index is None else keys.index_select(0, text_index)
    sums = keys.new_zeros(pairs, keys.shape[1]).index_add_(0, place, texts)
    own = place[first : first + len(queries)]
    agreement = (queries * sums.index_select(0, own)).sum(1, dtype=widest(queries)) / counts[own]
    target = (1.0 - label_smoothing) * agreement.sum()
    if label_smoothing > 0.0:
        target = target + label_smoothing * (queries.sum(0) @ (multiplicity @ keys)) / pairs
    return target


def scaled_vectors(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Queries tau u [N, D] and keys v [U, D], of the features' dtype or of `dtype`, whichever is wider."""
    for features in (image_features, text_features):
        dtype = torch.promote_types(dtype, features.dtype)
    images, texts = image_features.to(dtype), text_features.to(dtype)
    # bounded as in F.normalize; a product with one number a row takes fewer passes, above all backward
    inverse = [torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12).reciprocal() for x in (images, texts)]
    return images * (logit_scale.to(dtype).reshape(()) * inverse[0]), texts * inverse[1]


def text_multiplicity(keys: Tensor, text_index: Tensor | None) -> Tensor:
    """How many pairs use each text [U], in the dtype of the keys."""
    if text_index is None:
        return keys.new_ones(len(keys))
    return keys.new_zeros(len(keys)).index_add_(0, text_index, keys.new_ones(len(text_index)))


def _dense_logits(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, text_index: Tensor | None
) -> Tensor:
    texts = text_features if text_index is None else text_features[text_index]
    return logit_scale * F.normalize(image_features, dim=-1) @ F.normalize(texts, dim=-1).T


def check_pairs(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    text_index: Tensor | None,
    chunk_size: int | None,
    *,
    may_be_empty: bool = False,
) -> None:
    """Raise ValueError unless features, scale, text index and chunk size fit each other."""
    images, texts = tuple(image_features.shape), tuple(text_features.shape)
    fit = len(images) == 2 and len(texts) == 2 and images[1] == texts[1] > 0
    if not fit or not (may_be_empty or (images[0] and texts[0])):
        raise ValueError(f"features must be [N, D] and [U, D], not empty; got {images} and {texts}")
    if logit_scale.numel() != 1:
        raise ValueError(f"logit_scale must be one number, got shape {tuple(logit_scale.shape)}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if text_index is None:
        if images[0] != texts[0]:
            raise ValueError(f"{images[0]} images and {texts[0]} texts need a text_index")
        return
    if tuple(text_index.shape) != images[:1] or text_index.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"text_index must hold {images[0]} integers, got {text_index.dtype} {tuple(text_index.shape)}")
    if images[0]:
        low, high = torch.stack(text_index.aminmax()).tolist()
        if low < 0 or high >= texts[0]:
            raise ValueError(f"text_index must lie in [0, {texts[0]}), got {low} to {high}")


def check_teacher(
    image_features: Tensor, text_features: Tensor, teacher_image_features: Tensor, teacher_text_features: Tensor
) -> None:
    """Raise ValueError unless the teacher has as many rows as the student."""
    if len(teacher_image_features) != len(image_features) or len(teacher_text_features) != len(text_features):
        raise ValueError("teacher and student must have the same numbers of images and of texts")


def check_labels(labels: Tensor, pairs: int, direction: str, label_smoothing: float) -> None:
    """Raise ValueError unless the labels are those of `pairs` pairs, and the options known."""
    if tuple(labels.shape) != (pairs,) or labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"labels must hold {pairs} integers, got {labels.dtype} {tuple(labels.shape)}")
    if pairs and int(labels.min()) < -1:
        raise ValueError(f"labels must be -1 (image-text pair) or a class >= 0, got {int(labels.min())}")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {sorted(DIRECTIONS)}, got {direction!r}")
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
