"""Tower specifications: `timm:NAME`, `hf:NAME`, a folder, a file, or `scratch:KIND`.

Each resolves to a configuration, weights (or none) and what belongs beside the tower: the normalisation of its images
or its tokenizer.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    TimmWrapperConfig,
)
from transformers.utils import cached_file

from hf_vlr.errors import UserError, first_line
from hf_vlr.modeling.configuration_unicl import tower_config
from hf_vlr.training.tokenizer import train_tokenizer

HALF = (0.5, 0.5, 0.5)
# what loading a folder, a Hub repository or a file of weights raises where there is none, or a damaged one
UNLOADABLE = (OSError, ValueError, KeyError, RuntimeError, EOFError, SafetensorError, UnpicklingError)

# towers that train from scratch, small ones on a CPU; keys as in their configuration classes
SCRATCH_VISION: dict[str, dict[str, Any]] = {
    "resnet": {
        "model_type": "resnet",
        "embedding_size": 32,
        "hidden_sizes": [32, 64, 128, 256],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
    },
    "resnet-wide": {
        "model_type": "resnet",
        "embedding_size": 64,
        "hidden_sizes": [64, 128, 256, 512],
        "depths": [2, 2, 2, 2],
        "layer_type": "basic",
    },
    "vit": {
        "model_type": "clip_vision_model",
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "patch_size": 4,
    },
    # the sizes of the two papers, for training from scratch on accelerators
    "resnet50": {"model_type": "resnet"},
    "resnet101": {"model_type": "resnet", "depths": [3, 4, 23, 3]},
    "swin-tiny": {
        "model_type": "swin",
        "embed_dim": 96,
        "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24],
        "drop_path_rate": 0.2,
    },
    "swin-base": {
        "model_type": "swin",
        "embed_dim": 128,
        "depths": [2, 2, 18, 2],
        "num_heads": [4, 8, 16, 32],
        "drop_path_rate": 0.5,
    },
    "clip-resnet50": {"model_type": "clip_resnet"},
}
SCRATCH_TEXT: dict[str, dict[str, Any]] = {
    "clip": {
        "model_type": "clip_text_model",
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "embedding": {"model_type": "text_embedding", "hidden_size": 128},
    # CLIP's and UniCL's size
    "clip-base": {
        "model_type": "clip_text_model",
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
    },
}
SCRATCH_VOCABULARY = 4096


T = TypeVar("T")


@dataclass(frozen=True)
class VisionTower:
    """A vision tower's configuration, its weights by name (None: fresh) and the images it was made for.

    mean, std: per channel, in [0, 1]. image_size: the side of the square in pixels, None where any will do.
    """

    config: PreTrainedConfig
    weights: Mapping[str, Tensor] | None
    mean: Sequence[float]
    std: Sequence[float]
    image_size: int | None = None


@dataclass(frozen=True)
class TextTower:
    """A text tower's configuration, its weights by name (None: fresh), its tokenizer and how it is pooled."""

    config: PreTrainedConfig
    weights: Mapping[str, Tensor] | None
    tokenizer: PreTrainedTokenizerBase
    pooling: str


def resolve_vision(spec: str, weights_file: str | None, image_size: int) -> VisionTower:
    """The vision tower that `spec` names; `weights_file` replaces its weights, `image_size` is that of a fresh one.

    A bare weights file must name a timm architecture (`efficientnet-lite0-57934424.pth` does). Raises `UserError` for
    a spec that names nothing, and for weights that do not fit.
    """
    kind, _, name = spec.partition(":")
    if kind == "scratch" and name:
        settings = scratch_settings("vision", name, SCRATCH_VISION)
        if settings["model_type"] in ("clip_vision_model", "clip_resnet"):
            settings["image_size"] = image_size
        config = tower_config(settings, "clip_vision_model")
        tower = VisionTower(config, None, HALF, HALF)
    elif kind == "timm" and name:
        return resolve_timm(name, weights_file)
    elif kind == "hf" and name:
        tower = pretrained_vision(name)
    elif Path(spec).is_dir():
        tower = pretrained_vision(spec)
    elif Path(spec).is_file():
        return resolve_timm(architecture_of_file(Path(spec)), spec)
    else:
        raise UserError(f"model.vision={spec} is neither timm:NAME, hf:NAME, scratch:KIND nor a folder or file")
    if weights_file is None:
        return tower
    reference = AutoModel.from_config(tower.config)
    return replace(tower, weights=fit_weights(reference, weights_file))


def resolve_text(spec: str, sentences: Sequence[str], max_length: int) -> TextTower:
    """The text tower that `spec` names; a `scratch` one learns its tokenizer from `sentences`."""
    kind, _, name = spec.partition(":")
    if kind == "scratch" and name:
        settings = scratch_settings("text", name, SCRATCH_TEXT)
        tokenizer = train_tokenizer(sentences, SCRATCH_VOCABULARY, max_length)
        settings |= {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": max_length,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        pooling = "mean" if name == "embedding" else "pooler"
        return TextTower(tower_config(settings, "clip_text_model"), None, tokenizer, pooling)
    if not ((kind == "hf" and name) or Path(spec).is_dir()):
        raise UserError(f"model.text={spec} is neither hf:NAME, scratch:KIND nor a folder that holds a text encoder")
    location = name if kind == "hf" and name else spec
    model = pretrained(location, "text", AutoModel.from_pretrained)
    model = getattr(model, "text_model", model)
    tokenizer = pretrained(location, "text", AutoTokenizer.from_pretrained)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # what transformers makes up where there is none
        raise UserError(f"model.text: {location!r} has no tokenizer; put its tokenizer.json beside the weights")
    return TextTower(model.config, model.state_dict(), tokenizer, pooling_of(location, model))


def scratch_settings(side: str, name: str, table: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """A copy of one row of a table of small towers; raises `UserError` naming the rows there are."""
    if name not in table:
        near = get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"model.{side}=scratch:{name} is unknown; {hint}There are: {', '.join(table)}")
    return dict(table[name])


def pretrained(location: str, side: str, load: Callable[..., T]) -> T:
    """`load(location)`, without remote code; raises `UserError` when there is no such model."""
    try:
        return load(location, trust_remote_code=False)
    except UNLOADABLE as error:
        raise UserError(f"model.{side}: cannot load {location!r}: {first_line(error)}") from error


def pretrained_vision(location: str) -> VisionTower:
    """The vision tower of a model in a folder or on the Hub, alone or as part of a dual encoder."""
    model = pretrained(location, "vision", AutoModel.from_pretrained)
    model = getattr(model, "vision_model", model)
    processor = pretrained(location, "vision", AutoImageProcessor.from_pretrained)
    size = getattr(model.config, "image_size", None)
    return VisionTower(model.config, model.state_dict(), processor.image_mean, processor.image_std, size)


def resolve_timm(name: str, weights_file: str | None) -> VisionTower:
    """A timm architecture: its Hub weights, or those of a file (`timm:NAME@FILE` names both at once)."""
    name, _, file_in_name = name.partition("@")
    weights_file = weights_file or file_in_name or None
    if not timm.is_model(name.partition(".")[0]):
        near = get_close_matches(name, timm.list_models(), n=1)
        hint = f"; did you mean timm:{near[0]}?" if near else ""
        raise UserError(f"model.vision=timm:{name}: timm has no such architecture{hint}")
    config = TimmWrapperConfig(architecture=name)
    reference = AutoModel.from_config(config)
    defaults = reference.timm_model.default_cfg
    if weights_file:
        weights = fit_weights(reference, weights_file)
    else:
        weights = pretrained(f"timm/{name}", "vision", AutoModel.from_pretrained).state_dict()
    return VisionTower(config, weights, defaults["mean"], defaults["std"], defaults["input_size"][-1])


def architecture_of_file(path: Path) -> str:
    """The timm architecture that a weights file's name states, e.g. `tf_efficientnet_lite0`; else `UserError`."""
    stem = re.sub(r"[-_.]?[0-9a-f]{8}$", "", path.stem).replace("-", "_").lower()
    for name in (f"tf_{stem}", stem):
        if timm.is_model(name):
            return name
    raise UserError(f"model.vision={path}: the file's name states no timm architecture; write timm:NAME@{path}")


def read_weights(path: str) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` or a torch file, read without executing anything in it."""
    if not Path(path).is_file():
        raise UserError(f"weights file {path} does not exist")
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNLOADABLE as error:
        raise UserError(f"weights file {path} cannot be read safely: {first_line(error)}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise UserError(f"weights file {path} holds no tensors by name; give a state dict")
    return tensors


def fit_weights(reference: nn.Module, weights_file: str) -> dict[str, Tensor]:
    """The file's tensors under the names of `reference`: by name where the names agree, else by order and shape.

    The same architecture written down twice has other names but the same tensors in the same order (a safetensors file
    keeps none, so there the names must agree). Surplus tensors at the end (a classifier) are left out; counters of
    batches are not compared.
    """
    target = {key: value for key, value in reference.state_dict().items() if "num_batches_tracked" not in key}
    found = {k: v for k, v in read_weights(weights_file).items() if "num_batches_tracked" not in k}
    by_name = {
        key: found[short] for key in target for short in (key, key.removeprefix("timm_model.")) if short in found
    }
    if set(by_name) != set(target):
        if weights_file.endswith(".safetensors"):
            missing = next(key for key in target if key not in by_name)
            raise UserError(f"weights file {weights_file} does not fit: it has no tensor named {missing}")
        if len(found) < len(target):
            raise UserError(f"weights file {weights_file} does not fit: it has {len(found)} tensors of {len(target)}")
        by_name = dict(zip(target, found.values()))
    for key, value in target.items():
        if by_name[key].shape != value.shape:
            raise UserError(
                f"weights file {weights_file} does not fit: {key} has shape {tuple(value.shape)}, "
                f"the file's tensor there {tuple(by_name[key].shape)}"
            )
    return by_name


def pooling_of(location: str, model: nn.Module) -> str:
    """How a text encoder is pooled: as its sentence-transformers file says, its end of text for CLIP, else the mean."""
    path = cached_file(location, "1_Pooling/config.json", _raise_exceptions_for_missing_entries=False)
    if path is not None:
        text = Path(path).read_text(encoding="utf-8")
        return "cls" if re.search(r'"pooling_mode_cls_token"\s*:\s*true', text) else "mean"
    return "pooler" if model.config.model_type == "clip_text_model" else "mean"
