"""What feeds a run: pictures through workers, or states of frozen towers from memory, in the order of its sampler."""

import math
from typing import Any

import torch

from hf_vlr.data.batches import Collator, EpochBatches, TrainingSet
from hf_vlr.data.corpus import ClassTextCorpus
from hf_vlr.data.mixing import Mixing
from hf_vlr.data.source import ImageSource
from hf_vlr.data.transforms import split_scaling
from hf_vlr.errors import UserError
from hf_vlr.feature_synthesis import build_synthesis
from hf_vlr.features import Transform, text_states, vision_states
from hf_vlr.modeling import UniCLModel
from hf_vlr.samplers import epoch_length
from hf_vlr.training.context import Context
from hf_vlr.training.loaders import Batches, ImageBatches, StateBatches, spoken_sentences
from hf_vlr.training.options import Recipe
from hf_vlr.training.run_data import RunData


def contrast_batches(
    context: Context,
    data: RunData,
    model: UniCLModel,
    collator: Collator,
    evaluation: Transform,
    augmentation: Transform,
) -> Batches:
    """Pictures and tokens, or states of frozen towers where `data.cache_views` asks for them."""
    recipe, corpus = context.recipe, data.corpus
    keys = epoch_keys(context, data.train)
    if not recipe.data.cache_views:
        views = 1 if recipe.loss.objective != "supcon" else 2
        return picture_batches(context, data.train, corpus, augmentation, collator, keys, views=views)
    if "text_model" not in recipe.model.freeze:
        raise UserError("data.cache_views needs a frozen text tower in stage 1: add text_model to model.freeze")
    views = training_views(context, data, model, evaluation, augmentation)
    return state_batches(context, data.train, corpus, model, collator, views, keys)


def recognition_batches(
    context: Context,
    data: RunData,
    model: UniCLModel,
    evaluation: Transform,
    augmentation: Transform,
) -> Batches:
    """Pictures, or states of the frozen vision tower where `data.cache_views` asks for them."""
    recipe, keys = context.recipe, epoch_keys(context, data.train)
    if recipe.data.cache_views:
        views = training_views(context, data, model, evaluation, augmentation)
        return state_batches(context, data.train, None, model, Collator(None), views, keys)
    mixing = Mixing(recipe.data.mixup, recipe.data.cutmix)
    return picture_batches(context, data.train, None, augmentation, Collator(None), keys, mixing=mixing)


def state_batches(
    context: Context,
    source: ImageSource,
    corpus: ClassTextCorpus | None,
    model: UniCLModel,
    collator: Collator,
    views: torch.Tensor,
    keys: EpochBatches,
) -> StateBatches:
    """Batches of states [K, N, W] of the frozen vision tower and, with a corpus, of the frozen text tower."""
    data, seed = context.recipe.data, context.recipe.seed
    # validation images come once each, so there is nothing to replace
    kind = data.synthesis if keys.strategy == "over" else "none"
    synthesis = build_synthesis(kind, views, source.labels, data.neighbours)
    if corpus is None:
        return StateBatches(source, views, keys, seed, synthesis=synthesis)
    if context.recipe.loss.objective == "supcon":
        return StateBatches(source, views, keys, seed, synthesis=synthesis, second_view=True)
    texts, own = spoken_sentences(source, corpus) if data.caption_probability else (corpus.texts, None)
    sentences = text_states(model, texts, collator.tokenize, cache=context.cache)
    return StateBatches(source, views, keys, seed, corpus, sentences, own, data.caption_probability, synthesis)


def picture_batches(
    context: Context,
    source: ImageSource,
    corpus: ClassTextCorpus | None,
    transform: Transform,
    collator: Collator,
    keys: EpochBatches,
    **settings: Any,
) -> ImageBatches:
    """Batches of pictures that stay bytes until the towers see them; `settings` as in `TrainingSet`."""
    recipe = context.recipe
    to_bytes, scaling = split_scaling(transform)
    dataset = TrainingSet(source, corpus, to_bytes, recipe.seed, recipe.data.caption_probability, **settings)
    return ImageBatches(dataset, collator, keys, recipe.data.workers, scaling)


def validation_batches(
    context: Context,
    source: ImageSource | None,
    corpus: ClassTextCorpus | None,
    model: UniCLModel,
    collator: Collator,
    evaluation: Transform,
) -> Batches | None:
    """The validation images, unchanged and in one order, for their loss; None where `train.validate_every` is null."""
    recipe, accelerator = context.recipe, context.accelerator
    if recipe.train.validate_every is None:
        return None
    keys = EpochBatches(
        source.labels,
        recipe.train.batch_size // recipe.train.accumulation,
        "instance",
        recipe.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        blocks=None if recipe.data.cache_views else source.blocks,
    )
    if recipe.data.cache_views:
        views = vision_states(model, source.images, evaluation, cache=context.cache, note="validation")
        return state_batches(context, source, corpus, model, collator, views, keys)
    views = 2 if recipe.loss.objective == "supcon" and corpus is not None else 1
    return picture_batches(context, source, corpus, evaluation, collator, keys, views=views)


def epoch_keys(context: Context, train: ImageSource) -> EpochBatches:
    """The order of every epoch, cut to this process's share; `train.accumulation` batches make a step."""
    recipe, accelerator = context.recipe, context.accelerator
    size, accumulation, processes = recipe.train.batch_size, recipe.train.accumulation, accelerator.num_processes
    if size % (accumulation * processes):
        raise UserError(
            f"train.batch_size={size} must be a multiple of train.accumulation={accumulation} times "
            f"{processes} processes"
        )
    check_synthesis(recipe)
    size //= accumulation
    keys = EpochBatches(
        train.labels,
        size,
        recipe.data.sampler,
        recipe.seed,
        partners=bool(recipe.data.mixup or recipe.data.cutmix),
        rank=accelerator.process_index,
        world_size=processes,
        # one row has no variance for BatchNorm, and nothing to be contrasted with
        drop_last=epoch_length(train.labels, recipe.data.sampler) % size < 2,
        parts=train.parts,
        blocks=None if recipe.data.cache_views else train.blocks,
    )
    steps_per_epoch = math.ceil(keys.batches_per_epoch / accumulation)
    keys.epochs = math.ceil(recipe.train.steps / steps_per_epoch) if recipe.train.steps else recipe.train.epochs
    return keys


def check_synthesis(recipe: Recipe) -> None:
    """Raise `UserError` where `data.synthesis` has no states to work on, or no draws to replace."""
    data = recipe.data
    if data.synthesis == "none":
        return
    if not data.cache_views and recipe.task != "rebalance":
        raise UserError(f"data.synthesis={data.synthesis} makes states, not pictures: set data.cache_views=1 or more")
    if data.sampler != "over":
        raise UserError(f"data.synthesis={data.synthesis} replaces the rows that come again: set data.sampler=over")


def training_views(
    context: Context, data: RunData, model: UniCLModel, evaluation: Transform, augmentation: Transform
) -> torch.Tensor:
    """States [K, N, W] of the training images' views."""
    options = context.recipe.data
    return vision_states(
        model,
        data.train.images,
        evaluation,
        augmentation,
        views=options.cache_views,
        workers=options.workers,
        cache=context.cache,
        note=f"{options.cache_views} views of train",
    )
