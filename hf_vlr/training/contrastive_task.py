"""The objectives of stage 1: contrasts between images and texts, between images, and what they are compared with.

Letters: `N` pairs over all processes, `n` of this one, `U` unique texts, `C` classes, `D` projection width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hf_vlr.distributed import gather_integers, rank_and_world
from hf_vlr.modeling import UniCLModel
from hf_vlr.sharded_contrast import (
    sharded_distilled_contrast,
    sharded_image_text_label_loss,
    sharded_supervised_contrastive_loss,
    sharded_unified_sigmoid_loss,
)
from hf_vlr.training.loaders import Batch
from hf_vlr.training.options import LossOptions, ModelOptions
from hf_vlr.training.tasks import Features, Task, image_features, real, text_features

# SigLIP's start (Zhai et al., ICCV 2023, §3.2): most of the N x N answers are "no"
SIGMOID_BIAS = -10.0
TEXT_PARTS = ("text_model", "text_projection")


class ContrastiveTask(Task):
    """Image-text-label contrast (UniCL) with label smoothing and distillation (VL-LTR's CVLP), or another objective.

    L = (1 − β) L_objective + β L_distil, over the global batch. The teacher is a frozen copy of the model a run
    started from. Objectives (`loss.objective`):

    * `unicl`: positives are all pairs of a class; `clip`: the pair alone, whatever its class;
    * `siglip`: as unicl, each of the N x N similarities judged by a sigmoid with a trained bias;
    * `supcon`: between two views of the images, without texts (Khosla et al., NeurIPS 2020);
    * `multi-task`: cross-entropy of a linear classifier on the labelled rows, and `clip` between the image-text pairs,
      or between all rows where the training data has no such pairs (UniCL, Table 6).

    num_classes: for the linear classifier. has_pairs: whether the training data has image-text pairs.
    """

    def __init__(
        self,
        model: UniCLModel,
        options: ModelOptions,
        loss: LossOptions,
        teacher: UniCLModel | None = None,
        *,
        num_classes: int = 0,
        has_pairs: bool = False,
    ) -> None:
        super().__init__(model, model, options, TEXT_PARTS if loss.objective == "supcon" else ())
        self.loss, self.has_pairs = loss, has_pairs
        self.speaks = loss.objective != "supcon"
        # not registered: a teacher is neither trained nor saved with the model
        self._teacher = (teacher.eval().requires_grad_(False) if teacher is not None else None,)
        self.classifier = None
        if loss.objective == "multi-task":
            self.classifier = nn.Linear(model.config.projection_dim, num_classes)
        if loss.objective == "siglip":
            give_bias(model)
        self._contrasts: dict[str, Callable[..., dict[str, Tensor]]] = {
            "unicl": self._labelled,
            "clip": self._paired,
            "siglip": self._judged,
            "supcon": self._between_images,
            "multi-task": self._multi_task,
        }

    def encode(self, batch: Batch) -> Features:
        return self._features(self.model, batch)

    @torch.no_grad()
    def observe(self, batch: Batch) -> Features:
        teacher = self._teacher[0]
        if teacher is None:
            return {}
        teacher.to(self.model.device)
        return self._features(teacher, batch)

    def _features(self, model: UniCLModel, batch: Batch) -> Features:
        features = {}
        if "pixel_values" in batch or "vision_states" in batch:
            features["images"] = real(batch, image_features(model, batch))
        for key, name in (("second_pixel_values", "pixel_values"), ("second_vision_states", "vision_states")):
            if key in batch:
                features["second"] = real(batch, image_features(model, {name: batch[key]}))
        if self.speaks and ("input_ids" in batch or "text_states" in batch):
            features["texts"] = real(batch, text_features(model, batch))
        return features

    def objective(self, features: Features, seen: Features, batch: Batch) -> dict[str, Tensor]:
        scale = self.model.logit_scale.exp()
        parts = self._contrasts[self.loss.objective](features, seen, batch, scale)
        return parts | {"logit_scale": scale.detach()}

    def _labelled(self, features: Features, seen: Features, batch: Batch, scale: Tensor) -> dict[str, Tensor]:
        return self._contrast(features, seen, real(batch, batch["labels"]), real(batch, batch["text_index"]), scale)

    def _paired(self, features: Features, seen: Features, batch: Batch, scale: Tensor) -> dict[str, Tensor]:
        alone = torch.full_like(batch["labels"], -1)
        return self._contrast(features, seen, real(batch, alone), real(batch, batch["text_index"]), scale)

    def _contrast(
        self, features: Features, seen: Features, labels: Tensor, index: Tensor, scale: Tensor
    ) -> dict[str, Tensor]:
        student = (features["images"], features["texts"], labels, scale)
        settings = {
            "text_index": index,
            "direction": self.loss.direction,
            "label_smoothing": self.loss.label_smoothing,
        }
        teacher, beta = self._teacher[0], self.loss.distillation
        if teacher is None:
            loss = sharded_image_text_label_loss(*student, **settings)
            return {"loss": loss, "contrast": loss.detach()}
        taught = (seen["images"], seen["texts"], teacher.logit_scale.exp())
        contrast, distilled = sharded_distilled_contrast(*student, *taught, **settings)
        loss = (1 - beta) * contrast + beta * distilled
        return {"loss": loss, "contrast": contrast.detach(), "distillation": distilled.detach()}

    def _judged(self, features: Features, seen: Features, batch: Batch, scale: Tensor) -> dict[str, Tensor]:
        labels, index = real(batch, batch["labels"]), real(batch, batch["text_index"])
        bias = self.model.logit_bias
        loss = sharded_unified_sigmoid_loss(
            features["images"], features["texts"], labels, scale, bias, text_index=index
        )
        return {"loss": loss, "contrast": loss.detach(), "logit_bias": bias.detach()}

    def _between_images(self, features: Features, seen: Features, batch: Batch, scale: Tensor) -> dict[str, Tensor]:
        labels = real(batch, batch["labels"])
        image = torch.arange(len(labels), device=labels.device)
        both = torch.cat([features["images"], features["second"]])
        loss = sharded_supervised_contrastive_loss(both, labels.repeat(2), scale, views=image.repeat(2))
        return {"loss": loss, "contrast": loss.detach()}

    def _multi_task(self, features: Features, seen: Features, batch: Batch, scale: Tensor) -> dict[str, Tensor]:
        labels, index = real(batch, batch["labels"]), real(batch, batch["text_index"])
        labelled = labels >= 0
        logits = self.classifier(features["images"]).float()
        chosen = ~labelled if self.has_pairs else torch.ones_like(labelled)
        counts = gather_integers([int(labelled.sum()), int(chosen.sum())], labels.device)
        classified, contrasted = (sum(column) for column in zip(*counts, strict=True))
        # a sum over the rows of all processes, so that each counts the same
        head = cross_entropy(logits[labelled], labels[labelled], reduction="sum")
        head = head * rank_and_world()[1] / max(1, classified)
        contrast = 0.0 * (features["images"].sum() + features["texts"].sum() + scale)
        if contrasted:
            rows = {"images": features["images"][chosen], "texts": features["texts"]}
            alone = torch.full_like(labels[chosen], -1)
            contrast = contrast + self._contrast(rows, seen, alone, index[chosen], scale)["loss"]
        weighted = head + self.loss.contrast_weight * contrast
        return {"loss": weighted, "contrast": contrast.detach(), "classifier": head.detach()}


def give_bias(model: UniCLModel) -> None:
    """The trained bias of the sigmoid objective, in a model that may have none."""
    if model.logit_bias is None:
        model.config.logit_bias_init_value = SIGMOID_BIAS
        model.logit_bias = nn.Parameter(torch.tensor(SIGMOID_BIAS, device=model.device))
    model.logit_bias.requires_grad_(True)
