"""Contrast over the batch of all processes, each of which does its share: exact at any world size.

Every process keeps its own images and gathers one tower, the texts. A loss that is a sum over images, and perhaps over
texts, is then split by images: rows of similarities are final where they are, columns combine by a log-add-exp over
processes, positives need the labels and text numbers of all pairs but no further features. The backward pass sums what
all processes ask of a text and hands it to the one that holds it.

Convention: a function returns the loss of the global batch, the same number on every process, and a gradient whose mean
over processes, which data parallelism takes of the parameters, is that of one process on the whole batch. A process may
hold no images or no texts: features [0, D] that are still part of the graph give zero gradients. In a single process
the functions are those they are named after.

Letters: R processes, n pairs and U_r texts on each (the most that any holds), N and U of all, D width, D' a teacher's.

Cost of a process: 8 n U D floating-point operations (as many again for the teacher) instead of 8 N U D, and these
collectives. b: 4 bytes, 8 for float64 features; e: 2 bytes for bfloat16 and float16 texts, else b. A loss of labels
takes six of them forward, distillation seven, both together the same seven, sigmoid and supervised contrast (with the
images as texts) four; each takes one backward.

| what                                            | collective     | bytes that come in                        |
|-------------------------------------------------|----------------|-------------------------------------------|
| sizes and dtypes                                | all-gather     | 40 R                                      |
| text numbers and labels                         | all-gather     | 8 R n each                                |
| text features                                   | all-gather     | e R U_r D                                 |
| distillation: the teacher's text features       | all-gather     | b R U_r D'                                |
| label loss, distillation: columns' maxima, sums | 2 all-reduces  | 8 U each, with a teacher 16 U             |
| the value                                       | all-reduce     | 8, with labels and teacher 16, sigmoid b  |
| backward: the texts' gradient                   | reduce-scatter | b R U_r D                                 |
"""

import torch
from torch import Tensor

from hf_vlr.distributed import (
    GlobalBatch,
    gather_rows,
    is_distributed,
    log_add_exp_over_ranks,
    mean_gradient,
    rank_and_world,
    sum_over_ranks,
)
from hf_vlr.losses.sigmoid import unified_sigmoid_loss
from hf_vlr.losses.supervised import supervised_contrastive_loss
from hf_vlr.modeling.contrastive import (
    DIRECTIONS,
    check_labels,
    check_pairs,
    check_teacher,
    distillation_loss,
    image_text_label_loss,
    scaled_vectors,
    target_logits,
    text_multiplicity,
)
from hf_vlr.modeling.log_sums import expected_logits, full_precision, log_sums, log_sums_with_gradient

# Image features, text features, scale.
Vectors = tuple[Tensor, Tensor, Tensor]


def sharded_image_text_label_loss(
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
    """`image_text_label_loss` of the global batch from what this process holds of it.

    Args:
        image_features: [n_r, D] image vectors of this process, not normalised.
        text_features: [U_r, D] vectors of its unique texts. A text that two processes hold counts as two columns,
            which changes nothing.
        labels: [n_r] integers; a class (>= 0) of the global batch, or -1 for a pair that is positive with itself alone.
        logit_scale: tau, one positive number, already exponentiated, the same on every process.
        text_index: [n_r] integers in [0, U_r), into this process's own texts. None: U_r = n_r, one text a pair.
        direction, label_smoothing, chunk_size: as there, the same on every process.

    Returns:
        The loss over all N pairs, by the convention above; float32, or float64 for float64 features.

    Raises:
        ValueError: as there, on every process if on one; or no process holds a pair.

    Source: UniCL (Yang et al., CVPR 2022), equations 1-3 over the global batch.
    """
    if not is_distributed():
        return image_text_label_loss(
            image_features,
            text_features,
            labels,
            logit_scale,
            text_index=text_index,
            direction=direction,
            label_smoothing=label_smoothing,
            chunk_size=chunk_size,
        )
    student = (image_features, text_features, logit_scale)
    (loss,) = _losses(student, labels, None, text_index, direction, label_smoothing, chunk_size)
    return loss


def sharded_distillation_loss(
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
    """`distillation_loss` of the global batch from what this process holds of it.

    Args:
        image_features, text_features, logit_scale, text_index, chunk_size: as in `sharded_image_text_label_loss`.
        teacher_image_features: [n_r, D'] image vectors of the teacher for this process's images; no gradient.
        teacher_text_features: [U_r, D'] vectors of the teacher for this process's texts.
        teacher_logit_scale: the teacher's tau, already exponentiated.

    Returns:
        The loss over all N pairs, by the convention above.

    Raises:
        ValueError: as in `sharded_image_text_label_loss`.

    Source: VL-LTR (Tian et al., ECCV 2022), distillation of the class-wise pre-training, over the global batch.
    """
    student = (image_features, text_features, logit_scale)
    teacher = (teacher_image_features, teacher_text_features, teacher_logit_scale)
    if not is_distributed():
        return distillation_loss(*student, *teacher, text_index=text_index, chunk_size=chunk_size)
    (loss,) = _losses(student, None, teacher, text_index, "both", 0.0, chunk_size)
    return loss


def sharded_distilled_contrast(
    image_features: Tensor,
    text_features: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    teacher_image_features: Tensor,
    teacher_text_features: Tensor,
    teacher_logit_scale: Tensor,
    *,
    text_index: Tensor | None = None,
    direction: str = "both",
    label_smoothing: float = 0.0,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`sharded_image_text_label_loss` and `sharded_distillation_loss` of one batch: (contrast, distillation).

    The student's similarities are taken once for both, in a single process too: 8 n U D operations instead of 16.

    Source: VL-LTR, class-wise contrastive learning with distillation: L = (1 - beta) first + beta second.
    """
    student = (image_features, text_features, logit_scale)
    teacher = (teacher_image_features, teacher_text_features, teacher_logit_scale)
    contrast, distillation = _losses(student, labels, teacher, text_index, direction, label_smoothing, chunk_size)
    return contrast, distillation


def sharded_unified_sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    text_index: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """`unified_sigmoid_loss` of the global batch from what this process holds of it.

    Args:
        image_features, text_features, labels, logit_scale, text_index, chunk_size: as in
            `sharded_image_text_label_loss`.
        logit_bias: one number, the same on every process.

    Returns:
        The loss over all N pairs, by the convention above.

    Raises:
        ValueError: as in `sharded_image_text_label_loss`.

    Source: SigLIP (Zhai et al., ICCV 2023) with the positives of UniCL, over the global batch.
    """
    if not is_distributed():
        return unified_sigmoid_loss(
            image_features,
            text_features,
            labels,
            logit_scale,
            logit_bias,
            text_index=text_index,
            chunk_size=chunk_size,
        )

    def check() -> None:
        check_pairs(image_features, text_features, logit_scale, text_index, chunk_size, may_be_empty=True)
        check_labels(labels, len(image_features), "both", 0.0)

    batch = GlobalBatch(image_features, text_features, check)
    labels, index = batch.gather_integers(labels, batch.global_index(text_index))
    partial = unified_sigmoid_loss(
        image_features,
        batch.gather_texts(text_features),
        labels,
        logit_scale,
        logit_bias,
        text_index=index,
        rows=batch.own_pairs(),
        chunk_size=chunk_size,
    )
    return mean_gradient(sum_over_ranks(partial), partial)


def sharded_supervised_contrastive_loss(
    features: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    *,
    views: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """`supervised_contrastive_loss` of the global batch from what this process holds of it.

    Args:
        features: [n_r, D] image vectors of this process, not normalised; all views of an image are on one process.
        labels: [n_r] integers; a class (>= 0) of the global batch, or -1 without one.
        logit_scale: tau, one positive number, the same on every process.
        views: [n_r] integers >= 0, the same for the views of one image; another process may use the same numbers.
            None, on every process: an image with label -1 has no positive.
        chunk_size: anchors in a tile.

    Returns:
        The loss over all anchors of the batch, by the convention above.

    Raises:
        ValueError: as in `sharded_image_text_label_loss`.

    Source: Khosla et al. (NeurIPS 2020), equation 2 over the global batch.
    """
    if not is_distributed():
        return supervised_contrastive_loss(features, labels, logit_scale, views=views, chunk_size=chunk_size)

    def check() -> None:
        check_pairs(features, features, logit_scale, None, chunk_size, may_be_empty=True)
        check_labels(labels, len(features), "both", 0.0)
        if views is not None and views.shape != labels.shape:
            raise ValueError(f"views must hold {len(labels)} integers, got shape {tuple(views.shape)}")

    batch = GlobalBatch(features, features, check)
    columns = [labels]
    if views is not None:
        rank, world = rank_and_world()
        columns.append(views * world + rank)
    labels, *views = batch.gather_integers(*columns)
    partial = supervised_contrastive_loss(
        batch.gather_texts(features),
        labels,
        logit_scale,
        views=views[0] if views else None,
        rows=batch.own_pairs(),
        chunk_size=chunk_size,
    )
    return mean_gradient(sum_over_ranks(partial), partial)


def _losses(
    student: Vectors,
    labels: Tensor | None,
    teacher: Vectors | None,
    text_index: Tensor | None,
    direction: str,
    label_smoothing: float,
    chunk_size: int | None,
) -> tuple[Tensor, ...]:
    """The label loss if there are labels, then the distillation loss if there is a teacher."""

    def check() -> None:
        _check(student, labels, teacher, text_index, direction, label_smoothing, chunk_size)

    batch = GlobalBatch(*student[:2], check)
    index, *all_labels = batch.gather_integers(batch.global_index(text_index), *([] if labels is None else [labels]))
    with full_precision(student[0]):
        queries, keys = scaled_vectors(student[0], batch.gather_texts(student[1]), student[2], batch.dtype)
        multiplicity = text_multiplicity(keys, index)
        own_sums = [log_sums(queries, keys, multiplicity, chunk_size)]
        if teacher is not None:
            frozen = _frozen_vectors(teacher, batch)
            own_sums.append(log_sums(*frozen, multiplicity, chunk_size))
        all_columns = log_add_exp_over_ranks(torch.stack([columns for _, columns in own_sums]))
        rows, columns = log_sums_with_gradient(queries, keys, multiplicity, own_sums[0][0], all_columns[0], chunk_size)
        # of each loss, what this process adds to a sum over rows, and the sum over columns that all processes know
        own, shared = [], []
        if labels is not None:
            weight, columns_weight = DIRECTIONS[direction]
            first = batch.first_pair
            target = target_logits(queries, keys, multiplicity, all_labels[0], index, label_smoothing, first)
            own.append(weight * rows.sum() - target)
            shared.append(columns_weight * (multiplicity * columns).sum())
        if teacher is not None:
            sums = own_sums[1][0], all_columns[1]
            agreement = expected_logits(*frozen, *sums, queries, keys, multiplicity, chunk_size)
            own.append(0.5 * (rows.sum() - agreement))
            shared.append(0.5 * (multiplicity * columns).sum())
        own, shared = torch.stack(own), torch.stack(shared)
        value = sum_over_ranks(own) + shared.detach()
        return (mean_gradient(value, own + shared) / len(index)).to(keys.dtype).unbind()


@torch.no_grad()
def _frozen_vectors(teacher: Vectors, batch: GlobalBatch) -> tuple[Tensor, Tensor]:
    """The teacher's queries [n, D'] of this process and keys [U, D'] of all, in the student's dtype."""
    images, texts, scale = teacher
    texts = gather_rows(texts.to(batch.dtype), batch.texts)
    queries, keys = scaled_vectors(images.to(batch.dtype), texts, scale)
    return queries, keys


def _check(
    student: Vectors,
    labels: Tensor | None,
    teacher: Vectors | None,
    text_index: Tensor | None,
    direction: str,
    label_smoothing: float,
    chunk_size: int | None,
) -> None:
    may_be_empty = is_distributed()
    check_pairs(*student, text_index, chunk_size, may_be_empty=may_be_empty)
    if labels is not None:
        check_labels(labels, len(student[0]), direction, label_smoothing)
    if teacher is not None:
        check_teacher(*student[:2], *teacher[:2])
        check_pairs(*teacher, text_index, chunk_size, may_be_empty=may_be_empty)
