"""OpenAI's CLIP: what the tensors of a state dict with its names say about the architecture, and its conversion.

Letters: `K` tower width, `D` projection width, `L` positions of a text, `V` vocabulary. The text tower lies at the top
of the state dict or below a prefix, the vision tower below `visual.`; VL-LTR and open_clip keep these names.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_vlr.convert.clip_keys import projection_rules, resnet_rules, text_rules, vit_rules
from hf_vlr.convert.keymap import KeyMap
from hf_vlr.convert.plan import OPENAI_MEAN, OPENAI_STD, ImagePreset, Options, Plan
from hf_vlr.errors import UserError
from hf_vlr.modeling import UniCLConfig, UniCLModel, VLLTRConfig, VLLTRModel
from hf_vlr.modeling.configuration_clip_resnet import REDUCTION
from hf_vlr.modeling.modeling_unicl import UniCLPreTrainedModel

HEAD_WIDTH = 64
LAYER_NORM_EPS = 1e-5
MODEL_KINDS: dict[str, tuple[type[UniCLConfig], type[UniCLPreTrainedModel]]] = {
    "unicl": (UniCLConfig, UniCLModel),
    "vlltr": (VLLTRConfig, VLLTRModel),
}
# numbers that OpenAI's archives keep beside the weights
SCALARS = ("input_resolution", "context_length", "vocab_size")
PARALLEL = "module."
CAUSAL_MASK = "attn_mask"
BATCHES = "num_batches_tracked"


def plan_openai_clip(state: Mapping[str, Tensor], options: Options) -> Plan:
    """What becomes of the state dict of one of OpenAI's archives, ViT or modified ResNet.

    Names may begin with `module.`, which data-parallel training adds, and the log of the inverse temperature may be a
    vector of length one. Raises `UserError` for a state dict that is no such one, or whose numbers contradict its
    tensors.
    """
    config_class, model_class = model_kind(options)
    state, notes = without_parallel(state)
    state = with_scalar_temperature(state)
    vision, text = vision_settings(state, options), text_settings(state, options)
    check_scalars(state, vision, text)
    config = config_class(
        vision_config=vision,
        text_config=text,
        projection_dim=projection_dim(state),
        visual_projection_bias=vision["model_type"] == "clip_resnet",
    )
    weights, dropped = without_constants(state)
    return Plan(
        model_class,
        config,
        weights,
        openai_clip_keys(config),
        ImagePreset(vision["image_size"], OPENAI_MEAN, OPENAI_STD),
        batch_counters(weights),
        dropped,
        notes=notes,
    )


def openai_clip_keys(config: UniCLConfig) -> KeyMap:
    """OpenAI's names beside ours, for the tower that `config` has; `backward` writes OpenAI's."""
    resnet = config.vision_config.model_type == "clip_resnet"
    return KeyMap([*projection_rules(), *text_rules(), *(resnet_rules() if resnet else vit_rules())])


def model_kind(options: Options) -> tuple[type[UniCLConfig], type[UniCLPreTrainedModel]]:
    """Configuration and model class of a dual encoder, as `options.model_type` says; UniCL's by default."""
    name = options.model_type or "unicl"
    if name not in MODEL_KINDS:
        raise UserError(f"model type {name} is none of {', '.join(MODEL_KINDS)}")
    return MODEL_KINDS[name]


def vision_settings(
    state: Mapping[str, Tensor], options: Options, prefix: str = "visual.", hidden_act: str = "quick_gelu"
) -> dict[str, Any]:
    """The vision tower's configuration, read from the tensors below `prefix`.

    A `clip_resnet` one where there is an attention pooling, else a `clip_vision_model` one. The image size is the one
    that the learned positions are for. Heads are K / 64 (the pooling's for the ResNet) unless `options` says otherwise.
    Raises `UserError` for tensors that are missing or contradict each other.
    """
    if f"{prefix}attnpool.positional_embedding" in state:
        return resnet_settings(state, options, prefix)
    width, _, patch, _ = shape(state, f"{prefix}conv1.weight", 4)
    blocks = f"{prefix}transformer.resblocks"
    return {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": shape(state, f"{blocks}.0.mlp.c_fc.weight", 2)[0],
        "num_hidden_layers": count(state, f"{blocks}."),
        "num_attention_heads": heads(width, options.vision_heads, "--vision-heads"),
        "image_size": patch * grid_side(state, f"{prefix}positional_embedding"),
        "patch_size": patch,
        "projection_dim": projection_dim(state, prefix=prefix),
        "hidden_act": hidden_act,
        "layer_norm_eps": LAYER_NORM_EPS,
    }


def resnet_settings(state: Mapping[str, Tensor], options: Options, prefix: str = "visual.") -> dict[str, Any]:
    """The `clip_resnet` configuration of the modified ResNet below `prefix`; any depth and width."""
    width = shape(state, f"{prefix}conv3.weight", 4)[0]
    return {
        "model_type": "clip_resnet",
        "layers": [count(state, f"{prefix}layer{stage}.") for stage in (1, 2, 3, 4)],
        "width": width,
        "num_attention_heads": heads(REDUCTION * width, options.vision_heads, "--vision-heads"),
        "image_size": REDUCTION * grid_side(state, f"{prefix}attnpool.positional_embedding"),
    }


def text_settings(
    state: Mapping[str, Tensor],
    options: Options,
    prefix: str = "",
    blocks: str = "transformer.resblocks",
    hidden_act: str = "quick_gelu",
) -> dict[str, Any]:
    """The `clip_text_model` configuration of the text tower below `prefix`, whose blocks lie at `blocks`.

    The last id of the vocabulary ends a text and pads it, the one before begins it. Heads are K / 64 unless `options`
    says otherwise. Raises `UserError` for tensors that are missing.
    """
    vocabulary, width = shape(state, f"{prefix}token_embedding.weight", 2)
    if vocabulary < 2:
        raise UserError(f"{prefix}token_embedding.weight must have a row for the begin and one for the end of a text")
    return {
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shape(state, f"{prefix}{blocks}.0.mlp.c_fc.weight", 2)[0],
        "num_hidden_layers": count(state, f"{prefix}{blocks}."),
        "num_attention_heads": heads(width, options.text_heads, "--text-heads"),
        "max_position_embeddings": shape(state, f"{prefix}positional_embedding", 2)[0],
        "projection_dim": shape(state, f"{prefix}text_projection", 2)[1],
        "hidden_act": hidden_act,
        "layer_norm_eps": LAYER_NORM_EPS,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


def projection_dim(state: Mapping[str, Tensor], prefix: str = "visual.") -> int:
    """D, of the vision tower's projection below `prefix`, else of the text projection."""
    if f"{prefix}attnpool.c_proj.weight" in state:
        return shape(state, f"{prefix}attnpool.c_proj.weight", 2)[0]
    return shape(state, f"{prefix}proj" if f"{prefix}proj" in state else "text_projection", 2)[1]


def heads(width: int, chosen: int | None, option: str) -> int:
    """Attention heads of a tower of this width: those chosen, else one for every 64 channels.

    Raises `UserError` naming the option where neither divides the width.
    """
    if chosen is None and width % HEAD_WIDTH:
        raise UserError(f"a tower of width {width} does not tell its number of heads: give {option}")
    number = width // HEAD_WIDTH if chosen is None else chosen
    if number < 1 or width % number:
        raise UserError(f"{option} {number} does not divide the width {width}")
    return number


def count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered modules lie directly below `prefix`; raises `UserError` unless they are 0, 1, 2, …"""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    if not numbers or numbers != {str(number) for number in range(len(numbers))}:
        raise UserError(f"the checkpoint's blocks {prefix}0, {prefix}1, … are not there without a gap")
    return len(numbers)


def grid_side(state: Mapping[str, Tensor], name: str) -> int:
    """Side of the square grid that learned positions are for; the first is the class token's or the mean's."""
    positions = shape(state, name, 2)[0] - 1
    side = math.isqrt(positions)
    if side < 1 or side * side != positions:
        raise UserError(f"{name} has {positions} positions beside the first, which is no square grid")
    return side


def shape(state: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor; raises `UserError` when it is not there, has another number of axes, or is empty."""
    if name not in state:
        raise UserError(f"this is no CLIP checkpoint: it has no tensor {name}")
    found = tuple(state[name].shape)
    if len(found) != axes:
        raise UserError(f"{name} must have {axes} axes, its shape is {found}")
    if 0 in found:
        raise UserError(f"{name} is empty, its shape is {found}: the checkpoint is damaged or was cut down")
    return found


def scalar(state: Mapping[str, Tensor], name: str) -> float:
    """The value of a tensor of one element."""
    if name not in state or state[name].numel() != 1:
        raise UserError(f"this is no CLIP checkpoint: {name} is not there as one number")
    return state[name].item()


def check_scalars(state: Mapping[str, Tensor], vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """Raise `UserError` where a number of the archive contradicts its tensors."""
    expected = (vision["image_size"], text["max_position_embeddings"], text["vocab_size"])
    for name, value in zip(SCALARS, expected):
        if name in state and scalar(state, name) != value:
            raise UserError(f"the checkpoint states {name} {scalar(state, name):g}, its tensors say {value}")


def without_parallel(state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], list[str]]:
    """The tensors without the prefix that data-parallel training gives all names, and a note where there was one."""
    if not state or not all(name.startswith(PARALLEL) for name in state):
        return state, []
    whole = {name.removeprefix(PARALLEL): tensor for name, tensor in state.items()}
    return whole, [f"names of the checkpoint are shown without the prefix {PARALLEL} that all of them have"]


def with_scalar_temperature(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors with a `logit_scale` of one element as the single number that it is."""
    if "logit_scale" not in state or state["logit_scale"].shape != (1,):
        return state
    return {**state, "logit_scale": state["logit_scale"].reshape(())}


def without_constants(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights alone, and the names left out with the reason.

    Raises `UserError` for an attention mask that is not the causal one.
    """
    weights, dropped = {}, {}
    for name, tensor in state.items():
        if name in SCALARS:
            dropped[name] = "a number that the tensors' shapes tell"
        elif name.split(".")[-1] == CAUSAL_MASK:
            if not is_causal(tensor):
                raise UserError(f"{name} is not the causal mask, the only one that this text tower can have")
            dropped[name] = "the causal mask, which the tower makes itself"
        else:
            weights[name] = tensor
    return weights, dropped


def is_causal(mask: Tensor) -> bool:
    """Whether an additive attention mask hides the later tokens and nothing else."""
    if mask.ndim != 2 or mask.shape[0] != mask.shape[1]:
        return False
    return torch.equal(mask.float(), torch.full_like(mask, -math.inf, dtype=torch.float32).triu(1))


def batch_counters(
    state: Mapping[str, Tensor], prefix: str = "visual.", target: str = "vision_model."
) -> dict[str, Tensor]:
    """Counters of batch norms that a state dict lacks (older files have none), by our names; they take no part."""
    stems = [name.removesuffix(".running_mean") for name in state if name.endswith(".running_mean")]
    return {
        f"{target}{stem.removeprefix(prefix)}.{BATCHES}": torch.tensor(0)
        for stem in stems
        if f"{stem}.{BATCHES}" not in state
    }
