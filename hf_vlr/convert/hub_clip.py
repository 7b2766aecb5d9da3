"""CLIP-like models of transformers, from a folder or the Hub: CLIP, MetaCLIP, MetaCLIP 2, SigLIP and SigLIP 2."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # what torch raises for a file that holds more than tensors
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_vlr.convert.keymap import KeyMap, listed, move
from hf_vlr.convert.openai_clip import model_kind
from hf_vlr.convert.plan import OPENAI_MEAN, OPENAI_STD, ImagePreset, Options, Plan
from hf_vlr.errors import UserError
from hf_vlr.pickles import shown

MODEL_TYPES = ("clip", "metaclip_2", "siglip")
SIGLIP = "siglip"
FOREIGN_GLOBAL = re.compile(r"GLOBAL ([^\s\x1b]+)")
SIGLIP_BIAS = -10.0  # SigLIP's initial bias
SIGLIP_EOS = 1  # of the tokenizers of SigLIP and of SigLIP 2, which their configurations do not state


def plan_hub_clip(location: str, options: Options) -> Plan:
    """What becomes of a model that transformers loads from `location` without remote code.

    `location` is a folder or a Hub id of model type `clip` (OpenAI, MetaCLIP, LAION and others), `metaclip_2` or
    `siglip` (SigLIP, and SigLIP 2 of a fixed resolution). Names stay as they are.

    SigLIP has no projections: they are made, as the identity. Its logit bias is kept, and its texts are padded to
    their full length by `get_text_features`. transformers' zero-shot pipeline takes a softmax over the candidate
    labels for the converted model, not SigLIP's sigmoid for each one, because it goes by the model type.

    Raises `UserError` for another model type, a folder that is not there, does not load or lacks weights, and an image
    processor whose steps a `CLIPImageProcessor` does not have.
    """
    config_class, model_class = model_kind(options)
    location = place(location)
    source = read_config(location)
    model = read_model(location, source)
    state = {
        name: tensor.reshape(()) if tensor.shape == (1,) else tensor for name, tensor in model.state_dict().items()
    }
    image, notes = read_image_preset(location, source)
    settings: dict[str, Any] = {
        "vision_config": source.vision_config.to_dict(),
        "text_config": source.text_config.to_dict(),
    }
    made: dict[str, Tensor] = {}
    if source.model_type == SIGLIP:
        width = siglip_width(source)
        tokens, remark = siglip_tokens(location, source.text_config)
        settings["text_config"] |= tokens
        settings |= {"projection_dim": width, "logit_bias_init_value": SIGLIP_BIAS}
        made = {f"{side}_projection.weight": torch.eye(width) for side in ("visual", "text")}
        notes = [*notes, *remark, "the zero-shot pipeline's scores are a softmax over the labels, not SigLIP's sigmoid"]
    else:
        settings |= {
            "projection_dim": source.projection_dim,
            "logit_scale_init_value": source.logit_scale_init_value,
        }
    return Plan(model_class, config_class(**settings), state, hub_clip_keys(), image, made, {}, location, notes)


def hub_clip_keys() -> KeyMap:
    """The names of `CLIPModel`, `MetaClip2Model` and `SiglipModel`, which are ours."""
    towers = ("vision_model", "text_model", "visual_projection", "text_projection")
    rules = [move(f"{name}.**", f"{name}.**") for name in towers]
    return KeyMap([*rules, move("logit_scale", "logit_scale"), move("logit_bias", "logit_bias")])


def place(location: str) -> str:
    """A folder, with `~` resolved, or a Hub id; raises `UserError` for a file and for the path of no folder."""
    path = Path(location).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise UserError(f"{location} is a file: give the folder that it lies in, with its config.json")
    if location.startswith((".", "~", "/")) or location.count("/") > 1 or location.endswith("/") or "\\" in location:
        raise UserError(f"there is no such folder: {location}")
    return location


def read_config(location: str) -> PreTrainedConfig:
    """The configuration at `location`; raises `UserError` unless it is of one of `MODEL_TYPES`."""
    try:
        config = AutoConfig.from_pretrained(location, trust_remote_code=False)
    except (OSError, ValueError) as error:
        kind = "" if Path(location).is_dir() else "is no folder here, and as a Hub id it "
        reason = first_sentence(error)
        raise UserError(f"{location} {kind}has no configuration that transformers reads: {reason}") from error
    kind = config.model_type
    if kind in MODEL_TYPES:
        return config
    why = ", whose images keep their shape (NaFlex)" if kind == "siglip2" else ""
    raise UserError(f"{location} is a {kind!r} model{why}; those that convert are {', '.join(MODEL_TYPES)}")


def read_model(location: str, config: PreTrainedConfig) -> PreTrainedModel:
    """The model at `location` in float32, which holds every stored number of 16 bits.

    Raises `UserError` unless every weight is there, and no other.
    """
    try:
        model, found = AutoModel.from_pretrained(
            location, config=config, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    except UnpicklingError as error:
        raise UserError(f"{location} does not load: {unsafe_part(error)}") from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{location} does not load: {first_sentence(error)}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(map(str, found.get(what) or ()))
        if names:
            raise UserError(f"{location} does not fit its configuration, {what.replace('_', ' ')}: {listed(names)}")
    return model


def read_image_preset(location: str, config: PreTrainedConfig) -> tuple[ImagePreset, list[str]]:
    """How the image processor at `location` makes images, and notes; CLIP's or SigLIP's way where there is none.

    Raises `UserError` for a processor whose images have another size than the vision tower reads.
    """
    size = config.vision_config.image_size
    try:
        processor = AutoImageProcessor.from_pretrained(location, trust_remote_code=False)
    except (OSError, ValueError) as error:
        squash = config.model_type == SIGLIP
        mean, std = ((0.5,) * 3, (0.5,) * 3) if squash else (OPENAI_MEAN, OPENAI_STD)
        note = f"no image processor in the source ({first_sentence(error)}): its family's is assumed"
        return ImagePreset(size, mean, std, squash=squash), [note]
    preset = image_preset(processor)
    if preset.size != size:
        raise UserError(
            f"the image processor of {location} makes images of {preset.size} px, its tower reads {size} px"
        )
    return preset, []


def image_preset(processor: BaseImageProcessor) -> ImagePreset:
    """What an image processor does, as a preset; raises `UserError` for steps that a preset does not have."""
    name = type(processor).__name__
    rescale = getattr(processor, "rescale_factor", None)
    if not processor.do_resize or not processor.do_rescale or not math.isclose(rescale, 1 / 255, rel_tol=1e-3):
        raise UserError(f"{name} of the source must resize, and rescale by 1/255")
    mean, std = (0.0,) * 3, (1.0,) * 3
    if processor.do_normalize:
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    size, crop = edges(processor.size), None
    if getattr(processor, "do_center_crop", False):
        crop = edges(processor.crop_size)
    resample = int(processor.resample)
    square = size.get("height")
    if square is not None and square == size.get("width") and crop in (None, size):
        return ImagePreset(square, mean, std, squash=True, resample=resample)
    shorter = size.get("shortest_edge")
    if shorter is not None and crop is not None and crop.get("height") == crop.get("width"):
        side = crop["height"]
        return ImagePreset(side, mean, std, None if shorter == side else shorter, resample=resample)
    raise UserError(f"{name} of the source resizes to {size} and crops to {crop}: that gives no square of one size")


def edges(size: Mapping[str, int] | Any) -> dict[str, int]:
    """A processor's size as a dictionary of those edges that it states."""
    names = ("height", "width", "shortest_edge")
    return {name: size[name] for name in names if name in size and size[name] is not None}


def siglip_width(config: PreTrainedConfig) -> int:
    """D of a SigLIP model; raises `UserError` where its towers do not meet in one width, or one has no pooling."""
    vision, text = config.vision_config, config.text_config
    if not getattr(vision, "vision_use_head", True):  # transformers 5.17 states it only where it is false
        raise UserError("this SigLIP model has no attention pooling (vision_use_head is false), and so no features")
    if vision.hidden_size != text.projection_size:
        raise UserError(f"SigLIP's image features have width {vision.hidden_size}, its texts {text.projection_size}")
    return vision.hidden_size


def siglip_tokens(location: str, text: PreTrainedConfig) -> tuple[dict[str, int], list[str]]:
    """Ids that pad and end a text, from the tokenizer at `location`, and notes where there is none.

    SigLIP pads with 1 and SigLIP 2 with 0, and the configurations of both leave that to the tokenizer.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        note = f"no tokenizer in the source ({first_sentence(error)}): texts are padded with {text.pad_token_id}"
        return {"bos_token_id": None, "eos_token_id": SIGLIP_EOS}, [note]
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {location} must name a token that pads and one that ends a text")
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {name: getattr(tokenizer, name) for name in names}, []


def unsafe_part(error: UnpicklingError) -> str:
    """What a pickle of weights holds beside tensors, and the way out; torch's message names it amid advice."""
    found = FOREIGN_GLOBAL.search(str(error))
    what = f"its weights hold {shown(found[1])}" if found else "its weights are damaged or hold more than tensors"
    return f"{what}; refused: save the tensors alone, with save_pretrained, as model.safetensors"


def first_sentence(error: BaseException) -> str:
    """The first sentence of an error's message."""
    return str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__
