"""The processor beside a model's weights: without it nobody can show the model an image."""

from pathlib import Path

from hf_vlr.errors import UserError, first_line
from hf_vlr.hub.reading import read_json
from hf_vlr.training.tower_specs import UNLOADABLE

PROCESSORS = ("processor_config.json", "preprocessor_config.json")
TOKENIZER_FILE = "tokenizer.json"
TOKENIZERS = (TOKENIZER_FILE, "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")


def check_processor(folder: Path) -> None:
    """`UserError` unless `folder` holds an image processor that loads, and no tokenizer that does not."""
    from transformers import AutoImageProcessor

    found = [name for name in PROCESSORS if read_json(folder / name) is not None]
    if not found:
        raise UserError(f"{folder}: no processor ({PROCESSORS[0]}); copy it there from where the model came from")
    try:
        AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (*UNLOADABLE, TypeError, AttributeError) as error:
        raise UserError(f"{folder / found[0]} is damaged ({first_line(error)}); make it anew") from error
    _check_tokenizer(folder / TOKENIZER_FILE)


def _check_tokenizer(path: Path) -> None:
    if path.is_file() and not isinstance((read_json(path) or {}).get("model"), dict):
        raise UserError(f"{path} is damaged (no model of a tokenizer); make it anew")


def crop_side(folder: Path) -> int | None:
    """The side of the square that the processor cuts out, in pixels."""
    for name in PROCESSORS:
        found = read_json(folder / name) or {}
        crop = found.get("image_processor", found).get("crop_size")
        if isinstance(crop, dict) and isinstance(crop.get("height"), int):
            return crop["height"]
    return None
