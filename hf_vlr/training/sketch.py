"""The shape of the model that a recipe trains, without its weights: configurations, no downloads of tensors.

A tower's configuration is read where it lies (a folder, the Hub's small `config.json`, timm's own tables).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import timm
from transformers import AutoConfig, PreTrainedConfig, TimmWrapperConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from hf_vlr.errors import UserError
from hf_vlr.modeling import UniCLConfig
from hf_vlr.training.model_builder import DEFAULT_IMAGE_SIZE, MODELS
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import load_recipe, packaged_recipes
from hf_vlr.training.tower_specs import (
    SCRATCH_VOCABULARY,
    UNLOADABLE,
    architecture_of_file,
    resolve_text,
    resolve_vision,
)

# a tokenizer is learned for the sketch from this many sentences at most
TOKENIZER_SENTENCES = 50_000


@dataclass(frozen=True)
class Sketch:
    """What a run's dual encoder will be: its configuration, the side of its images, its tokenizer where that is known.

    notes: what had to be assumed.
    """

    config: UniCLConfig
    image_size: int
    tokenizer: Any | None
    notes: tuple[str, ...] = ()


def sketch_dual_encoder(recipe: Recipe, sentences: Sequence[str] = ()) -> Sketch:
    """The dual encoder that `build_dual_encoder` would make of a recipe; nothing but configurations is read.

    `sentences` teach a fresh text tower its vocabulary; without any its size is assumed. A `model.init` that is not
    there yet is sketched in turn where it is the folder that a packaged recipe writes. Raises `UserError` for what
    cannot be found.
    """
    kind = "vlltr" if recipe.task in ("cvlp", "recognition", "joint", "rebalance") else "unicl"
    if recipe.model.init is None:
        return _composed(recipe, kind, sentences)
    sketch = _started(recipe, sentences)
    size = recipe.data.image_size or sketch.image_size
    return Sketch(MODELS[kind][0].from_dual_encoder(sketch.config), size, sketch.tokenizer, sketch.notes)


def _started(recipe: Recipe, sentences: Sequence[str]) -> Sketch:
    """What `model.init` names."""
    init = recipe.model.init
    before = PurePath(init).name
    if PurePath(init).parent == PurePath("runs") and before in packaged_recipes() and not Path(init).is_dir():
        planned = sketch_dual_encoder(load_recipe(before), sentences)
        note = f"{init} is not there yet: taken for what recipe {before} makes"
        return Sketch(planned.config, planned.image_size, planned.tokenizer, (*planned.notes, note))
    try:
        found = AutoConfig.from_pretrained(init, trust_remote_code=False)
    except UNLOADABLE as error:
        raise UserError(f"model.init={init} is neither a folder here nor to be had from the Hub") from error
    if found.model_type == "clip":
        config = UniCLConfig.from_clip(found)
    elif isinstance(found, UniCLConfig):
        config = found
    else:
        raise UserError(f"model.init={init} is a {found.model_type!r} checkpoint; it must be unicl, vlltr or clip")
    return Sketch(config, getattr(config.vision_config, "image_size", None) or DEFAULT_IMAGE_SIZE, None)


def _composed(recipe: Recipe, kind: str, sentences: Sequence[str]) -> Sketch:
    """`compose_dual_encoder` without weights."""
    options, size = recipe.model, recipe.data.image_size
    vision, own_size = vision_config(options.vision, size or DEFAULT_IMAGE_SIZE)
    text = tokenizer = pooling = None
    notes = []
    if options.language:
        text, tokenizer, pooling = text_config(options.text, sentences, recipe.data.max_text_length)
        if tokenizer is None and options.text.startswith("scratch:"):
            notes.append(f"the vocabulary is learned from the texts: {SCRATCH_VOCABULARY:,} pieces are assumed")
    config = MODELS[kind][0](
        vision_config=vision.to_dict(),
        text_config=None if text is None else text.to_dict(),
        has_text_model=text is not None,
        projection_dim=options.projection_dim,
        logit_scale_init_value=options.logit_scale_init,
        text_pooling=options.text_pooling or pooling or "pooler",
    )
    return Sketch(config, size or own_size or DEFAULT_IMAGE_SIZE, tokenizer, tuple(notes))


def vision_config(spec: str, image_size: int) -> tuple[PreTrainedConfig, int | None]:
    """A vision tower's configuration and the side of the images it was made for; `UserError` where there is none."""
    kind, _, name = spec.partition(":")
    if kind == "scratch":
        return resolve_vision(spec, None, image_size).config, None
    if kind != "timm" and not Path(spec).is_file():
        config = _read_config(name if kind == "hf" else spec, "vision", "vision_config")
        return config, getattr(config, "image_size", None)
    name = name.partition("@")[0] if kind == "timm" else architecture_of_file(Path(spec))
    known = timm.get_pretrained_cfg(name) if timm.is_model(name.partition(".")[0]) else None
    if known is None:
        raise UserError(f"model.vision={spec}: timm has no such architecture")
    return TimmWrapperConfig(architecture=name), known.input_size[-1]


def text_config(
    spec: str, sentences: Sequence[str], max_length: int
) -> tuple[PreTrainedConfig, Any | None, str | None]:
    """A text tower's configuration, its tokenizer and pooling (None: not known); `UserError` where there is none."""
    kind, _, name = spec.partition(":")
    if kind != "scratch":
        return _read_config(name if kind == "hf" else spec, "text", "text_config"), None, None
    step = max(1, -(-len(sentences) // TOKENIZER_SENTENCES))
    tower = resolve_text(spec, list(sentences[::step]), max_length)
    if sentences:
        return tower.config, tower.tokenizer, tower.pooling
    tower.config.vocab_size = SCRATCH_VOCABULARY
    return tower.config, None, tower.pooling


def _read_config(location: str, side: str, part: str) -> PreTrainedConfig:
    """A model's configuration, of a dual encoder that of its `part`."""
    try:
        config = AutoConfig.from_pretrained(location, trust_remote_code=False)
    except UNLOADABLE as error:
        raise UserError(f"model.{side}={location} is neither a folder here nor to be had from the Hub") from error
    config = getattr(config, part, None) or config
    if config.model_type not in CONFIG_MAPPING_NAMES:
        raise UserError(f"model.{side}={location} is of no known kind ({config.model_type!r})")
    return config
