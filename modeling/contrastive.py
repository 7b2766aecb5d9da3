# SPDX-License-Identifier: MIT
"""Image-text-label contrast, exact and lean: no N x N matrix is kept and no target matrix is built.

With u_i the unit image vector of pair i, v_t(j) the unit text vector of pair j and S_ij = tau u_i . v_t(j),
every loss here is a mean of log-sum-exps over the rows and the columns of S minus a term that is linear in S.
Three identities make that cheap:

* the positives of a pair enter only through their mean, so they cost O(N D): sum_i u_i . c_y(i) with c_y the
  mean text vector of class y, and both directions share this term;
* a text that several pairs use is one column with a multiplicity, so S has U columns, one a unique text;
* the backward pass recomputes S tile by tile, so memory is O((N + U) D + tile) and work is 8 N U D
  floating-point operations: one product forward, three backward.

Where the pairs of a batch are split over processes, each holds its own queries and the keys of all: rows are
then final, columns are the log-add-exp of all processes', and the rest are sums over own queries. The pieces
below that speak of own queries serve that case too; in a single process they are all N.

Sources: UniCL (Yang et al., CVPR 2022), equations 1-3; VL-LTR (Tian et al., ECCV 2022), class-wise
contrastive learning and distillation; CLIP (Radford et al., ICML 2021): the case of all labels different.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

# Weights of the (image_to_text, text_to_image) directions.
DIRECTIONS = {"image_to_text": (1.0, 0.0), "text_to_image": (0.0, 1.0), "both": (0.5, 0.5)}

# One exponential around a common shift serves rows and columns while the logits of a tile lie this close
# together: every factor stays within exp(-50) and N exp(50), with room for gradients of size 1/N, in float32.
SHARED_SHIFT_SPAN = 100.0

# A tile stays in a CPU's cache; an accelerator wants few large ones.
TILE_BYTES_CPU = 8 << 20
TILE_BYTES_ACCELERATOR = 256 << 20


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
        to the features and to ``logit_scale``.

    Raises:
        ValueError: a shape, label, text index, direction or smoothing outside the above.

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


def two_sided_log_sum_exp(
    queries: Tensor, keys: Tensor, multiplicity: Tensor, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the rows and over the columns of ``queries @ keys.T``, which is never kept.

    rows_i = log sum_u m_u exp(q_i . k_u), columns_u = log sum_i exp(q_i . k_u).

    Args:
        queries: [N, D], float32 or float64.
        keys: [U, D], same dtype.
        multiplicity: [U] non-negative, not all zero, same dtype; no gradient.
        chunk_size: queries in a tile; None takes a default by memory.

    Returns:
        rows [N] and columns [U], in float64 where the device has it: a softmax is only as exact as its logarithm,
        whose rounding grows with tau. They are right wherever the logits lie: a tile whose logits spread too far for
        one common shift takes its own maxima.
    """
    rows, columns = log_sums(queries, keys, multiplicity, chunk_size)
    return log_sums_with_gradient(queries, keys, multiplicity, rows, columns, chunk_size)


@torch.no_grad()
def log_sums(
    queries: Tensor, keys: Tensor, multiplicity: Tensor, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The values of `two_sided_log_sum_exp` without gradients; no own queries (N = 0) give columns of -inf."""
    chunk_size = chunk_size or _queries_per_tile(queries, keys)
    wide = _widest(queries)
    rows = queries.new_empty(len(queries), dtype=wide)
    columns = queries.new_full((len(keys),), -torch.inf, dtype=wide)
    for start in range(0, len(queries), chunk_size):
        part = slice(start, start + chunk_size)
        tile = queries[part] @ keys.T
        shift = _shared_shift(tile)
        if shift is None:
            tile = tile.to(wide)
            rows[part] = torch.logsumexp(tile + multiplicity.log(), 1)
            tile_columns = torch.logsumexp(tile, 0)
        else:
            tile.sub_(shift).exp_()
            rows[part] = (tile @ multiplicity).to(wide).log_().add_(shift)
            tile_columns = tile.sum(0).to(wide).log_().add_(shift)
        columns = torch.logaddexp(columns, tile_columns)
    return rows, columns


def log_sums_with_gradient(
    queries: Tensor, keys: Tensor, multiplicity: Tensor, rows: Tensor, columns: Tensor, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """`rows` and `columns`, values of `log_sums`, as functions of queries and keys.

    The gradient is what the own queries contribute, so `columns` must be those of all processes.
    """
    chunk_size = chunk_size or _queries_per_tile(queries, keys)
    return _LogSums.apply(queries, keys, multiplicity, rows, columns, chunk_size)


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, queries: Tensor, keys: Tensor, multiplicity: Tensor, rows: Tensor, columns: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(queries, keys, multiplicity, rows, columns)
        ctx.chunk_size = size
        return rows.clone(), columns.clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, rows_gradient: Tensor, columns_gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        queries, keys, multiplicity, rows, columns = ctx.saved_tensors
        need_queries, need_keys = ctx.needs_input_grad[:2]
        queries_gradient = torch.empty_like(queries) if need_queries else None
        keys_gradient = torch.zeros_like(keys) if need_keys else None
        with full_precision(queries):
            for start in range(0, len(queries), ctx.chunk_size):
                part = slice(start, start + ctx.chunk_size)
                scales = rows_gradient[part], columns_gradient, multiplicity
                weights = _tile_weights(queries[part] @ keys.T, rows[part], columns, *scales)
                if need_queries:
                    torch.mm(weights, keys, out=queries_gradient[part])
                if need_keys:
                    keys_gradient.addmm_(weights.T, queries[part])
        return queries_gradient, keys_gradient, None, None, None, None


def _shared_shift(tile: Tensor) -> float | None:
    """About the middle of the tile's range, or None where one shift cannot serve every row and column."""
    low, high = torch.stack(tile.aminmax()).tolist()
    # a whole number is the same in every dtype; nan and infinite logits go the other way and stay what they are
    return float(round(0.5 * (low + high))) if high - low <= SHARED_SHIFT_SPAN else None


def _tile_weights(
    tile: Tensor, rows: Tensor, columns: Tensor, row_scale: Tensor, column_scale: Tensor, multiplicity: Tensor
) -> Tensor:
    """row_scale_i m_u exp(s_iu - rows_i) + column_scale_u exp(s_iu - columns_u) [n, U]; the tile is spent."""
    shift = _shared_shift(tile)
    if shift is None:
        row_softmax = (tile + (multiplicity.log() - rows[:, None])).exp_().mul_(row_scale[:, None])
        return (row_softmax + (tile - columns).exp_().mul_(column_scale)).to(tile.dtype)
    row_factor = (row_scale * (shift - rows).exp()).to(tile.dtype)
    column_factor = (column_scale * (shift - columns).exp()).to(tile.dtype)
    factors = torch.addcmul(column_factor, row_factor[:, None], multiplicity)
    return tile.sub_(shift).exp_().mul_(factors)


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
    means = keys.new_zeros(pairs, keys.shape[1]).index_add(0, place, texts) / counts.clamp(min=1)[:, None]
    own = place[first : first + len(queries)]
    target = (1.0 - label_smoothing) * (queries * means.index_select(0, own)).sum(dtype=_widest(queries))
    if label_smoothing > 0.0:
        target = target + label_smoothing * (queries.sum(0) @ (multiplicity @ keys)) / pairs
    return target


def expected_logits(
    teacher_queries: Tensor,
    teacher_keys: Tensor,
    teacher_rows: Tensor,
    teacher_columns: Tensor,
    queries: Tensor,
    keys: Tensor,
    multiplicity: Tensor,
    chunk_size: int | None = None,
) -> Tensor:
    """sum_iu W_iu q_i . k_u over the own queries i, W the teacher's row softmax plus its column softmax.

    The teacher's log-sums are those of `log_sums` (columns of all processes); multiplicities are within W.
    """
    keys_sum, queries_sum = torch.empty_like(queries), torch.zeros_like(keys)
    chunk_size = chunk_size or _queries_per_tile(queries, keys)
    with torch.no_grad():
        ones = torch.ones_like(teacher_rows)
        for start in range(0, len(queries), chunk_size):
            part = slice(start, start + chunk_size)
            tile = teacher_queries[part] @ teacher_keys.T
            weights = _tile_weights(tile, teacher_rows[part], teacher_columns, ones[part], multiplicity, multiplicity)
            torch.mm(weights, keys, out=keys_sum[part])
            queries_sum.addmm_(weights.T, queries[part])
    # The sum is bilinear: its value is taken once, its gradient from either side.
    return (queries * keys_sum).sum(dtype=_widest(queries)) + ((keys - keys.detach()) * queries_sum).sum()


def _widest(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.device.type == "mps" else torch.float64


def _queries_per_tile(queries: Tensor, keys: Tensor) -> int:
    budget = TILE_BYTES_CPU if queries.device.type == "cpu" else TILE_BYTES_ACCELERATOR
    return max(1, budget // (len(keys) * queries.element_size()))


def scaled_vectors(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Queries tau u [N, D] and keys v [U, D], of the features' dtype or of `dtype`, whichever is wider."""
    for features in (image_features, text_features):
        dtype = torch.promote_types(dtype, features.dtype)
    queries = F.normalize(image_features.to(dtype), dim=-1) * logit_scale.to(dtype).reshape(())
    return queries, F.normalize(text_features.to(dtype), dim=-1)


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


def full_precision(tensor: Tensor) -> torch.autocast:
    """A context without autocast on the tensor's device: logits of size tau need more than bfloat16's 8 bits."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)


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
