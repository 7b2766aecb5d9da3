"""AdamW by parameter groups, and a warm-up followed by a cosine."""

import math
from collections.abc import Callable

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from hf_vlr.errors import UserError
from hf_vlr.training.options import OptimOptions


def parameter_groups(model: nn.Module, options: OptimOptions) -> list[dict]:
    """Trainable parameters grouped by learning rate and weight decay.

    No decay for biases, norms and scalars (fewer than two dimensions). `lr_scales` maps a module's name (the longest
    prefix of whole names wins) to a factor on `lr`. Raises `UserError` when nothing is trainable or a name matches no
    parameter.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    used = set()
    for name, parameter in model.named_parameters():
        name = name.removeprefix("model.")  # of a task
        if not parameter.requires_grad:
            continue
        prefixes = [prefix for prefix in options.lr_scales if f"{name}.".startswith(f"{prefix}.")]
        used.update(prefixes)
        scale = options.lr_scales[max(prefixes, key=len)] if prefixes else 1.0
        decay = options.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    unknown = sorted(set(options.lr_scales) - used)
    if unknown:
        raise UserError(f"optim.lr_scales.{unknown[0]} names no trained module of this model")
    if not groups:
        raise UserError("nothing to train: every part of the model is in model.freeze")
    return [
        {"params": parameters, "lr": options.lr * scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


def build_optimizer(model: nn.Module, options: OptimOptions) -> AdamW:
    """AdamW over `parameter_groups`, in its fused form."""
    return AdamW(
        parameter_groups(model, options),
        lr=options.lr,
        betas=tuple(options.betas),
        eps=options.eps,
        fused=True,
    )


def learning_rate(options: OptimOptions, total_steps: int) -> Callable[[int], float]:
    """Factor on the peak rate at each step: linear warm-up, then a half cosine down to `min_lr_ratio`."""
    warmup = round(options.warmup_fraction * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, total_steps - warmup)
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
        return options.min_lr_ratio + (1.0 - options.min_lr_ratio) * cosine

    return factor


def build_schedule(optimizer: AdamW, options: OptimOptions, total_steps: int) -> LambdaLR:
    """`learning_rate` as a torch schedule; step it once per optimiser step."""
    return LambdaLR(optimizer, learning_rate(options, total_steps))
