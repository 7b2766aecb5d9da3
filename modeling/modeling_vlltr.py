# SPDX-License-Identifier: MIT
"""VL-LTR (Tian et al., ECCV 2022): class-wise pre-training, then recognition guided by anchor sentences.

Letters: `B` images, `C` classes, `M` anchors per class, `D` projection width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from os.path import isfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoImageProcessor
from transformers import initialization as init
from transformers.image_utils import load_image
from transformers.utils import ModelOutput

from .configuration_vlltr import VLLTRConfig
from .modeling_unicl import UniCLModel, UniCLPreTrainedModel
from .recognition import anchor_gram, anchor_rstd, fuse_logits, language_guided_logits

try:  # pictures are not needed to train, nor to predict from `pixel_values`
    from PIL import Image
except ImportError:
    Image = None


@dataclass
class VLLTRClassifierOutput(ModelOutput):
    """What the recogniser returns.

    Args:
        loss: scalar, CE(visual) + CE(language), only with `labels`.
        logits: [B, C], the fusion: softmax(logits) = α softmax(visual) + (1 − α) softmax(language).
        visual_logits, language_logits: [B, C], the two branches (language is None without anchors).
        anchor_attention: [B, C, M], only with `output_anchor_attention=True`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    visual_logits: Tensor | None = None
    language_logits: Tensor | None = None
    anchor_attention: Tensor | None = None


class VLLTRModel(UniCLModel):
    """The dual encoder of stage 1 (CVLP); also what `AutoModel` gives for a stage-2 checkpoint."""

    config: VLLTRConfig
    base_model_prefix = "vlltr"
    _keys_to_ignore_on_load_unexpected = [r"^head\."]
    _auto_map = {
        "AutoConfig": "configuration_vlltr.VLLTRConfig",
        "AutoModel": "modeling_vlltr.VLLTRModel",
        "AutoModelForZeroShotImageClassification": "modeling_vlltr.VLLTRModel",
        "AutoModelForImageClassification": "modeling_vlltr.VLLTRForImageClassification",
    }


class CosineClassifier(nn.Linear):
    """scale cos(x, w_c): [B, D] -> [B, C] by C class vectors, none of which wins by its length."""

    def __init__(self, width: int, classes: int, scale: float):
        super().__init__(width, classes, bias=False)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * normalize(features, dim=-1) @ normalize(self.weight, dim=-1).T


class LanguageGuidedHead(nn.Module):
    """Visual branch and language branch over frozen anchor sentences (VL-LTR §3.3), and the anchors themselves.

    Persistent buffers make a checkpoint self-contained: `anchors` [C, M, D] (raw text features), `anchor_mask` [C, M]
    (True = real), `class_counts` [C] (training images), `sentence_bytes` (UTF-8) cut by `sentence_offsets` [C·M + 1].
    """

    def __init__(self, config: VLLTRConfig):
        super().__init__()
        classes, anchors, width = config.num_labels, config.num_anchors, config.projection_dim
        self.query = self.key = self.norm_query = self.norm_key = None
        if anchors:
            self.query = nn.Linear(width, width, bias=False)
            self.key = nn.Linear(width, width, bias=False)
            self.norm_query = nn.LayerNorm(width)
            self.norm_key = nn.LayerNorm(width)
        self.visual: nn.Module = nn.Linear(width, classes)
        if config.visual_head == "cosine":
            self.visual = CosineClassifier(width, classes, config.visual_scale)
        if config.visual_head == "mlp":
            self.visual = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, classes))
        self.detach_norm = config.detach_norm
        self.register_buffer("class_counts", torch.zeros(classes, dtype=torch.int64))
        if anchors:
            self.register_buffer("anchors", torch.zeros(classes, anchors, width))
            self.register_buffer("anchor_mask", torch.zeros(classes, anchors, dtype=torch.bool))
            self.register_buffer("sentence_bytes", torch.zeros(config.num_sentence_bytes, dtype=torch.uint8))
            self.register_buffer("sentence_offsets", torch.zeros(classes * anchors + 1, dtype=torch.int64))
        self._constants: tuple[Tensor, Tensor] | None = None

    def constants(self) -> tuple[Tensor, Tensor]:
        """Inner products [C, M, M] and reciprocal deviations [C, M] of the anchors, computed once: they are frozen."""
        if self._constants is None:
            with torch.inference_mode(False):  # what is kept may serve training later
                self._constants = anchor_gram(self.anchors), anchor_rstd(self.anchors, self.norm_key.eps)
        return self._constants

    def _apply(self, fn, recurse: bool = True) -> "LanguageGuidedHead":
        self._constants = None  # another device or dtype
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args, **kwargs) -> None:
        self._constants = None  # other anchors
        stored = state_dict.get(f"{prefix}sentence_bytes")
        if self.query is not None and stored is not None:
            self.sentence_bytes = self.sentence_bytes.new_zeros(stored.shape)  # of other sentences
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def language(self, features: Tensor, scale: Tensor, return_attention: bool) -> tuple[Tensor, Tensor | None]:
        """Language logits [B, C] of raw image features [B, D], and the attention [B, C, M] when asked for."""
        gram, rstd = self.constants()
        result = language_guided_logits(
            features,
            self.anchors,
            self.anchor_mask,
            self.query.weight,
            self.key.weight,
            self.norm_query.weight,
            self.norm_query.bias,
            self.norm_key.weight,
            self.norm_key.bias,
            scale,
            detach_norm=self.detach_norm,
            gram=gram,
            rstd=rstd,
            eps=self.norm_key.eps,
            return_attention=return_attention,
        )
        return result if return_attention else (result, None)

    def set_anchors(self, features: Tensor, mask: Tensor, sentences: Sequence[Sequence[str]]) -> None:
        """Store anchor features [C, M, D], their mask [C, M] (True = real) and `sentences[c][m]` ("" where padded)."""
        if self.query is None:
            raise ValueError("this recogniser is visual only (num_anchors is 0): it takes no anchors")
        encoded = [text.encode() for row in sentences for text in row]
        if features.shape != self.anchors.shape or len(encoded) != mask.numel() or mask.shape != features.shape[:2]:
            raise ValueError(f"anchors must have the shape {tuple(self.anchors.shape)}, not {tuple(features.shape)}")
        lengths = torch.tensor([0, *map(len, encoded)], dtype=torch.int64)
        self.anchors.copy_(features)
        self.anchor_mask.copy_(mask)
        device = self.anchors.device
        self.sentence_offsets = lengths.cumsum(0).to(device)
        self.sentence_bytes = torch.tensor(list(b"".join(encoded)), dtype=torch.uint8, device=device)
        self._constants = None

    def sentence(self, label: int, anchor: int) -> str:
        """The text of one anchor."""
        position = label * self.anchors.shape[1] + anchor
        start, end = self.sentence_offsets[position : position + 2].tolist()
        return bytes(self.sentence_bytes[start:end].tolist()).decode()


class VLLTRForImageClassification(UniCLPreTrainedModel):
    """The recogniser of stage 2: the whole dual encoder under `vlltr`, and the language-guided head.

    With `num_anchors=0` there is no language branch and `logits` are the visual ones: the visual-only baseline.
    """

    config: VLLTRConfig
    base_model_prefix = "vlltr"
    _auto_class = "AutoModelForImageClassification"
    _auto_map = VLLTRModel._auto_map

    def __init__(self, config: VLLTRConfig):
        if config.num_labels < 2:
            raise ValueError(f"a recogniser needs at least 2 classes, not {config.num_labels}")
        super().__init__(config)
        self.vlltr = VLLTRModel(config)
        self.head = LanguageGuidedHead(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Query and key start as the identity (VL-LTR's code); buffers that a checkpoint lacks start empty."""
        super()._init_weights(module)
        if isinstance(module, LanguageGuidedHead):
            for linear in (module.query, module.key):
                if linear is not None:
                    init.eye_(linear.weight)
            for name, buffer in module.named_buffers():
                if "." not in name:
                    init.zeros_(buffer)

    def set_anchors(
        self,
        features: Tensor,
        mask: Tensor,
        sentences: Sequence[Sequence[str]],
        anchor_selection: dict[str, Any] | None = None,
    ) -> None:
        """Give the head its anchors (see `LanguageGuidedHead.set_anchors`) and note where they came from."""
        self.head.set_anchors(features, mask, sentences)
        self.config.num_sentence_bytes = len(self.head.sentence_bytes)
        self.config.anchor_selection = anchor_selection

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        image_features: Tensor | None = None,
        output_anchor_attention: bool = False,
        **kwargs,
    ) -> VLLTRClassifierOutput:
        """Recognise images (VL-LTR eq. for P^I, P^T and their ensemble).

        Args:
            pixel_values: [B, 3, H, W].
            labels: [B] int64 class indices; asks for the loss CE(visual, y) + CE(language, y).
            image_features: [B, D], projected features in place of `pixel_values`.
            output_anchor_attention: whether to return the attention [B, C, M].
        """
        if image_features is None:
            image_features = self.vlltr.get_image_features(pixel_values)
        visual_logits = self.head.visual(image_features)
        language_logits = attention = None
        logits = visual_logits
        if self.config.num_anchors:
            language_logits, attention = self.head.language(
                image_features, self.vlltr.logit_scale.exp(), output_anchor_attention
            )
            logits = fuse_logits(visual_logits, language_logits, self.config.fusion_weight)
        loss = None
        if labels is not None:
            branches = [branch for branch in (visual_logits, language_logits) if branch is not None]
            loss = sum(cross_entropy(branch, labels) for branch in branches)
        return VLLTRClassifierOutput(loss, logits, visual_logits, language_logits, attention)

    @torch.no_grad()
    def predict(
        self, images: Any, top_k: int = 5, num_sentences: int = 3, processor: Any | None = None
    ) -> list[dict[str, Any]]:
        """Names, both branches' probabilities and the attended sentences, for each image.

        Args:
            images: one or a list of PIL images, paths or URLs, or `pixel_values` [B, 3, H, W].
            top_k: classes listed per image.
            num_sentences: sentences listed for each of those classes.
            processor: an image processor; by default the one that lies beside the weights.

        Returns:
            A dictionary per image: `label`, `index`, `score` (fused probability) and `classes`, a list of dictionaries
            `label, index, score, visual_score, language_score, train_images, sentences`, each sentence with its
            attention `weight`; language entries are None and sentences empty without anchors. Of a converted
            checkpoint `train_images` is None where it was not told, and a sentence's `text` empty.
        """
        training = self.training
        self.eval()
        pixel_values = self._pixel_values(images, processor).to(self.device, self.vlltr.dtype)
        output = self(pixel_values=pixel_values, output_anchor_attention=True)
        self.train(training)
        fused = output.logits.float().softmax(-1)
        visual = output.visual_logits.float().softmax(-1)
        language = None if output.language_logits is None else output.language_logits.float().softmax(-1)
        counted = bool(self.head.class_counts.any())
        best = fused.topk(min(top_k, fused.shape[1]), dim=-1).indices
        results = []
        for row, indices in enumerate(best.tolist()):
            classes = [
                {
                    "label": self.config.id2label[index],
                    "index": index,
                    "score": fused[row, index].item(),
                    "visual_score": visual[row, index].item(),
                    "language_score": None if language is None else language[row, index].item(),
                    "train_images": int(self.head.class_counts[index]) if counted else None,
                    "sentences": self._attended(output.anchor_attention, row, index, num_sentences),
                }
                for index in indices
            ]
            results.append({key: classes[0][key] for key in ("label", "index", "score")} | {"classes": classes})
        return results

    def _pixel_values(self, images: Any, processor: Any | None) -> Tensor:
        if isinstance(images, Tensor):
            return images if images.ndim == 4 else images.unsqueeze(0)
        if processor is None:
            if not self.config.name_or_path:
                raise ValueError("this model was not loaded from a folder or the Hub: pass processor= or pixel_values")
            processor = AutoImageProcessor.from_pretrained(self.config.name_or_path)
        images = images if isinstance(images, list | tuple) else [images]
        return processor(images=[load_picture(image) for image in images], return_tensors="pt")["pixel_values"]

    def _attended(self, attention: Tensor | None, row: int, label: int, count: int) -> list[dict[str, Any]]:
        if attention is None:
            return []
        real = int(self.head.anchor_mask[label].sum())
        weights, anchors = attention[row, label].topk(min(count, real))
        return [
            {"text": self.head.sentence(label, anchor), "weight": weight}
            for weight, anchor in zip(weights.tolist(), anchors.tolist(), strict=True)
        ]


def load_picture(image: Any) -> Any:
    """An RGB picture from a PIL image, a path or a URL; a file's or an image's transparency becomes white."""
    if isinstance(image, str | PathLike) and isfile(image):
        image = Image.open(image)
    if getattr(image, "has_transparency_data", False):
        image = image.convert("RGBA")
        canvas = image.copy()
        canvas.paste((255, 255, 255, 255), (0, 0, *image.size))
        canvas.alpha_composite(image)
        image = canvas
    return load_image(str(image) if isinstance(image, PathLike) else image)


__all__ = ["LanguageGuidedHead", "VLLTRClassifierOutput", "VLLTRForImageClassification", "VLLTRModel"]
