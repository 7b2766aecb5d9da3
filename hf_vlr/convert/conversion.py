"""One conversion from end to end: read, decide, move, check, write."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPProcessor, PreTrainedConfig, PreTrainedTokenizerBase

from hf_vlr.convert import FORMATS
from hf_vlr.convert.archive import Weights, read_archive
from hf_vlr.convert.clip_tokenizer import clip_tokenizer
from hf_vlr.convert.hub_clip import plan_hub_clip
from hf_vlr.convert.keymap import Move, listed
from hf_vlr.convert.open_clip import plan_open_clip
from hf_vlr.convert.openai_clip import plan_openai_clip
from hf_vlr.convert.output import free_folder, write
from hf_vlr.convert.plan import RECOGNISER_OPTIONS, ImagePreset, Options, Plan, as_flag
from hf_vlr.convert.positions import leading_positions, position_name, resize_positions
from hf_vlr.convert.unicl import plan_unicl
from hf_vlr.convert.vl_ltr import plan_vl_ltr
from hf_vlr.errors import UserError
from hf_vlr.modeling.configuration_clip_resnet import REDUCTION
from hf_vlr.modeling.modeling_unicl import UniCLPreTrainedModel

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NO_TOKENIZER = "none"
# 2048 pixels in patches of 14 are 21,000 positions, more than any published tower has
MAX_IMAGE_SIZE = 2048
# which formats an option means something for; the rest of `Options` is for every one
APPLIES = {
    "text_heads": ("vl-ltr", "unicl", "openai-clip", "open-clip"),
    "vision_heads": ("vl-ltr", "openai-clip", "open-clip"),
    "model_type": ("openai-clip", "hf-clip", "open-clip"),
    "architecture": ("open-clip",),
    **dict.fromkeys(RECOGNISER_OPTIONS, ("vl-ltr",)),
}


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    folder: where the model lies. model: its class. moves: every foreign tensor and what it became. tensors: ours by
    name, as written. interpolated: (name, positions before, after). dropped, made, notes: see `Plan`.
    """

    folder: Path
    model: str
    moves: tuple[Move, ...]
    tensors: Mapping[str, Tensor]
    interpolated: tuple[tuple[str, int, int], ...]
    dropped: Mapping[str, str]
    made: tuple[str, ...]
    notes: tuple[str, ...]


def convert(
    format: str,
    source: str | Path,
    out: str | Path,
    *,
    tokenizer: str | None = None,
    dtype: str = "float32",
    progress: Callable[[str], None] = lambda step: None,
    **options: Any,
) -> Conversion:
    """Turn a foreign checkpoint into a folder that `AutoModel.from_pretrained` reads.

    Args:
        format: `vl-ltr`, `unicl`, `openai-clip`, `hf-clip` or `open-clip`.
        source: a file; for `hf-clip` and `open-clip` also a folder or a Hub id.
        out: the folder to write; it must not exist or be empty. Nothing is left there on failure.
        tokenizer: a Hub id, a folder, a vocabulary file, or `none`; by default the source's own, else CLIP's.
        dtype: of the weights that are written; the log of the inverse temperature stays float32.
        progress: is told each step as it begins.
        options: see `Options`.

    Raises `UserError` for a file that is not safe or not of this format, and for any tensor that is missing, left
    over or of another shape, all of them by name: nothing is loaded in part.
    """
    folder = free_folder(out)
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype} is none of {', '.join(DTYPES)}")
    progress(f"reading {Path(source).name}")
    choices = Options(**options)
    plan = make_plan(format, str(source), choices)
    progress("moving tensors")
    state, moves = plan.keys.forward(plan.state)
    image = fit_image_size(plan, choices.image_size)
    interpolated = fit_positions(state, plan.config)
    state |= plan.made
    progress("building the model")
    # first: a text tower that pads takes its padding from the tokenizer
    processor = build_processor(plan, image, tokenizer)
    model = build(plan, state, DTYPES[dtype])
    progress(f"writing {folder}")
    conversion = Conversion(
        folder,
        type(model).__name__,
        tuple(moves),
        model.state_dict(),
        tuple(interpolated),
        plan.dropped,
        tuple(plan.made),
        tuple(plan.notes),
    )
    write(conversion, model, processor, format, [Path(source), *map(Path, filter(None, [choices.stage1]))])
    return conversion


def make_plan(format: str, source: str, options: Options) -> Plan:
    """The plan for a source in a format; raises `UserError` for an unknown format or an option it has no use for."""
    if format not in FORMATS:
        raise UserError(f"unknown format {format}; there are {', '.join(FORMATS)}")
    for option, formats in APPLIES.items():
        if getattr(options, option) is not None and format not in formats:
            raise UserError(f"{as_flag(option)} means nothing for {format}; it is for {', '.join(formats)}")
    if format == "hf-clip":
        return plan_hub_clip(source, options)
    if format == "open-clip":
        return plan_open_clip(source, options)
    archive = read_archive(source)
    weights = archive.weights()
    if format == "vl-ltr":
        plan = plan_vl_ltr(weights, archive.settings("args"), options)
    elif format == "unicl":
        plan = plan_unicl(weights, archive.settings("config"), options)
    else:
        plan = plan_openai_clip(weights, options)
    return replace(plan, notes=[*plan.notes, *left_unread(weights)])


def left_unread(weights: Weights) -> list[str]:
    """A note on what else the file holds: optimiser states, a moving average of the weights."""
    rest = ", ".join(f"{name} ({count} tensors)" for name, count in weights.rest.items() if count)
    taken = f"taken from {weights.wrapper!r}; " if weights.wrapper else ""
    return [f"{taken}left unread: {rest}"] if rest else []


def fit_image_size(plan: Plan, size: int | None) -> ImagePreset:
    """The images of the converted model; with another size the tower's configuration follows."""
    if size is None or size == plan.image.size:
        return plan.image
    if not 1 <= size <= MAX_IMAGE_SIZE:
        raise UserError(f"--image-size must lie between 1 and {MAX_IMAGE_SIZE}, not {size}")
    vision = plan.config.vision_config
    if not hasattr(vision, "image_size"):
        raise UserError(f"a {vision.model_type} tower keeps no image size: leave --image-size out")
    unit = REDUCTION if vision.model_type == "clip_resnet" else getattr(vision, "patch_size", 1)
    if isinstance(unit, int) and size % unit:
        raise UserError(f"--image-size {size} is no multiple of {unit}, the patch of this tower")
    vision.image_size = size
    resize = None if plan.image.resize is None else round(plan.image.resize * size / plan.image.size)
    return ImagePreset(size, plan.image.mean, plan.image.std, resize, plan.image.squash, plan.image.resample)


def fit_positions(state: dict[str, Tensor], config: PreTrainedConfig) -> list[tuple[str, int, int]]:
    """Interpolate the vision tower's learned positions in `state` to its image size; returns what was changed."""
    side = grid_side(config.vision_config)
    name = next((name for name in state if position_name(name)), None)
    if side is None or name is None:
        return []
    before, leading = state[name], leading_positions(config.vision_config)
    state[name] = resize_positions(before, side, leading)
    return [(name, len(before), len(state[name]))] if len(before) != len(state[name]) else []


def grid_side(vision: PreTrainedConfig) -> int | None:
    """Positions along a side of the image, for towers that have a learned one for each; else None."""
    if vision.model_type == "clip_resnet":
        return vision.image_size // REDUCTION
    patch, size = getattr(vision, "patch_size", None), getattr(vision, "image_size", None)
    return size // patch if isinstance(patch, int) and isinstance(size, int) else None


def build(plan: Plan, state: Mapping[str, Tensor], dtype: torch.dtype) -> UniCLPreTrainedModel:
    """The model with these weights; raises `UserError` for every tensor that is missing, left over or misshapen."""
    exact = ("logit_scale", "logit_bias")  # the model keeps them in float32
    state = {
        name: tensor.to(torch.float32 if name.endswith(exact) else dtype) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    with torch.device("meta"):
        expected = plan.model_class(plan.config).state_dict()
    missing = [name for name in expected if name not in state]
    extra = [name for name in state if name not in expected]
    shapes = [
        f"{name} {tuple(state[name].shape)} in place of {tuple(like.shape)}"
        for name, like in expected.items()
        if name in state and state[name].shape != like.shape
    ]
    kinds = [
        f"{name} {str(state[name].dtype).removeprefix('torch.')}"
        for name, like in expected.items()
        if name in state and not same_kind(state[name], like)
    ]
    wrong = [("missing", missing), ("left over", extra), ("of another shape", shapes), ("of another kind", kinds)]
    if any(names for _, names in wrong):
        found = "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in wrong if names)
        raise UserError(f"the checkpoint does not fit a {plan.model_class.__name__}: {found}")
    return plan.model_class.from_pretrained(None, config=plan.config, state_dict=state, dtype=dtype)


def build_processor(plan: Plan, image: ImagePreset, tokenizer: str | None) -> CLIPProcessor | CLIPImageProcessor:
    """The processor of the converted model: its image part alone where there is no text tower or no tokenizer."""
    square = {"height": image.size, "width": image.size}
    image_processor = CLIPImageProcessor(
        size=square if image.squash else {"shortest_edge": image.resize or image.size},
        crop_size=square,
        image_mean=list(image.mean),
        image_std=list(image.std),
        resample=image.resample,
    )
    if not plan.config.has_text_model and tokenizer not in (None, NO_TOKENIZER):
        raise UserError("--tokenizer is for a text tower, and this checkpoint has none; leave it out")
    if not plan.config.has_text_model or tokenizer == NO_TOKENIZER:
        return image_processor
    found = load_tokenizer(tokenizer or plan.tokenizer, plan.cleaning)
    check_tokenizer(found, plan.config.text_config)
    return CLIPProcessor(image_processor=image_processor, tokenizer=found)


def load_tokenizer(where: str | None, cleaning: str) -> PreTrainedTokenizerBase:
    """CLIP's tokenizer from a vocabulary file or (None) an installed one; any tokenizer of a folder or a Hub id."""
    if where is None or Path(where).is_file():
        return clip_tokenizer(where, like=cleaning)
    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer in {where}: {str(error).splitlines()[0]}") from error


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Raise `UserError` for a tokenizer of another vocabulary than the text tower's."""
    end = getattr(config, "eos_token_id", None)
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} entries, the text tower {config.vocab_size}: give the right one with "
            f"--tokenizer, or --tokenizer {NO_TOKENIZER}"
        )
    if config.model_type == "clip_text_model" and end != 2 and tokenizer.eos_token_id != end:
        raise UserError(
            f"the tokenizer ends a text with {tokenizer.eos_token_id}, the text tower reads it at {end}: give the "
            f"right one with --tokenizer, or --tokenizer {NO_TOKENIZER}"
        )
    if config.model_type == "siglip_text_model":
        config.pad_token_id = tokenizer.pad_token_id  # the tower pads texts itself
    tokenizer.model_max_length = config.max_position_embeddings


def same_kind(found: Tensor, like: Tensor) -> bool:
    """Whether a tensor may become one like `like`: real numbers any real numbers, all else the same dtype."""
    if like.is_floating_point():
        return found.is_floating_point()
    return found.dtype == like.dtype
