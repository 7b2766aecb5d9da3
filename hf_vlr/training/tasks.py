"""Tasks: a model and its objective as one module, so that the loop knows neither.

A task maps a batch (see `loaders`) to `{"loss": scalar, ...}`; the other entries are logged. It does so in two halves,
features and their objective, so that a step can compute the features in pieces.
Letters: `N` pairs, `U` unique texts, `D` projection width.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from hf_vlr.modeling import UniCLModel
from hf_vlr.training.loaders import Batch
from hf_vlr.training.options import ModelOptions

Features = dict[str, Tensor]


def freeze_parts(model: UniCLModel, parts: Iterable[str]) -> list[nn.Module]:
    """Stop the gradient of the named parts; returns the frozen modules, which must also stay in eval mode.

    In eval mode a frozen tower's BatchNorm keeps its statistics and its dropout is off. A text pooler that the model
    does not read is frozen too: processes that share a model wait for every gradient.
    """
    frozen = []
    pooler = getattr(model.text_model, "pooler", None)
    if pooler is not None and model.config.text_pooling != "pooler":
        pooler.requires_grad_(False)
    for name in parts:
        part = getattr(model, name)
        if part is None:
            continue
        part.requires_grad_(False)
        if isinstance(part, nn.Module):
            frozen.append(part)
    return frozen


def image_features(model: UniCLModel, batch: Batch) -> Tensor:
    """Projected image features [N, D], from pictures or from states of the frozen tower."""
    if "vision_states" in batch:
        return model.visual_projection(batch["vision_states"])
    return model.get_image_features(batch["pixel_values"])


def text_features(model: UniCLModel, batch: Batch) -> Tensor:
    """Projected text features [U, D], from tokens or from states of the frozen tower."""
    if "text_states" in batch:
        return model.text_projection(batch["text_states"])
    return model.get_text_features(batch["input_ids"], batch["attention_mask"], batch.get("token_type_ids"))


def real(batch: Batch, value: Tensor) -> Tensor:
    """The rows of a batch's tensor; none of a batch that only stands in for one, graph and type kept."""
    return value[:0] if "blank" in batch else value


class Task(nn.Module):
    """What the loop asks of a task: a loss per batch, frozen parts in eval mode, a hook after each step.

    model: what is trained; encoder: the dual encoder in it; idle: its parts that this task's loss does not reach.
    """

    # whether the loss is a sum over images, so that pieces of a batch need not know of each other
    separable = False

    def __init__(self, model: nn.Module, encoder: UniCLModel, options: ModelOptions, idle: Sequence[str] = ()) -> None:
        super().__init__()
        self.model = model
        # in tuples, so not registered: they are already part of the model
        self._frozen = (freeze_parts(encoder, [*options.freeze, *idle]),)
        self._encoder = (encoder,)
        self.max_log_scale = math.log(options.max_logit_scale)
        self.progress = 0.0

    def encode(self, batch: Batch) -> Features:
        """What the trained towers make of the images and texts in a batch, or in a piece of one; with gradient."""
        raise NotImplementedError

    def observe(self, batch: Batch) -> Features:
        """What else the objective needs of them, by name, without gradient."""
        return {}

    def objective(self, features: Features, seen: Features, batch: Batch) -> dict[str, Tensor]:
        """`{"loss": scalar, ...}` of this process's features.

        Its mean over processes is the loss of the global batch, and so are the gradients' means.
        """
        raise NotImplementedError

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.objective(self.encode(batch), self.observe(batch), batch)

    def start_epoch(self, epoch: int, batch: int) -> None:
        """Called before the batches of an epoch, from `batch` on where a run is resumed within it."""

    def train(self, mode: bool = True) -> "Task":
        super().train(mode)
        for module in self._frozen[0]:
            module.eval()
        return self

    @torch.no_grad()
    def after_step(self, progress: float = 0.0) -> None:
        """Called once the optimiser has moved the parameters; `progress` is the part of the training that is done.

        The inverse temperature stays within its bound.
        """
        self.progress = progress
        scale = self._encoder[0].logit_scale
        if scale.requires_grad:
            scale.clamp_(max=self.max_log_scale)
