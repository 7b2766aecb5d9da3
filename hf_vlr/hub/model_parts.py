"""What a model is made of: its class, and the parameters of each part, counted without loading a weight."""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hf_vlr.errors import UserError, first_line
from hf_vlr.training.tower_specs import UNLOADABLE

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class ModelParts:
    """model: the name of the class. parameters: by part, those that are there; `total`: of all. No buffer counts."""

    model: str
    parameters: dict[str, int]
    total: int


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights: one, or those that its index names with the index; none where one is absent."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        return []
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{folder / INDEX} is damaged; save the model again") from error
    found = [folder / name for name in names]
    return [*found, folder / INDEX] if all(path.is_file() for path in found) else []


def read_parts(folder: Path) -> ModelParts:
    """Build the model without memory and count.

    Raises `UserError` for a model that is none of this package's, and for weights that are damaged or of another one.
    """
    import torch
    from transformers import AutoConfig

    from hf_vlr.modeling import UniCLModel, VLLTRForImageClassification, VLLTRModel

    known = {kind.__name__: kind for kind in (VLLTRForImageClassification, VLLTRModel, UniCLModel)}
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        kind = known.get((config.architectures or [""])[0])
        if kind is None:
            found = ", ".join(config.architectures or [config.model_type])
            raise UserError(f"{folder}: a {found}, no model of this package; push it with its own library")
        if not isinstance(config, kind.config_class):
            raise UserError(f"{folder}: a {kind.__name__} of model_type {config.model_type}; save the model again")
        with torch.device("meta"):
            model = kind(config)
    except UNLOADABLE as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder}: the configuration cannot be read ({first_line(error)})") from error
    missing = set(model.state_dict()) - set(_tensor_names(folder))
    if missing:
        raise UserError(f"{folder}: the weights lack {len(missing)} tensors such as {min(missing)}; save them again")
    encoder = model.vlltr if kind is VLLTRForImageClassification else model
    parts = {
        "image tower": encoder.vision_model,
        "text tower": encoder.text_model,
        "image projection": encoder.visual_projection,
        "text projection": encoder.text_projection,
        "recognition head": getattr(model, "head", None),
    }
    counts = {name: sum(one.numel() for one in part.parameters()) for name, part in parts.items() if part is not None}
    total = sum(one.numel() for one in model.parameters())
    return ModelParts(kind.__name__, {name: count for name, count in counts.items() if count}, total)


def _tensor_names(folder: Path) -> list[str]:
    names: list[str] = []
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "np") as file:
                    names += file.keys()
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path} is damaged ({first_line(error)}); save the model again") from error
    return names
