"""Tasks: a model and its objective as one module, so that the loop knows neither.

A task maps a batch (see `loaders`) to `{"loss": scalar, ...}`; the other entries are logged.
Letters: `N` pairs, `U` unique texts, `C` classes, `D` projection width.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hf_vlr.distributed import gather_rows, share_of_rows
from hf_vlr.modeling import UniCLModel, VLLTRForImageClassification, distillation_loss, image_text_label_loss
from hf_vlr.training.loaders import Batch
from hf_vlr.training.options import LossOptions, ModelOptions


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


class Task(nn.Module):
    """What the loop asks of a task: a loss per batch, frozen parts in eval mode, a hook after each step.

    model: what is trained; encoder: the dual encoder in it; idle: its parts that this task's loss does not reach.
    """

    def __init__(self, model: nn.Module, encoder: UniCLModel, options: ModelOptions, idle: Sequence[str] = ()) -> None:
        super().__init__()
        self.model = model
        # in tuples, so not registered: they are already part of the model
        self._frozen = (freeze_parts(encoder, [*options.freeze, *idle]),)
        self._encoder = (encoder,)
        self.max_log_scale = math.log(options.max_logit_scale)

    def train(self, mode: bool = True) -> "Task":
        super().train(mode)
        for module in self._frozen[0]:
            module.eval()
        return self

    @torch.no_grad()
    def after_step(self) -> None:
        """Called once the optimiser has moved the parameters: the inverse temperature stays within its bound."""
        scale = self._encoder[0].logit_scale
        if scale.requires_grad:
            scale.clamp_(max=self.max_log_scale)


class ContrastiveTask(Task):
    """Image-text-label contrast (UniCL), with label smoothing and distillation (VL-LTR's CVLP).

    L = (1 − β) L_contrast + β L_distil, over the global batch. The teacher is a frozen copy of the model a run
    started from.
    """

    def __init__(
        self, model: UniCLModel, options: ModelOptions, loss: LossOptions, teacher: UniCLModel | None = None
    ) -> None:
        super().__init__(model, model, options)
        self.loss = loss
        # not registered: a teacher is neither trained nor saved with the model
        self._teacher = (teacher.eval().requires_grad_(False) if teacher is not None else None,)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images, texts, index = self._global_features(self.model, batch)
        labels = gather_rows(batch["labels"])
        scale = self.model.logit_scale.exp()
        loss = image_text_label_loss(
            images,
            texts,
            labels,
            scale,
            text_index=index,
            direction=self.loss.direction,
            label_smoothing=self.loss.label_smoothing,
        )
        parts = {"contrast": loss.detach(), "logit_scale": scale.detach()}
        teacher, beta = self._teacher[0], self.loss.distillation
        if teacher is not None:
            with torch.no_grad():
                teacher_images, teacher_texts, _ = self._global_features(teacher.to(images.device), batch)
                teacher_scale = teacher.logit_scale.exp()
            distilled = distillation_loss(
                images, texts, scale, teacher_images, teacher_texts, teacher_scale, text_index=index
            )
            parts["distillation"] = distilled.detach()
            loss = (1 - beta) * loss + beta * distilled
        return {"loss": loss, **parts}

    def _global_features(self, model: UniCLModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Image features [N, D] and text features [U, D] of all ranks, and each pair's text [N]."""
        images = gather_rows(image_features(model, batch))
        local = text_features(model, batch)
        index = gather_rows(batch["text_index"] + text_offset(local))
        return images, gather_rows(local), index


def text_offset(local: Tensor) -> int:
    """How many texts [U_r, D] the ranks before this one hold."""
    own = torch.tensor([len(local)], device=local.device)
    counts = gather_rows(own)
    rank = torch.distributed.get_rank() if len(counts) > 1 else 0
    return int(counts[:rank].sum())


class RecognitionTask(Task):
    """Recognition (VL-LTR stage 2): w_v CE(visual, y) + w_l CE(language, y), or the visual branch alone.

    With `logit_adjustment` τ both branches are trained on logits + τ log π, π the training frequencies (Menon et al.,
    ICLR 2021); predictions use the bare logits. The anchors are fixed, so the text tower takes no part; neither does
    the logit scale without them.
    """

    def __init__(
        self,
        model: VLLTRForImageClassification,
        options: ModelOptions,
        loss: LossOptions,
        class_counts: Tensor,
    ) -> None:
        idle = ["text_model", "text_projection"] + ([] if model.config.num_anchors else ["logit_scale"])
        super().__init__(model, model.vlltr, options, idle)
        self.loss = loss
        prior = class_counts.double().clamp_min(1) / class_counts.sum()
        self.register_buffer("adjustment", (loss.logit_adjustment * prior.log()).float(), persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        output = self.model(image_features=image_features(self.model.vlltr, batch))
        labels, smoothing = batch["labels"], self.loss.label_smoothing
        visual = cross_entropy(output.visual_logits + self.adjustment, labels, label_smoothing=smoothing)
        parts = {"visual": visual.detach()}
        loss = self.loss.visual_weight * visual
        if output.language_logits is not None:
            language = cross_entropy(output.language_logits + self.adjustment, labels, label_smoothing=smoothing)
            parts["language"] = language.detach()
            loss = loss + self.loss.language_weight * language
        # processes may hold different numbers of rows; the mean over them is to be the mean over rows
        share = share_of_rows(labels)
        return {name: share * part for name, part in ({"loss": loss} | parts).items()}
