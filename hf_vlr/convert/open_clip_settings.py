"""What open_clip's configurations say, in terms of this package's towers.

open_clip can build more than these towers compute. A setting is either read here, or known to change nothing in
evaluation, or refused by name; so is a setting that contradicts the tensors, which open_clip would interpolate.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from hf_vlr.convert.openai_clip import LAYER_NORM_EPS, shape, text_settings, vision_settings
from hf_vlr.convert.plan import BICUBIC, BILINEAR, OPENAI_MEAN, OPENAI_STD, ImagePreset, Options
from hf_vlr.errors import UserError

# its defaults; the last stage of its ResNet is 32 times as wide as the stem
HEAD_WIDTH, TEXT_HEADS, RESNET_WIDENING, EOS = 64, 8, 32, 2
TRUNK, TRUNK_HEAD, HEAD = "visual.trunk.", "visual.trunk.head.", "visual.head.proj."

# read below, or without effect in evaluation
MODEL_FREE = {
    *("embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "custom_text"),
    *("init_logit_scale", "init_logit_bias", "nonscalar_logit_scale", "output_dict", "cast_dtype"),
}
TOWER_FREE = {"width", "layers", "mlp_ratio", "act_kwargs", "norm_kwargs", "final_ln_after_pool"}
VISION_FREE = TOWER_FREE | {
    *("head_width", "patch_size", "image_size", "patch_dropout", "pos_embed_type"),
    *("attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained", "timm_drop", "timm_drop_path"),
    *("timm_model_name", "timm_pool", "timm_proj", "timm_proj_bias"),
}
TEXT_FREE = TOWER_FREE | {
    *("heads", "context_length", "vocab_size", "hf_tokenizer_name", "pad_id", "eos_id"),
    *("hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
}
# of these only the values named here are computed by our towers; None is a setting left open
TOWER_PLAIN: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("output_tokens", "qk_norm", "scaled_cosine_attn", "scale_heads"), (False,)),
    **dict.fromkeys(("scale_attn_inner", "scale_attn", "scale_fc"), (False,)),
    **{"ls_init_value": (), "block_type": ("default",)},
}
VISION_PLAIN = TOWER_PLAIN | {"attentional_pool": (False,), "no_ln_pre": (False,), "pool_type": ("tok",)}
TEXT_PLAIN = TOWER_PLAIN | {
    **{"hf_model_name": ("",), "embed_cls": (False,), "no_causal_mask": (False,), "proj_bias": (False,)},
    **{"proj_type": ("linear",), "pool_type": ("argmax", "eos"), "tokenizer_mode": ("",), "tokenizer_kwargs": ({},)},
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise `UserError` for a configuration that is incomplete, or that names what our towers do not compute."""
    vision, text = settings.get("vision_cfg"), settings.get("text_cfg")
    if not isinstance(vision, Mapping) or not isinstance(text, Mapping) or not settings.get("embed_dim"):
        raise UserError("the open_clip configuration must hold embed_dim, vision_cfg and text_cfg")
    sections = (
        ("", settings, MODEL_FREE, {}),
        ("vision_cfg.", vision, VISION_FREE, VISION_PLAIN),
        ("text_cfg.", text, TEXT_FREE, TEXT_PLAIN),
    )
    siglip = "siglip" in str(vision.get("timm_model_name"))
    hint = "; convert transformers' form of this SigLIP, as hf-clip" if siglip else ""
    for section, found, free, plain in sections:
        for name, value in found.items():
            if name in free or value is None or (name in plain and value in plain[name]):
                continue
            raise UserError(
                f"open_clip's {section}{name} = {value!r} has no counterpart in this package's towers{hint}"
            )


def vision_tower(settings: Mapping[str, Any], state: Mapping[str, Tensor], options: Options) -> dict[str, Any]:
    """The vision tower's configuration: a ViT's, the modified ResNet's or one of timm's."""
    stated = settings["vision_cfg"]
    if stated.get("timm_model_name"):
        return timm_tower(stated, state)
    ratio = RESNET_WIDENING if isinstance(stated.get("layers"), list | tuple) else 1
    head_width = stated.get("head_width") or HEAD_WIDTH
    stem = "visual.conv3.weight" if ratio > 1 else "visual.conv1.weight"
    heads = options.vision_heads or max(1, shape(state, stem, 4)[0] * ratio // head_width)
    found = vision_settings(state, replace(options, vision_heads=heads), hidden_act=activation(settings, stated))
    agree("vision_cfg.image_size", square(stated.get("image_size")), found["image_size"])
    agree("vision_cfg.layers", stated.get("layers"), found["layers" if ratio > 1 else "num_hidden_layers"])
    agree("vision_cfg.width", stated.get("width"), found["width" if ratio > 1 else "hidden_size"])
    agree("vision_cfg.patch_size", square(stated.get("patch_size")), found.get("patch_size"))
    if ratio == 1:
        found["layer_norm_eps"] = norm_eps(stated)
    return found


def timm_tower(stated: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """A `timm_wrapper` configuration.

    open_clip takes timm's model without its classifier and projects linearly, or keeps the classifier as projection.
    Raises `UserError` for a projection of several layers, for a pooling that is open_clip's own, and for a model that
    the installed timm does not have.
    """
    from timm import is_model  # seconds, which the other towers need not wait for

    name, pool, projection = (
        stated["timm_model_name"],
        stated.get("timm_pool", "avg"),
        stated.get("timm_proj", "linear"),
    )
    if not is_model(name):
        raise UserError(f"the installed timm has no model {name}: pip install --upgrade timm")
    if pool in ("abs_attn", "rot_attn") or (projection == "linear" and pool):
        raise UserError(f"open_clip's timm_pool {pool!r} with timm_proj {projection!r} cannot be had from timm alone")
    head = HEAD if projection == "linear" else TRUNK_HEAD
    if projection not in ("linear", None, "") or f"{head}weight" not in state:
        raise UserError(f"a timm tower's projection must be one linear layer; that of {name} ({projection!r}) is not")
    # the classifier is cut off either way; a pooling that was chosen with it is built into the model
    return {"model_type": "timm_wrapper", "architecture": name, "model_args": {"global_pool": pool} if pool else {}}


def text_tower(
    settings: Mapping[str, Any], state: Mapping[str, Tensor], options: Options, prefix: str
) -> dict[str, Any]:
    """The text tower's configuration; it pools where the highest id stands, or at the first `eos_id`."""
    stated = settings["text_cfg"]
    chosen = replace(options, text_heads=options.text_heads or stated.get("heads") or TEXT_HEADS)
    found = text_settings(state, chosen, prefix, hidden_act=activation(settings, stated))
    agree("text_cfg.context_length", stated.get("context_length"), found["max_position_embeddings"])
    agree("text_cfg.vocab_size", stated.get("vocab_size"), found["vocab_size"])
    agree("text_cfg.layers", stated.get("layers"), found["num_hidden_layers"])
    agree("text_cfg.width", stated.get("width"), found["hidden_size"])
    found["layer_norm_eps"] = norm_eps(stated)
    if stated.get("pool_type") == "eos":
        # CLIP's tower takes an eos_token_id of 2 for the highest id; MetaCLIP 2's is the same tower without that rule
        ids = {"bos_token_id": None, "eos_token_id": stated.get("eos_id", EOS), "pad_token_id": stated.get("pad_id", 0)}
        found |= {"model_type": "metaclip_2_text_model", **ids}
    return found


def activation(settings: Mapping[str, Any], stated: Mapping[str, Any]) -> str:
    """The hidden activation of a tower, as transformers names it."""
    extra = stated.get("act_kwargs") or {}
    if settings.get("quick_gelu") and not extra:
        return "quick_gelu"
    approximate = extra.get("approximate", "none")
    if settings.get("quick_gelu") or set(extra) - {"approximate"} or approximate not in ("none", "tanh"):
        raise UserError(f"open_clip's act_kwargs {extra} have no counterpart in this package's towers")
    return "gelu_pytorch_tanh" if approximate == "tanh" else "gelu"


def norm_eps(stated: Mapping[str, Any]) -> float:
    """ε of a tower's layer norms."""
    extra = stated.get("norm_kwargs") or {}
    if set(extra) - {"eps"}:
        raise UserError(f"open_clip's norm_kwargs {extra} have no counterpart in this package's towers")
    return float(extra.get("eps", LAYER_NORM_EPS))


def image_preset(size: int, preprocess: Mapping[str, Any] | None) -> tuple[ImagePreset, list[str]]:
    """How open_clip makes images of `size` px in evaluation, and notes; raises `UserError` where that is no crop."""
    stated = preprocess or {}
    mode = stated.get("resize_mode") or "shortest"
    if mode not in ("shortest", "squash"):
        raise UserError(f"open_clip's resize_mode {mode!r} is not supported: shortest and squash are")
    agree("preprocess_cfg.size", square(stated.get("size")), size)
    resample = BILINEAR if stated.get("interpolation") == "bilinear" else BICUBIC
    mean, std = stated.get("mean") or OPENAI_MEAN, stated.get("std") or OPENAI_STD
    notes = ["the file does not say how its images were made: OpenAI's way is assumed"] if preprocess is None else []
    return ImagePreset(size, tuple(mean), tuple(std), squash=mode == "squash", resample=resample), notes


def square(size: Any) -> int | None:
    """One side of a size, which open_clip states once or for each axis; raises `UserError` unless it is a square."""
    sides = list(size) if isinstance(size, list | tuple) else [size]
    if len(set(sides)) != 1:
        raise UserError(f"images and patches must be square, not {size}")
    return sides[0]


def agree(name: str, stated: Any, found: Any) -> None:
    """Raise `UserError` where a configuration states something else than the tensors show."""
    if stated is not None and stated != found:
        raise UserError(f"open_clip's {name} is {stated}, the tensors say {found}")
