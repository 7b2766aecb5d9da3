"""open_clip's checkpoints: a folder or a repository with its configuration, or a bare file and an architecture name."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor

from hf_vlr.convert.archive import read_archive
from hf_vlr.convert.clip_keys import projection_rules, resnet_rules, text_rules, vit_rules
from hf_vlr.convert.keymap import KeyMap, Rule, move
from hf_vlr.convert.open_clip_settings import (
    HEAD,
    TRUNK,
    TRUNK_HEAD,
    check_settings,
    image_preset,
    square,
    text_tower,
    vision_tower,
)
from hf_vlr.convert.openai_clip import batch_counters, model_kind, without_constants, without_parallel
from hf_vlr.convert.plan import Options, Plan
from hf_vlr.errors import UserError

HUB = "hf-hub:"
CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
DEFAULT_IMAGE_SIZE = 224


class Source(NamedTuple):
    """A model as it was stored: its configuration, preprocessing (None: not stated), weights, and its folder if any."""

    settings: Mapping[str, Any]
    preprocess: Mapping[str, Any] | None
    state: Mapping[str, Tensor]
    folder: Path | None


def plan_open_clip(source: str, options: Options) -> Plan:
    """What becomes of an open_clip model.

    source: a folder or `hf-hub:ORG/NAME` with `open_clip_config.json`; or a file of weights, whose architecture
    `options.architecture` names as open_clip does. The vision tower is a ViT, the modified ResNet or one of timm's with
    one linear projection; the text tower is open_clip's own, causal, at the top level or below `text.`.

    Raises `UserError` for what cannot be found or read, for tensors that contradict the configuration, and for a
    setting that this package's towers do not compute.
    """
    config_class, model_class = model_kind(options)
    settings, preprocess, stored, folder = read_source(source, options)
    check_settings(settings)
    weights, dropped = without_constants(stored)
    # open_clip may keep either as a vector of length one
    state = {
        name: tensor.reshape(()) if name in ("logit_scale", "logit_bias") else tensor
        for name, tensor in weights.items()
    }
    prefix = "text." if "text.token_embedding.weight" in state else ""
    vision = vision_tower(settings, state, options)
    resnet = vision["model_type"] == "clip_resnet"
    head = HEAD if f"{HEAD}weight" in state else TRUNK_HEAD
    config = config_class(
        vision_config=vision,
        text_config=text_tower(settings, state, options, prefix),
        projection_dim=settings["embed_dim"],
        visual_projection_bias=resnet or f"{head}bias" in state,
        logit_bias_init_value=float(settings.get("init_logit_bias") or 0.0) if "logit_bias" in state else None,
    )
    size = vision.get("image_size") or square(settings["vision_cfg"].get("image_size", DEFAULT_IMAGE_SIZE))
    image, notes = image_preset(size, preprocess)
    return Plan(
        model_class,
        config,
        state,
        open_clip_keys(vision["model_type"], prefix, head),
        image,
        batch_counters(state) if resnet else {},
        dropped,
        tokenizer_place(settings["text_cfg"], folder),
        notes,
    )


def open_clip_keys(vision: str, prefix: str = "", head: str = HEAD) -> KeyMap:
    """open_clip's names beside ours, for a vision tower of this model type and the text tower below `prefix`.

    head: where the projection of a tower of timm's lies.
    """
    heads = [*projection_rules(f"{prefix}text_projection"), move("logit_bias", "logit_bias")]
    return KeyMap([*heads, *text_rules(prefix), *vision_rules(vision, head)])


def vision_rules(vision: str, head: str = HEAD) -> list[Rule]:
    """Rules of a vision tower of this model type and its projection."""
    if vision == "timm_wrapper":
        projection = [move(f"{head}{part}", f"visual_projection.{part}") for part in ("weight", "bias")]
        return [*projection, move(f"{TRUNK}**", "vision_model.timm_model.**")]
    return resnet_rules() if vision == "clip_resnet" else vit_rules()


def read_source(source: str, options: Options) -> Source:
    """Configuration and weights of a folder, a repository or a file; raises `UserError` where either is not there."""
    path = Path(source)
    if source.startswith(HUB):
        config, weights = download(source.removeprefix(HUB))
    elif path.is_dir():
        config = path / CONFIG_FILE
        weights = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
        if not config.is_file() or weights is None:
            raise UserError(f"{source} must hold {CONFIG_FILE} and {' or '.join(WEIGHT_FILES)}")
    elif path.is_file():
        return Source(architecture_settings(options.architecture), None, read_weights(path), None)
    else:
        raise UserError(f"{source} is neither a folder nor a file; a repository of the Hub is written {HUB}ORG/NAME")
    stated = read_json(config)
    settings = stated.get("model_cfg")
    if not isinstance(settings, dict):
        raise UserError(f"{config} holds no model_cfg")
    return Source(settings, stated.get("preprocess_cfg") or {}, read_weights(weights), config.parent)


def download(repository: str) -> tuple[Path, Path]:
    """Configuration and weights of a repository, from the Hub or its cache."""
    try:
        config = hf_hub_download(repository, CONFIG_FILE)
        try:
            weights = hf_hub_download(repository, WEIGHT_FILES[0])
        except EntryNotFoundError:
            weights = hf_hub_download(repository, WEIGHT_FILES[1])
    except (OSError, ValueError, EntryNotFoundError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{HUB}{repository} cannot be had as an open_clip model: {reason}") from error
    return Path(config), Path(weights)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, without the prefix that data-parallel training gives them."""
    return dict(without_parallel(read_archive(path).weights())[0])


def architecture_settings(name: str | None) -> Mapping[str, Any]:
    """The configuration of an architecture, from the installed open_clip, which is not imported.

    Raises `UserError` where no architecture is named, open_clip is not installed, or it does not know the name.
    """
    if name is None:
        raise UserError("a bare file does not say what it is: give --architecture, such as ViT-B-32-quickgelu")
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise UserError('architecture names are open_clip\'s: pip install "hf_vlr[convert]"')
    folder = Path(spec.origin).parent / "model_configs"
    known = sorted(file.stem for file in folder.glob("*.json"))
    if name not in known:
        raise UserError(f"open_clip has no architecture {name}; it has {len(known)}, such as {', '.join(known[-3:])}")
    return read_json(folder / f"{name}.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping; raises `UserError` for any other."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a mapping")
    return content


def tokenizer_place(text: Mapping[str, Any], folder: Path | None) -> str | None:
    """Where the tokenizer comes from: the folder, or the Hub id that the text tower names; None: CLIP's own."""
    name = text.get("hf_tokenizer_name")
    if name and folder is not None and any((folder / file).is_file() for file in TOKENIZER_FILES):
        return str(folder)
    return name or None
