"""Anchor sentence selection: which sentences of each class become its anchors in stage 2.

Shapes: S sentences, K images, C classes, M anchors of a class, D width. `logit_scale` is the inverse
temperature τ itself, not its logarithm.

A sentence is good where it finds the images of its class among all images. Which images it is measured on
is the caller's choice and should be training images: validation labels would leak into the head. Source:
VL-LTR (Tian et al., ECCV 2022), section on anchor sentence selection.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_vlr.errors import UserError
from hf_vlr.modeling.products import inner_products
from hf_vlr.randomness import numpy_generator

# Images whose similarities with a chunk of sentences stay in a processor's cache, or keep an accelerator busy.
IMAGES_CPU, IMAGES_ACCELERATOR = 4096, 1 << 18


@dataclass(frozen=True)
class AnchorSelection:
    """`index` [C, M] int64: corpus positions, best first, -1 as padding; `mask` [C, M] bool: True = real."""

    index: Tensor
    mask: Tensor


@torch.no_grad()
def score_sentences(
    text_features: Tensor,
    text_labels: Tensor,
    image_features: Tensor,
    image_labels: Tensor,
    logit_scale: float | Tensor,
    chunk_size: int = 256,
) -> Tensor:
    """Cross-entropy of each sentence with the images of its class, float32 [S], in nats; lower is better.

    With t, I_k normalised, c the class of t and K_c its images:

        ce_t = −(1/|K_c|) Σ_{k∈K_c} log softmax_k(τ t·I_k) = log Σ_k exp(τ t·I_k) − τ t·mean_{k∈K_c} I_k.

    `text_features` [S, D] and `image_features` [K, D] on one device, normalised here, in float32 at least;
    labels [S] and [K] int64, >= 0. `chunk_size` sentences meet a block of the images at a time (a few thousand
    on a CPU), so [S, K] never exists. A sentence whose class has no image scores +inf. Raises `UserError`
    without images, for shapes that do not fit, negative labels and NaN features.
    """
    _check_features(text_features, text_labels, "text")
    _check_features(image_features, image_labels, "image")
    if len(image_features) == 0:
        raise UserError("there are no images to score sentences on: give training images with labels")
    dtype = torch.promote_types(torch.float32, torch.promote_types(text_features.dtype, image_features.dtype))
    images = normalize(image_features.to(dtype), dim=-1)
    num_classes = 1 + max(int(labels.max()) for labels in (text_labels, image_labels) if len(labels))
    means, counts = _class_means(images, image_labels, num_classes)
    text_labels = text_labels.to(images.device)
    chunks = zip(text_features.split(chunk_size), text_labels.split(chunk_size), strict=True)
    scores = []
    # A caller's autocast would round similarities to 8 bits, and so make ties of different sentences.
    with torch.autocast(images.device.type, enabled=False):
        for features, labels in chunks:
            texts = normalize(features.to(dtype), dim=-1) * float(logit_scale)
            ce = _log_sum_exp(texts, images) - (texts * means[labels]).sum(dim=1)
            scores.append(ce.masked_fill(counts[labels] == 0, torch.inf).float())
    result = torch.cat(scores)
    if result.isnan().any():
        raise UserError("text or image features are NaN or infinite: check the stage-1 checkpoint")
    return result


def score_sentences_reference(
    text_features: Tensor,
    text_labels: Tensor,
    image_features: Tensor,
    image_labels: Tensor,
    logit_scale: float | Tensor,
) -> Tensor:
    """`score_sentences` straight from its definition, one sentence at a time."""
    images = normalize(image_features, dim=-1)
    scores = torch.full((len(text_features),), torch.inf)
    for position, (feature, label) in enumerate(zip(normalize(text_features, dim=-1), text_labels, strict=True)):
        own = image_labels == label
        if own.any():
            scores[position] = -torch.log_softmax(logit_scale * (images @ feature), dim=0)[own].mean()
    return scores


def unscored_order(text_labels: Tensor, selection: str, seed: int) -> Tensor:
    """Ranks [S], float64 on the CPU, in place of scores where no image decides (VL-LTR's ablation of the selection).

    `first`: as the corpus lists them. `random`: each class's sentences in an order that depends on the seed, the class
    and their number alone. Raises `UserError` for another selection.
    """
    ranks = torch.arange(len(text_labels), dtype=torch.float64)
    if selection == "first":
        return ranks
    if selection != "random":
        raise UserError(f"anchors.selection={selection} is no order of its own; there are: first, random")
    order = torch.argsort(_cpu(text_labels), stable=True)
    labels, sizes = _cpu(text_labels).unique(return_counts=True)
    for label, members in zip(labels.tolist(), order.split(sizes.tolist()), strict=True):
        drawn = numpy_generator(seed, 0, label, "anchor sentences").permutation(len(members))
        ranks[members] = torch.from_numpy(drawn).double()
    return ranks


def select_anchors(
    scores: Tensor,
    text_labels: Tensor,
    num_classes: int,
    num_anchors: int,
    texts: Sequence[str] | None = None,
) -> AnchorSelection:
    """The `num_anchors` lowest-scored sentences of each class, best first; a shorter class is padded.

    `scores` [S] (+inf is allowed and comes last), `text_labels` [S]. Of equal scores the earlier sentence
    wins. With `texts` [S] a text that repeats within a class is taken once. The result is on the CPU.
    Raises `UserError` for a class without a sentence, labels outside 0..C-1, NaN scores, lengths that
    differ and `num_anchors` < 1.
    """
    scores, labels = _cpu(scores), _cpu(text_labels)
    if num_anchors < 1:
        raise UserError(f"num_anchors is {num_anchors}: keep at least one sentence for each class")
    if not len(scores) == len(labels) == len(labels if texts is None else texts):
        raise UserError("sentence scores, labels and texts differ in length: score the whole corpus once")
    if scores.isnan().any():
        raise UserError(f"the score of sentence {int(scores.isnan().nonzero()[0])} is NaN: score the corpus again")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise UserError(f"a sentence has a label outside 0..{num_classes - 1}: check the class-text corpus")
    order = torch.argsort(scores, stable=True)
    order = order[torch.argsort(labels[order], stable=True)]
    if texts is not None:
        order = _without_repeats(order, labels, texts)
    sizes = torch.bincount(labels[order], minlength=num_classes)
    if bool((sizes == 0).any()):
        empty = (sizes == 0).nonzero().flatten().tolist()
        raise UserError(f"class {empty[0]} has no sentence ({len(empty)} such): add a text for it to the corpus")
    rank = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[labels[order]]
    kept = rank < num_anchors
    index = torch.full((num_classes, num_anchors), -1, dtype=torch.int64)
    index[labels[order][kept], rank[kept]] = order[kept]
    return AnchorSelection(index=index, mask=index >= 0)


def gather_anchor_features(text_features: Tensor, selection: AnchorSelection) -> Tensor:
    """Features [S, D] of the chosen sentences as they are, [C, M, D], zeros where there is padding."""
    index, mask = selection.index.to(text_features.device), selection.mask.to(text_features.device)
    return text_features[index.clamp(min=0)].masked_fill(~mask.unsqueeze(-1), 0)


def limit_images_per_class(labels: npt.ArrayLike, limit: int, seed: int) -> npt.NDArray[np.int64]:
    """Positions, ascending, of at most `limit` images of each class, drawn without replacement.

    `labels` [K] integers; images with label -1 belong to no class and are left out. A class's draw depends
    on the seed, the class and its number of images alone. Raises `UserError` for a limit below 1.
    """
    if limit < 1:
        raise UserError(f"images per class is {limit}: sentences need at least one image to be scored on")
    labels = np.asarray(labels)
    chosen = [np.empty(0, dtype=np.int64)]
    order = np.argsort(labels, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if len(members) == 0 or labels[members[0]] < 0:
            continue
        generator = numpy_generator(seed, 0, int(labels[members[0]]), "anchor images")
        chosen.append(members if len(members) <= limit else generator.choice(members, limit, replace=False))
    return np.sort(np.concatenate(chosen))


def _log_sum_exp(texts: Tensor, images: Tensor) -> Tensor:
    """log Σ_k exp(t·I_k) [n] of texts [n, D] over all images [K, D], a block of these at a time."""
    total = texts.new_full((len(texts),), -torch.inf)
    for block in images.split(IMAGES_CPU if images.device.type == "cpu" else IMAGES_ACCELERATOR):
        total = torch.logaddexp(total, torch.logsumexp(inner_products(block, texts), dim=0))
    return total


def _class_means(images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mean image [C, D] and number of images [C] of each class; the mean of none is 0."""
    # On the CPU, because index_add_ on CUDA adds in an order that changes from run to run.
    labels, features = _cpu(labels), _cpu(images)
    counts = torch.bincount(labels, minlength=num_classes)
    sums = torch.zeros(num_classes, features.shape[1], dtype=features.dtype).index_add_(0, labels, features)
    means = sums / counts.clamp(min=1).unsqueeze(1)
    return means.to(images.device), counts.to(images.device)


def _without_repeats(order: Tensor, labels: Tensor, texts: Sequence[str]) -> Tensor:
    """Drop from `order` the sentences whose class already has their text."""
    first: dict[tuple[int, str], int] = {}
    for position, label in zip(order.tolist(), labels[order].tolist(), strict=True):
        first.setdefault((label, texts[position]), position)
    return torch.tensor(list(first.values()), dtype=torch.int64)


def _check_features(features: Tensor, labels: Tensor, noun: str) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        shapes = f"{noun} features {tuple(features.shape)} and labels {tuple(labels.shape)}"
        raise UserError(f"{shapes} do not fit: give [n, D] and [n]")
    if len(labels) and int(labels.min()) < 0:
        raise UserError(f"{noun} label {int(labels.min())} is negative: only class {noun}s choose anchors")


def _cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()
