"""Stage 1: image-text-label contrast (UniCL) and class-wise pre-training (VL-LTR's CVLP)."""

import copy
from collections import Counter

import numpy as np
import torch

from hf_vlr.anchors import AnchorSelection, limit_images_per_class, score_sentences, select_anchors
from hf_vlr.data.batches import Collator, EpochBatches, TrainingSet
from hf_vlr.data.corpus import ClassTextCorpus
from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.evaluation.predictors import class_vectors, image_vectors, project, zero_shot
from hf_vlr.features import StateCache, Transform, text_states, vision_states
from hf_vlr.modeling import UniCLModel
from hf_vlr.training.context import Context
from hf_vlr.training.loaders import Batches, ImageBatches, StateBatches, spoken_sentences
from hf_vlr.training.model_builder import build_dual_encoder
from hf_vlr.training.options import Recipe
from hf_vlr.training.run_data import RunData, spoken_texts, transforms
from hf_vlr.training.run_folder import TEXTS_FILE, open_folder, save_model, write_evaluation
from hf_vlr.training.tasks import ContrastiveTask
from hf_vlr.training.trainer import Trainer


def fit_contrast(context: Context, data: RunData) -> None:
    """Train a dual encoder, evaluate it by its class texts, write it."""
    recipe, accelerator = context.recipe, context.accelerator
    if data.corpus is None:
        raise UserError(f"task={recipe.task} needs language: leave model.language true")
    encoder = build_dual_encoder(recipe, "vlltr" if recipe.task == "cvlp" else "unicl", spoken_texts(data))
    model = encoder.model.to(accelerator.device)
    name_classes(model, data.train.class_names)
    teacher = copy.deepcopy(model) if recipe.loss.distillation else None
    evaluation, augmentation = transforms(recipe.data, encoder.image_processor)
    collator = Collator(encoder.processor.tokenizer, recipe.data.max_text_length)
    batches = contrast_batches(context, data, model, collator, evaluation, augmentation)
    open_folder(context)
    task = ContrastiveTask(model, recipe.model, recipe.loss, teacher)
    summary = Trainer(task, batches, recipe, context.folder, accelerator).fit(context.resume)
    if not accelerator.is_main_process:
        return
    model.eval()
    if data.train.num_classes:
        vectors = seen_class_vectors(recipe, data, model, collator, evaluation, context.cache)

        def scores(source: ImageSource) -> dict[str, np.ndarray]:
            features = encode_source(context, model, source, evaluation)
            # a mixture may have taught further classes: those of the measured dataset come first
            return zero_shot(features, vectors[: source.num_classes], model.logit_scale.exp().item())

        write_evaluation(context, data, scores, encoder.image_size, summary)
    data.corpus.save(context.folder / TEXTS_FILE)
    save_model(model, encoder.processor, context.folder)


def encode_source(context: Context, model: UniCLModel, source: ImageSource, evaluation: Transform) -> torch.Tensor:
    """Projected image features [N, D] of a source, as the recipe says to compute them."""
    recipe = context.recipe
    return image_vectors(
        model,
        source,
        evaluation,
        batch_size=recipe.eval.batch_size,
        workers=recipe.data.workers,
        cache=context.cache,
    )


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
        dataset = TrainingSet(data.train, corpus, augmentation, recipe.seed, recipe.data.caption_probability)
        return ImageBatches(dataset, collator, keys, recipe.data.workers)
    if "text_model" not in recipe.model.freeze:
        raise UserError("data.cache_views needs a frozen text tower in stage 1: add text_model to model.freeze")
    views = training_views(context, data, model, evaluation, augmentation)
    texts, own = corpus.texts, None
    if recipe.data.caption_probability:
        texts, own = spoken_sentences(data.train, corpus)
    sentences = text_states(model, texts, collator.tokenize, cache=context.cache)
    return StateBatches(data.train, views, keys, recipe.seed, corpus, sentences, own, recipe.data.caption_probability)


def epoch_keys(context: Context, train: ImageSource) -> EpochBatches:
    """The order of every epoch, cut to this process's share; `train.accumulation` batches make a step."""
    recipe, accelerator = context.recipe, context.accelerator
    size, accumulation, processes = recipe.train.batch_size, recipe.train.accumulation, accelerator.num_processes
    if size % (accumulation * processes):
        raise UserError(
            f"train.batch_size={size} must be a multiple of train.accumulation={accumulation} times "
            f"{processes} processes"
        )
    size //= accumulation
    return EpochBatches(
        train.labels,
        size,
        recipe.data.sampler,
        recipe.seed,
        rank=accelerator.process_index,
        world_size=processes,
        # one row has no variance for BatchNorm, and nothing to be contrasted with
        drop_last=len(train) % size < 2,
        parts=train.parts,
    )


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


def unique_names(class_names: list[str]) -> list[str]:
    """The class names, with the index in brackets behind those that repeat."""
    times = Counter(class_names)
    return [f"{name} ({index})" if times[name] > 1 else name for index, name in enumerate(class_names)]


def name_classes(model: UniCLModel, class_names: list[str]) -> None:
    """Put `unique_names` into the configuration; image-text pairs alone have none."""
    if class_names:
        names = unique_names(class_names)
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: index for index, name in enumerate(names)}


def choose_anchors(
    recipe: Recipe,
    data: RunData,
    model: UniCLModel,
    corpus_features: torch.Tensor,
    evaluation: Transform,
    cache: StateCache,
) -> AnchorSelection:
    """Anchor sentences by their cross-entropy on images of `anchors.split` (VL-LTR §3.2; never the test split)."""
    corpus: ClassTextCorpus = data.corpus
    source = data.train if recipe.anchors.split == "train" else data.validation
    chosen = limit_images_per_class(source.labels, recipe.anchors.images_per_class, recipe.seed)
    images = image_vectors(model, source.subset(chosen), evaluation, batch_size=recipe.eval.batch_size, cache=cache)
    labels = torch.from_numpy(source.labels[chosen])
    scores = score_sentences(
        corpus_features,
        torch.from_numpy(corpus.labels),
        images,
        labels,
        model.logit_scale.exp().detach().cpu(),
        chunk_size=recipe.anchors.chunk,
    )
    return select_anchors(
        scores, torch.from_numpy(corpus.labels), corpus.num_classes, recipe.model.num_anchors, corpus.texts
    )


def seen_class_vectors(
    recipe: Recipe,
    data: RunData,
    model: UniCLModel,
    collator: Collator,
    evaluation: Transform,
    cache: StateCache,
) -> torch.Tensor:
    """Unit class vectors [C, D]: the mean of each class's anchor sentences."""
    corpus: ClassTextCorpus = data.corpus
    states = text_states(model, corpus.texts, collator.tokenize, cache=cache)
    features = project(model.text_projection, states, model.device)
    selection = choose_anchors(recipe, data, model, features, evaluation, cache)
    return class_vectors(features, corpus.labels, corpus.num_classes, selection)
