"""UniCL's checkpoints (Yang et al., CVPR 2022): a Swin or FocalNet image tower and CLIP's text transformer."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from hf_vlr.convert.archive import attribute
from hf_vlr.convert.clip_keys import text_rules
from hf_vlr.convert.focalnet_keys import focalnet_rules, focalnet_settings
from hf_vlr.convert.keymap import KeyMap, Rule, move
from hf_vlr.convert.plan import BICUBIC, IMAGENET_MEAN, IMAGENET_STD, ImagePreset, Options, Plan
from hf_vlr.convert.swin_keys import (
    Tower,
    check_derived,
    derived_buffer,
    derived_buffers,
    smallest_image_size,
    stored_image_size,
    swin_rules,
    swin_settings,
)
from hf_vlr.errors import UserError
from hf_vlr.modeling import UniCLConfig, UniCLModel
from hf_vlr.pickles import Placeholder

IMAGE_SIZE, HEAD_WIDTH = 224, 64
TEXT_NORM_EPS, LOGIT_SCALE = 1e-12, 1.0
TOWER_RULES = {"swin": swin_rules, "focalnet": focalnet_rules}
CLASSIFIER = ("head.weight", "head.bias")
_LAYER = re.compile(r"resblocks\.(\d+)\.")


@dataclass(frozen=True)
class Spelling:
    """What a checkpoint calls its parts: prefixes of the towers, names of the rest. The defaults are the release's."""

    image: str = "image_encoder."
    text: str = "text_encoder."
    image_projection: str = "image_projection"
    text_projection: str = "text_projection"
    logit_scale: str = "logit_scale"


# of the release, of files before it and of models after it
SPELLINGS = {
    "image": ("image_encoder.", "visual."),
    "text": ("text_encoder.", "lang_encoder.", "text."),
    "image_projection": ("image_projection", "vision_projection"),
    "text_projection": ("text_projection", "lang_projection"),
    "logit_scale": ("logit_scale",),
}
# data parallelism puts everything below a module of this name
WRAPPERS = ("", "module.")


def plan_unicl(state: Mapping[str, Tensor], settings: Mapping[str, Any], options: Options) -> Plan:
    """What becomes of a UniCL state dict; sizes are read from its tensors.

    `settings` is the checkpoint's own configuration as nested dicts; it may be empty. Raises `UserError` for towers
    that this package has not, for a text tower that is not causal, for derived buffers that contradict the sizes, and
    where the number of text heads is unknown.
    """
    if options.vision_heads is not None:
        raise UserError("--vision-heads does not apply: a UniCL checkpoint tells the heads of its image tower")
    if options.model_type not in (None, UniCLConfig.model_type):
        raise UserError(f"a UniCL checkpoint becomes a unicl model, not a {options.model_type} one")
    spelling = find_spelling(state)
    image, text = Tower(state, spelling.image), Tower(state, spelling.text)
    said = section(settings, "MODEL.IMAGE_ENCODER")
    vision, notes, derived = vision_settings(image, said, options)
    text_config, text_notes = text_settings(text, text_section(settings), options)
    config = UniCLConfig(
        vision_config=vision,
        text_config=text_config,
        projection_dim=projection_dim(state, spelling),
        logit_scale_init_value=LOGIT_SCALE,
    )
    dropped = dict.fromkeys(derived, "derived")
    dropped |= {spelling.image + name: "classifier of the image tower" for name in CLASSIFIER if name in image}
    size = vision["image_size"]
    return Plan(
        UniCLModel,
        config,
        {name: tensor for name, tensor in state.items() if name not in dropped},
        unicl_keys(config, spelling),
        ImagePreset(size, IMAGENET_MEAN, IMAGENET_STD, resize=round(size * 256 / 224), resample=BICUBIC),
        dropped=dropped,
        notes=[*notes, *text_notes],
        cleaning="transformers",
    )


def unicl_keys(config: UniCLConfig, spelling: Spelling = Spelling()) -> KeyMap:
    """Names of a UniCL checkpoint in this spelling, beside ours; raises `UserError` for towers it does not have."""
    if not config.has_text_model or config.text_config.model_type != "clip_text_model":
        raise UserError("UniCL's format has names for CLIP's text tower only, which this model has not")
    return KeyMap(
        [
            move(spelling.image_projection, "visual_projection.weight", transpose=True),
            move(spelling.text_projection, "text_projection.weight", transpose=True),
            move(spelling.logit_scale, "logit_scale"),
            *text_rules(spelling.text, "resblocks"),
            *tower_rules_of(config.vision_config)(spelling.image),
        ]
    )


def tower_rules_of(vision: PreTrainedConfig) -> Callable[[str], list[Rule]]:
    """The function that makes the rules of a vision tower; raises `UserError` for one that UniCL has no names for."""
    if vision.model_type not in TOWER_RULES:
        raise UserError(f"UniCL's format has names for Swin and FocalNet only, not for a {vision.model_type} tower")
    return TOWER_RULES[vision.model_type]


def restore_unicl(
    ours: Mapping[str, Tensor], config: UniCLConfig, spelling: Spelling = Spelling()
) -> dict[str, Tensor]:
    """Our tensors under UniCL's names, with the buffers of its Swin: equal, bit for bit, to what was converted.

    A block's buffers are put back where its table of relative positions is among `ours`; masks have the table's dtype.
    Raises `UserError` for towers that UniCL does not have, and for an image size that its windows do not divide.
    """
    restored = unicl_keys(config, spelling).backward(ours)
    vision = config.vision_config
    for block, name, side in derived_buffers(vision) if vision.model_type == "swin" else ():
        table = restored.get(f"{spelling.image}{block}attn.relative_position_bias_table")
        if table is not None:
            buffer = derived_buffer(side, vision.window_size)
            restored[spelling.image + block + name] = buffer.to(table.dtype) if side else buffer
    return restored


def find_spelling(state: Mapping[str, Tensor]) -> Spelling:
    """What this checkpoint calls its parts; raises `UserError` for a part that is missing or there twice."""
    found = {}
    for part, names in SPELLINGS.items():
        names = [wrapper + name for wrapper in WRAPPERS for name in names]
        here = [
            name for name in names if any(key.startswith(name) if name[-1] == "." else key == name for key in state)
        ]
        if not here:
            raise UserError(f"this is no UniCL checkpoint: it has none of {', '.join(names)}")
        if len(here) > 1:
            raise UserError(f"the checkpoint has both {here[0]} and {here[1]}; remove the one that is not its model")
        found[part] = here[0]
    return Spelling(**found)


def vision_settings(
    tower: Tower, said: Mapping[str, Any], options: Options
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Settings of the vision tower, notes, and the full names of its derived buffers.

    The image size is the user's, else the configuration's, else what the stored masks are for, else 224.
    """
    notes, derived = [], []
    configured = said.get("IMG_SIZE") if isinstance(said.get("IMG_SIZE"), int) else None
    if any(name.endswith(".attn.relative_position_bias_table") for name in tower):
        settings = swin_settings(tower)
        settings["image_size"] = configured or stored_image_size(tower, settings) or IMAGE_SIZE
        derived = check_derived(tower, settings)
        size, smallest = options.image_size or settings["image_size"], smallest_image_size(settings)
        if size < smallest:
            raise UserError(f"images of {size} px are too small for this Swin: it needs {smallest} or more")
    elif any(name.endswith(".modulation.f.weight") for name in tower):
        settings, notes = focalnet_settings(tower, section(said, "FOCAL"))
        size = options.image_size or configured or IMAGE_SIZE
    else:
        raise UserError(f"the image tower at {tower.prefix} is neither Swin nor FocalNet; others are not supported")
    rate = said.get("DROP_PATH_RATE")
    if isinstance(rate, int | float) and 0 <= rate < 1:
        settings["drop_path_rate"] = float(rate)
    return settings | {"image_size": size}, notes, derived


def text_section(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a configuration says about the text tower, where UniCL's or its successors' keep it."""
    return section(settings, "MODEL.TEXT_ENCODER") or section(settings, "LANG_ENCODER")


def text_settings(tower: Tower, said: Mapping[str, Any], options: Options) -> tuple[dict[str, Any], list[str]]:
    """Settings of the text tower, and notes; raises `UserError` for one that is not CLIP's with a causal mask."""
    if not said.get("AUTOGRESSIVE", True):
        raise UserError("the text tower is bidirectional (AUTOGRESSIVE: false); only causal ones are supported")
    if said.get("TOKENIZER", "clip") != "clip":
        raise UserError(f"the text tower reads tokens of {said['TOKENIZER']}; only CLIP's tokenizer is supported")
    vocabulary, width = tower.sizes("token_embedding.weight", 2)
    context, _ = tower.sizes("positional_embedding", 2)
    layers = {match[1] for name in tower if (match := _LAYER.match(name))}
    heads, reason = text_heads(width, said, options)
    settings = {
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": tower.sizes("resblocks.0.mlp.c_fc.weight", 2)[0],
        "num_hidden_layers": next(layer for layer in count() if str(layer) not in layers),
        "num_attention_heads": heads,
        "max_position_embeddings": context,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": TEXT_NORM_EPS,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    notes = [f"{heads} text heads ({reason})"]
    if "AUTOGRESSIVE" not in said:
        notes.append("the text tower is taken to be causal, as UniCL's are; the checkpoint does not say")
    return settings, notes


def text_heads(width: int, said: Mapping[str, Any], options: Options) -> tuple[int, str]:
    """Attention heads of the text tower and how they are known: the user, the configuration, or width / 64."""
    heads, reason = options.text_heads, "as given"
    if heads is None:
        heads, reason = said.get("HEADS"), "its configuration"
    if heads is None and width % HEAD_WIDTH == 0:
        heads, reason = width // HEAD_WIDTH, f"width / {HEAD_WIDTH}"
    if heads is None:
        raise UserError(f"the number of text heads is unknown (text width {width}); give it with --text-heads")
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise UserError(f"the text width {width} cannot be cut into {heads!r} heads ({reason}); give --text-heads")
    return heads, reason


def projection_dim(state: Mapping[str, Tensor], spelling: Spelling) -> int:
    """D, which both projections [width, D] must share; raises `UserError` where they do not."""
    sides = [Tower(state, "").sizes(name, 2)[1] for name in (spelling.image_projection, spelling.text_projection)]
    if sides[0] != sides[1]:
        raise UserError(f"{spelling.image_projection} projects to {sides[0]}, {spelling.text_projection} to {sides[1]}")
    return sides[0]


def section(settings: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """A part of a configuration by its dotted path, whether a dict or a pickled node; empty where there is none."""
    part = attribute(settings, path)
    part = part.state if isinstance(part, Placeholder) else part
    return part if isinstance(part, dict) else {}
