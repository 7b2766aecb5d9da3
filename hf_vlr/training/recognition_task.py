"""The objective of stage 2: two classifiers, one that sees and one that is guided by language.

Letters: `N` images over all processes, `B` of this one, `C` classes, `D` projection width.
"""

from typing import Any

import torch
from torch import Tensor

from hf_vlr.distributed import rank_and_world
from hf_vlr.errors import UserError
from hf_vlr.losses.classification import class_weights, classification_loss, ldam_margins
from hf_vlr.modeling import VLLTRForImageClassification
from hf_vlr.modeling.modeling_vlltr import CosineClassifier
from hf_vlr.training.loaders import Batch
from hf_vlr.training.options import LossOptions, ModelOptions
from hf_vlr.training.tasks import Features, Task, image_features, real


class RecognitionTask(Task):
    """Recognition (VL-LTR stage 2): w_v L(visual, y) + w_l L(language, y), or the visual branch alone.

    L is `loss.classification`, by default cross-entropy. With `logit_adjustment` τ both branches are trained on
    logits + τ log π, π the training frequencies (Menon et al., ICLR 2021); predictions use the bare logits. Weights of
    the classes (`loss.reweight`) come in after the part `reweight_after` of the training. The anchors are fixed, so
    the text tower takes no part; neither does the logit scale without them.
    """

    separable = True

    def __init__(
        self,
        model: VLLTRForImageClassification,
        options: ModelOptions,
        loss: LossOptions,
        class_counts: Tensor,
    ) -> None:
        idle = ["text_model", "text_projection"] + ([] if model.config.num_anchors else ["logit_scale"])
        super().__init__(model, model.vlltr, options, idle)
        self.terms = BranchLosses(model, loss, class_counts)

    def encode(self, batch: Batch) -> Features:
        return {"images": real(batch, image_features(self.model.vlltr, batch))}

    def objective(self, features: Features, seen: Features, batch: Batch) -> dict[str, Tensor]:
        return self.terms(self.model, features["images"], batch, self.progress)


class BranchLosses(torch.nn.Module):
    """The losses of both branches, each a mean over the images of all processes.

    Raises `UserError` for a margin on logits that are no cosines, in which it would mean nothing.
    """

    def __init__(self, model: VLLTRForImageClassification, loss: LossOptions, class_counts: Tensor) -> None:
        super().__init__()
        if loss.classification == "ldam" and not isinstance(model.head.visual, CosineClassifier):
            raise UserError("loss.classification=ldam needs margins between cosines: set model.visual_head=cosine")
        self.loss = loss
        prior = class_counts.double().clamp_min(1) / class_counts.sum()
        self.register_buffer("adjustment", (loss.logit_adjustment * prior.log()).float(), persistent=False)
        weights = class_weights(class_counts, loss.reweight, loss.reweight_beta)
        self.register_buffer("class_weights", weights.float(), persistent=False)
        margins = ldam_margins(class_counts, loss.ldam_margin) if loss.classification == "ldam" else None
        self.register_buffer("margins", None if margins is None else margins.float(), persistent=False)

    def forward(
        self, model: VLLTRForImageClassification, images: Tensor, batch: Batch, progress: float
    ) -> dict[str, Tensor]:
        """`{"loss", "visual", "language"}` of projected image features [B, D]; the mean over processes is the value."""
        output = model(image_features=images)
        settings = self._settings(batch, progress)
        scale = model.config.visual_scale
        visual = classification_loss(output.visual_logits, scale=scale, **settings)
        parts, loss = {"visual": visual.detach()}, self.loss.visual_weight * visual
        if output.language_logits is not None:
            scale = model.vlltr.logit_scale.exp().detach()
            language = classification_loss(output.language_logits, scale=scale, **settings)
            parts["language"] = language.detach()
            loss = loss + self.loss.language_weight * language
        # the sum of this process's images, such that the mean over processes is the mean over all images
        share = rank_and_world()[1] / batch.get("rows", len(batch["labels"]))
        return {name: share * part for name, part in ({"loss": loss} | parts).items()}

    def _settings(self, batch: Batch, progress: float) -> dict[str, Any]:
        mixed = "other_labels" in batch
        weighed = self.loss.reweight != "none" and progress >= self.loss.reweight_after
        return {
            "labels": real(batch, batch["labels"]),
            "kind": self.loss.classification,
            "adjustment": self.adjustment if self.loss.logit_adjustment else None,
            "class_weights": self.class_weights if weighed else None,
            "focal_gamma": self.loss.focal_gamma,
            "margins": self.margins,
            "label_smoothing": self.loss.label_smoothing,
            "other_labels": real(batch, batch["other_labels"]) if mixed else None,
            "mix": real(batch, batch["shares"]) if mixed else None,
            "reduction": "sum",
        }
