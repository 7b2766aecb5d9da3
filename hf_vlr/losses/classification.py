"""Losses of a classifier under a long-tailed distribution: of one row, and how rows are weighed and averaged.

Letters: `B` rows, `C` classes, z [B, C] logits, y labels, n_c training images of class c, π_c = n_c / Σ n.

What the logits are matters to the margin alone. Cross-entropy, focal loss and prior adjustment take logits of any size.
A margin is a length: it means something where the logits are scale x cosine, of unit features with unit class vectors
(a cosine classifier; VL-LTR's language branch, whose scale is its learned τ). Pass those logits, not the cosines, and
the same number as `scale`. A linear or MLP head of unbounded logits can grow out of any margin: to train it with LDAM,
normalise its last features and weights, here and when it predicts, as Cao et al. do with a scale of 30.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

KINDS = ("cross-entropy", "focal", "ldam")
WEIGHTS = ("none", "inverse", "class-balanced")


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    kind: str = "cross-entropy",
    adjustment: Tensor | None = None,
    class_weights: Tensor | None = None,
    focal_gamma: float = 2.0,
    margins: Tensor | None = None,
    scale: float | Tensor = 1.0,
    label_smoothing: float = 0.0,
    other_labels: Tensor | None = None,
    mix: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Σ_i w_y L(z_i + adjustment, y_i) over the rows with a class, or that over their number.

    With t = (1 − ε) onehot(y) + ε/C, ε the label smoothing, and p = softmax(z):
    ``cross-entropy`` L = −Σ_c t_c log p_c; ``focal`` L = −Σ_c t_c (1 − p_c)^γ log p_c;
    ``ldam`` cross-entropy of z − scale m_y onehot(y), m_y the margin of the row's class.
    Under mixup or CutMix a row has two labels: λ w_y L(z, y) + (1 − λ) w_y' L(z, y').

    Args:
        logits: [B, C], unnormalised log-probabilities in nats; for ``ldam`` scale x cosine (see above).
        labels: [B] integers; a class in [0, C), or -1 for a row without one, which counts nowhere.
        kind: ``cross-entropy``, ``focal`` or ``ldam``.
        adjustment: [C], added to the logits. τ log π is logit adjustment (Menon et al., ICLR 2021, section 5), with
            τ = 1 balanced softmax (Ren et al., NeurIPS 2020, theorem 1). It has no place in prediction.
        class_weights: [C] >= 0, see the function of that name. Smoothing does not spread them: w_y is the row's.
        focal_gamma: γ >= 0; 0 is cross-entropy.
        margins: [C] >= 0, for ``ldam`` alone, which needs them; see `ldam_margins`.
        scale: how many nats of logit one unit of margin is: s where the logits are s x cosine.
        label_smoothing: ε in [0, 1).
        other_labels: [B] y', -1 in the same rows as `labels`; together with `mix`.
        mix: [B] λ in [0, 1], the weight of `labels` against `other_labels`.
        reduction: ``sum``, or ``mean`` over the rows with a class (0 if there are none).

    Returns:
        A scalar in nats; float32, or float64 for float64 logits. The divisor of ``mean`` is a number of rows, not their
        weight as in PyTorch's weighted cross-entropy: means over parts of a batch, weighed by their rows, are then
        the mean over the batch, and weights act on a single row too.

    Raises:
        ValueError: a shape, label, kind or number outside the above.

    Source: focal loss of Lin et al. (ICCV 2017, equation 4) on a softmax; LDAM of Cao et al. (NeurIPS 2019, equations
    12 and 13); mixup of Zhang et al. (ICLR 2018) and CutMix of Yun et al. (ICCV 2019), as mixtures of losses.
    """
    _check(logits, labels, kind, adjustment, class_weights, margins, other_labels, mix)
    _check_numbers(focal_gamma, label_smoothing, reduction)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if adjustment is not None:
        logits = logits + adjustment.to(logits.dtype)

    def row_losses(targets: Tensor) -> Tensor:
        has_class, targets = targets >= 0, targets.clamp(min=0).long()
        if kind == "focal":
            losses = _focal(logits, targets, focal_gamma, label_smoothing)
        elif kind == "ldam":
            losses = cross_entropy(
                _with_margin(logits, targets, scale * margins.to(logits.dtype)),
                targets,
                reduction="none",
                label_smoothing=label_smoothing,
            )
        else:
            losses = cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
        weights = has_class.to(logits.dtype)
        return losses * (weights if class_weights is None else weights * class_weights.to(logits.dtype)[targets])

    losses = row_losses(labels)
    if other_labels is not None:
        share = mix.to(logits.dtype)
        losses = share * losses + (1.0 - share) * row_losses(other_labels)
    total = losses.sum()
    return total if reduction == "sum" else total / (labels >= 0).sum().clamp(min=1)


def classification_loss_reference(
    logits: Tensor,
    labels: Tensor,
    *,
    kind: str = "cross-entropy",
    adjustment: Tensor | None = None,
    class_weights: Tensor | None = None,
    focal_gamma: float = 2.0,
    margins: Tensor | None = None,
    scale: float | Tensor = 1.0,
    label_smoothing: float = 0.0,
    other_labels: Tensor | None = None,
    mix: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """`classification_loss` by its definition, one row and one label at a time."""
    classes, total = logits.shape[1], logits.new_zeros(())
    for row in range(len(logits)):
        terms = [(labels[row], 1.0 if mix is None else mix[row])]
        if other_labels is not None:
            terms.append((other_labels[row], 1.0 - mix[row]))
        for label, share in terms:
            if label < 0:
                continue
            z, hard = logits[row], one_hot(label.long(), classes).to(logits.dtype)
            if adjustment is not None:
                z = z + adjustment
            if kind == "ldam":
                z = z - scale * margins[label] * hard
            p = z.softmax(0)
            per_class = -((1 - p) ** focal_gamma if kind == "focal" else 1.0) * z.log_softmax(0)
            soft = (1 - label_smoothing) * hard + label_smoothing / classes
            weight = 1.0 if class_weights is None else class_weights[label]
            total = total + share * weight * (soft * per_class).sum()
    return total if reduction == "sum" else total / max(1, int((labels >= 0).sum()))


def class_weights(counts: Tensor, kind: str = "class-balanced", beta: float = 0.9999) -> Tensor:
    """Weights w [C] of the classes, such that a training image weighs 1 on average: Σ_c n_c w_c = Σ_c n_c.

    ``none``: w_c = 1; ``inverse``: w_c ∝ 1/n_c; ``class-balanced``: w_c ∝ (1 − β)/(1 − β^n_c), the inverse of the
    effective number of images. β = 0 is ``none``, β → 1 is ``inverse``.

    The mean is over images, not over classes, so that the step of an instance-sampled run keeps its size when weights
    come in midway (deferred re-weighting); PyTorch's weighted mean of a batch has the same expectation to first order.

    Args:
        counts: [C] training images of each class, >= 0, not all 0. A class without images weighs as much as the rarest
            class that has some.
        kind: ``none``, ``inverse`` or ``class-balanced``.
        beta: β in [0, 1).

    Returns:
        [C] float64, positive and finite.

    Raises:
        ValueError: counts, kind or β outside the above.

    Source: Cui et al., Class-Balanced Loss Based on Effective Number of Samples (CVPR 2019), section 4;
    the authors' weights have mean 1 over classes. Deferred: Cao et al. (NeurIPS 2019), algorithm 1.
    """
    if kind not in WEIGHTS:
        raise ValueError(f"kind must be one of {WEIGHTS}, got {kind!r}")
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"beta must lie in [0, 1), got {beta}")
    images, filled = _counts(counts)
    if kind == "inverse":
        weights = 1.0 / filled
    elif kind == "class-balanced" and beta > 0.0:
        # 1 − β^n without cancellation where β is near 1
        log_beta = torch.tensor(beta, dtype=torch.float64, device=filled.device).log()
        weights = -1.0 / torch.expm1(filled * log_beta)
    else:
        weights = torch.ones_like(filled)
    return weights * images.sum() / (images @ weights)


def class_weights_reference(counts: Tensor, kind: str = "class-balanced", beta: float = 0.9999) -> Tensor:
    """`class_weights` by its definition, class by class."""
    numbers = [int(n) for n in counts]
    rarest = min(n for n in numbers if n > 0)
    raw = {
        "none": lambda n: 1.0,
        "inverse": lambda n: 1.0 / n,
        "class-balanced": lambda n: (1.0 - beta) / (1.0 - beta**n),
    }[kind]
    weights = [raw(n or rarest) for n in numbers]
    mean = sum(n * w for n, w in zip(numbers, weights)) / sum(numbers)
    return torch.tensor([w / mean for w in weights], dtype=torch.float64)


def ldam_margins(counts: Tensor, max_margin: float = 0.5) -> Tensor:
    """Margins m_c = max_margin (n_min / n_c)^(1/4) [C] in cosines: the rarer a class, the wider.

    Args:
        counts: [C] training images of each class, >= 0, not all 0; n_min is the smallest that is not 0. A class without
            images has the margin of the rarest.
        max_margin: margin of the rarest class, >= 0.

    Returns:
        [C] float64 in (0, max_margin].

    Raises:
        ValueError: counts or margin outside the above.

    Source: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss (NeurIPS 2019), equation
    13, its constant chosen by the largest margin (0.5 in the authors' code).
    """
    if max_margin < 0.0:
        raise ValueError(f"max_margin must be at least 0, got {max_margin}")
    _, filled = _counts(counts)
    return max_margin * (filled.min() / filled) ** 0.25


def ldam_margins_reference(counts: Tensor, max_margin: float = 0.5) -> Tensor:
    """`ldam_margins` by its definition, class by class."""
    numbers = [int(n) for n in counts]
    rarest = min(n for n in numbers if n > 0)
    constant = max_margin * rarest**0.25
    return torch.tensor([constant / (n or rarest) ** 0.25 for n in numbers], dtype=torch.float64)


def _counts(counts: Tensor) -> tuple[Tensor, Tensor]:
    """The counts [C] as float64, and the same with the smallest count above 0 in place of 0."""
    images = counts.double()
    if images.ndim != 1 or not bool((images >= 0).all()) or not bool(images.isfinite().all()) or images.sum() == 0:
        raise ValueError("counts must be [C] numbers of images >= 0, not all 0")
    return images, torch.where(images > 0, images, images[images > 0].min())


def _focal(logits: Tensor, targets: Tensor, gamma: float, label_smoothing: float) -> Tensor:
    log_p = logits.log_softmax(1)
    losses = _focal_terms(log_p.gather(1, targets[:, None]), gamma).squeeze(1)
    if label_smoothing == 0.0:
        return losses
    return (1.0 - label_smoothing) * losses + label_smoothing * _focal_terms(log_p, gamma).mean(1)


def _focal_terms(log_p: Tensor, gamma: float) -> Tensor:
    """−(1 − p)^γ log p. At p = 1 the power's derivative has no bound for γ < 1, though that of the product is 0."""
    other = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
    return -other.pow(gamma) * log_p


def _with_margin(logits: Tensor, targets: Tensor, margins: Tensor) -> Tensor:
    return logits.scatter_add(1, targets[:, None], -margins[targets][:, None])


def _check(
    logits: Tensor,
    labels: Tensor,
    kind: str,
    adjustment: Tensor | None,
    class_weights: Tensor | None,
    margins: Tensor | None,
    other_labels: Tensor | None,
    mix: Tensor | None,
) -> None:
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must be [B, C], C not 0; got {tuple(logits.shape)}")
    rows, classes = logits.shape
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    if (margins is not None) != (kind == "ldam"):
        raise ValueError(f"margins go with kind='ldam' and with nothing else; got kind={kind!r}")
    for name, vector in (("adjustment", adjustment), ("class_weights", class_weights), ("margins", margins)):
        if vector is not None and tuple(vector.shape) != (classes,):
            raise ValueError(f"{name} must hold {classes} numbers, one a class; got shape {tuple(vector.shape)}")
    _check_labels("labels", labels, rows, classes)
    if (other_labels is None) != (mix is None):
        raise ValueError("other_labels and mix go together")
    if other_labels is None:
        return
    _check_labels("other_labels", other_labels, rows, classes)
    if bool(((labels < 0) != (other_labels < 0)).any()):
        raise ValueError("labels and other_labels must be -1 in the same rows")
    if tuple(mix.shape) != (rows,) or bool(((mix < 0) | (mix > 1)).any()):
        raise ValueError(f"mix must hold {rows} numbers in [0, 1]")


def _check_labels(name: str, labels: Tensor, rows: int, classes: int) -> None:
    if tuple(labels.shape) != (rows,) or labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} must hold {rows} integers, got {labels.dtype} {tuple(labels.shape)}")
    if rows == 0:
        return
    low, high = torch.stack(labels.aminmax()).tolist()
    if low < -1 or high >= classes:
        raise ValueError(f"{name} must be -1 or lie in [0, {classes}), got {low} to {high}")


def _check_numbers(focal_gamma: float, label_smoothing: float, reduction: str) -> None:
    if focal_gamma < 0.0:
        raise ValueError(f"focal_gamma must be at least 0, got {focal_gamma}")
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be sum or mean, got {reduction!r}")
