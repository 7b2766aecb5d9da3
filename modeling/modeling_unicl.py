# SPDX-License-Identifier: MIT
"""UniCL: a dual encoder in one image-text-label space (Yang et al., CVPR 2022), composed from existing towers.

Letters: `N` images (or pairs), `U` unique texts, `L` tokens, `D` projection width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_unicl import UniCLConfig
from .contrastive import image_text_label_loss
from .towers import build_tower, encode_image, encode_text, set_checkpointing, text_width, vision_width


@dataclass
class UniCLOutput(ModelOutput):
    """What a dual encoder's forward returns.

    Args:
        loss: scalar, only with `return_loss=True`.
        logits_per_image: [N, U], τ · cosine (+ the bias of a model that has one). `logits_per_text` is its transpose.
        image_embeds, text_embeds: [N, D] and [U, D], L2-normalised.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


class UniCLPreTrainedModel(PreTrainedModel):
    """What all models of this package share: initialisation, capability flags, saving with remote code."""

    config: UniCLConfig
    base_model_prefix = "unicl"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["logit_scale", "logit_bias"]
    # which class answers to which Auto class when the repository is loaded as remote code
    _auto_map: dict[str, str] = {}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fresh weights for what a checkpoint lacks; towers initialise themselves.

        Projections are normal with standard deviation width^-½ (CLIP), log scale and bias are their configured values.
        """
        super()._init_weights(module)
        if isinstance(module, UniCLModel):
            factor = module.config.initializer_factor
            for projection in (module.visual_projection, module.text_projection):
                if projection is not None:
                    init.normal_(projection.weight, std=projection.in_features**-0.5 * factor)
            init.constant_(module.logit_scale, module.config.logit_scale_init_value)
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, module.config.logit_bias_init_value)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, **options
    ) -> None:
        options["gradient_checkpointing_func"] = gradient_checkpointing_func
        switched = [set_checkpointing(tower, enable, **options) for tower in self.towers()]
        if not any(switched):
            raise ValueError("neither tower of this model supports gradient checkpointing")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights. What is always float32 does not count, though it may come first."""
        exact = tuple(self._keep_in_fp32_modules_strict)
        return next(one.dtype for name, one in self.named_parameters() if not name.endswith(exact))

    def towers(self) -> list[nn.Module]:
        """The vision tower, and the text tower where there is one."""
        encoder = self if isinstance(self, UniCLModel) else self.base_model
        return [tower for tower in (encoder.vision_model, encoder.text_model) if tower is not None]

    @classmethod
    def from_pretrained(cls, *args, **kwargs) -> Any:
        """transformers' `from_pretrained`, whose model computes bit for bit what the saved one did, also on a CPU.

        A CPU's sums depend on where in memory a tensor begins. Tensors mapped from a file begin anywhere, so those off
        the 64-byte grid of torch's own get memory of their own.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
                tensor.data = tensor.data.clone()
        for module in model.modules():
            if isinstance(module, UniCLModel) and module.logit_bias is not None:
                module.logit_bias.requires_grad_(False)  # as it was built; loading makes every parameter anew
        return loaded

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Save weights, configuration and the code that a process without the package needs to load them.

        File keys equal `state_dict()` keys: towers that transformers has renamed are not written under old names.
        """
        self.config.auto_map = dict(self._auto_map)
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, **kwargs)


class UniCLModel(UniCLPreTrainedModel):
    """Dual encoder u = normalize(W_v f(x)), v = normalize(W_t g(t)), logits τ u·v, or τ u·v + b (SigLIP's).

    Attribute names are those of `CLIPModel`, so CLIP's Hub weights load unchanged. The losses and the zero-shot
    pipeline of transformers take a softmax over texts, to which b is nothing: the pipeline's scores for SigLIP's
    weights sum to one, and are not SigLIP's own, sigmoid(τ u·v + b), which are for one text at a time.
    """

    _auto_class = "AutoModel"
    _auto_map = {
        "AutoConfig": "configuration_unicl.UniCLConfig",
        "AutoModel": "modeling_unicl.UniCLModel",
        "AutoModelForZeroShotImageClassification": "modeling_unicl.UniCLModel",
    }

    def __init__(self, config: UniCLConfig):
        super().__init__(config)
        self.vision_model = build_tower(config.vision_config)
        self.visual_projection = nn.Linear(
            vision_width(self.vision_model), config.projection_dim, bias=config.visual_projection_bias
        )
        self.text_model = self.text_projection = None
        if config.has_text_model:
            self.text_model = build_tower(config.text_config)
            self.text_projection = nn.Linear(
                text_width(self.text_model, config.text_pooling), config.projection_dim, bias=False
            )
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.logit_bias = None
        if config.logit_bias_init_value is not None:
            # no softmax over texts gives it a gradient, and a trained parameter without one stops distributed training
            self.logit_bias = nn.Parameter(torch.tensor(float(config.logit_bias_init_value)), requires_grad=False)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **kwargs) -> Tensor:
        """Projected image features [N, D] of `pixel_values` [N, 3, H, W], **not** normalised."""
        pooled = encode_image(self.vision_model, pixel_values, self.config.vision_pooling)
        return self.visual_projection(pooled)

    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """Projected text features [U, D] of `input_ids` [U, L], **not** normalised; over-long texts are cut.

        A SigLIP tower pads texts to its full length, as it was trained, and takes no notice of `attention_mask`.

        Raises `ValueError` for a checkpoint that has no text tower.
        """
        if self.text_model is None:
            raise ValueError("this checkpoint has no text tower (has_text_model is false): it cannot read text")
        pooled = encode_text(self.text_model, input_ids, attention_mask, token_type_ids, self.config.text_pooling)
        return self.text_projection(pooled)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        text_index: Tensor | None = None,
        return_loss: bool = False,
        **kwargs,
    ) -> UniCLOutput:
        """Similarities of images and texts, and on request the image-text-label loss (UniCL eq. 1–3, as a mean).

        Args:
            input_ids, attention_mask, token_type_ids: [U, L].
            pixel_values: [N, 3, H, W]; N and U may differ when no loss is asked for.
            labels: [N] int64; >= 0 a class, -1 an image-text pair, positive with itself alone. None: all -1 (CLIP).
            text_index: [N], which of the U texts belongs to which image; None needs U = N.
            return_loss: whether to compute the loss (no label smoothing, no distillation).
        """
        image_features = self.get_image_features(pixel_values)
        text_features = self.get_text_features(input_ids, attention_mask, token_type_ids)
        scale = self.logit_scale.exp()
        loss = None
        if return_loss:
            if labels is None:
                labels = torch.full((len(image_features),), -1, device=image_features.device)
            loss = image_text_label_loss(image_features, text_features, labels, scale, text_index=text_index)
        image_embeds, text_embeds = normalize(image_features, dim=-1), normalize(text_features, dim=-1)
        logits_per_image = scale.to(image_embeds.dtype) * image_embeds @ text_embeds.t()
        if self.logit_bias is not None:
            logits_per_image = logits_per_image + self.logit_bias.to(logits_per_image.dtype)
        return UniCLOutput(
            loss=loss,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_image.t(),
            image_embeds=image_embeds,
            text_embeds=text_embeds,
        )


__all__ = ["UniCLModel", "UniCLOutput", "UniCLPreTrainedModel"]
