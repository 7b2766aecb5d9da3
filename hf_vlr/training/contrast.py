"""Stage 1: image-text-label contrast (UniCL) and class-wise pre-training (VL-LTR's CVLP)."""

import copy
from collections import Counter
from collections.abc import Callable

import torch

from hf_vlr.anchors import AnchorSelection, limit_images_per_class, score_sentences, select_anchors, unscored_order
from hf_vlr.data.batches import Collator
from hf_vlr.data.corpus import ClassTextCorpus
from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.evaluation.predictors import Scores, class_vectors, image_vectors, project, zero_shot
from hf_vlr.features import StateCache, Transform, text_states
from hf_vlr.modeling import UniCLModel
from hf_vlr.training.context import Context
from hf_vlr.training.contrastive_task import ContrastiveTask
from hf_vlr.training.feeding import contrast_batches, validation_batches
from hf_vlr.training.model_builder import build_dual_encoder
from hf_vlr.training.options import Recipe
from hf_vlr.training.run_data import RunData, labelled, spoken_texts, transforms
from hf_vlr.training.run_folder import TEXTS_FILE, open_folder, save_model, write_evaluation
from hf_vlr.training.tower_training import prepare_towers
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
    prepare_towers(model, recipe.model)
    evaluation, augmentation = transforms(recipe.data, encoder.image_processor)
    collator = Collator(encoder.processor.tokenizer, recipe.data.max_text_length)
    batches = contrast_batches(context, data, model, collator, evaluation, augmentation)
    validation = validation_batches(context, data.validation, data.corpus, model, collator, evaluation)
    open_folder(context)
    task = ContrastiveTask(
        model,
        recipe.model,
        recipe.loss,
        teacher,
        num_classes=data.train.num_classes,
        has_pairs=bool((data.train.labels < 0).any()),
    )
    summary = Trainer(task, batches, recipe, context.folder, accelerator, validation).fit(context.resume)
    if not accelerator.is_main_process:
        return
    model = task.model.eval()
    if data.train.num_classes:
        scores = contrast_scores(context, data, task, collator, evaluation)
        write_evaluation(context, data, scores, encoder.image_size, summary)
    data.corpus.save(context.folder / TEXTS_FILE)
    save_model(model, encoder.processor, context.folder)


def contrast_scores(
    context: Context, data: RunData, task: ContrastiveTask, collator: Collator, evaluation: Transform
) -> Callable[[ImageSource], Scores]:
    """What predicts after stage 1: class texts (`language`), class means of the training images (`class-means`) where
    the objective knows no texts, and the linear classifier (`classifier`) where it has one.

    A mixture may have taught further classes: those of the measured dataset come first.
    """
    model: UniCLModel = task.model
    if task.speaks:
        vectors = seen_class_vectors(context.recipe, data, model, collator, evaluation, context.cache)
    else:
        rows = labelled(data.train)
        vectors = class_vectors(encode_source(context, model, rows, evaluation), rows.labels, data.train.num_classes)

    def scores(source: ImageSource) -> Scores:
        features = encode_source(context, model, source, evaluation)
        found = zero_shot(features, vectors[: source.num_classes], model.logit_scale.exp().item())
        if not task.speaks:
            return {"class-means": found["language"]}
        if task.classifier is not None:
            logits = project(task.classifier, features, model.device)[:, : source.num_classes]
            found["classifier"] = logits.log_softmax(-1).numpy()
        return found

    return scores


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
    """Anchor sentences by their cross-entropy on images of `anchors.split` (VL-LTR §3.2; never the test split).

    `anchors.selection` may instead ask for the corpus's first sentences or for random ones, as an ablation.
    """
    corpus: ClassTextCorpus = data.corpus
    text_labels, limit = torch.from_numpy(corpus.labels), recipe.model.num_anchors
    if recipe.anchors.selection != "scored":
        order = unscored_order(text_labels, recipe.anchors.selection, recipe.seed)
        return select_anchors(order, text_labels, corpus.num_classes, limit, corpus.texts)
    source = data.train if recipe.anchors.split == "train" else data.validation
    chosen = limit_images_per_class(source.labels, recipe.anchors.images_per_class, recipe.seed)
    images = image_vectors(model, source.subset(chosen), evaluation, batch_size=recipe.eval.batch_size, cache=cache)
    labels = torch.from_numpy(source.labels[chosen])
    scores = score_sentences(
        corpus_features,
        text_labels,
        images,
        labels,
        model.logit_scale.exp().detach().cpu(),
        chunk_size=recipe.anchors.chunk,
    )
    return select_anchors(scores, text_labels, corpus.num_classes, limit, corpus.texts)


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
