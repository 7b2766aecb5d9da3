"""Stage 2: recognition guided by anchor sentences (VL-LTR), and its visual-only baseline."""

import torch

from hf_vlr.anchors import gather_anchor_features
from hf_vlr.data.batches import Collator
from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.evaluation.fusion import choose_fusion_weight
from hf_vlr.evaluation.predictors import Scores, project, recognise
from hf_vlr.features import Transform, text_states
from hf_vlr.modeling import VLLTRConfig, VLLTRForImageClassification, VLLTRModel
from hf_vlr.randomness import seed_for
from hf_vlr.training.context import Context
from hf_vlr.training.contrast import choose_anchors, encode_source, name_classes
from hf_vlr.training.explaining import attention_of
from hf_vlr.training.feeding import recognition_batches, validation_batches
from hf_vlr.training.model_builder import DualEncoder, build_dual_encoder
from hf_vlr.training.recognition_task import RecognitionTask
from hf_vlr.training.run_data import RunData, transforms
from hf_vlr.training.run_folder import TEXTS_FILE, open_folder, save_model, write_evaluation
from hf_vlr.training.tower_training import prepare_towers
from hf_vlr.training.trainer import Trainer

# α while training; the choice on validation data comes after, and the loss does not depend on it
NEUTRAL_FUSION_WEIGHT = 0.5


def fit_recognition(context: Context, data: RunData) -> None:
    """Choose anchors, train the head (and whatever is not frozen), choose α, evaluate, write."""
    recipe, accelerator = context.recipe, context.accelerator
    check_classes(data.train)
    encoder = build_dual_encoder(recipe, "vlltr", data.corpus.texts if data.corpus else [])
    model = build_recogniser(context, data, encoder)
    evaluation, augmentation = transforms(recipe.data, encoder.image_processor)
    if data.corpus is not None:
        give_anchors(context, data, model, encoder, evaluation)
    prepare_towers(model.vlltr, recipe.model)
    task = RecognitionTask(model, recipe.model, recipe.loss, model.head.class_counts.cpu())
    batches = recognition_batches(context, data, model.vlltr, evaluation, augmentation)
    open_folder(context)
    validation = validation_batches(context, data.validation, None, model.vlltr, Collator(None), evaluation)
    summary = Trainer(task, batches, recipe, context.folder, accelerator, validation).fit(context.resume)
    if not accelerator.is_main_process:
        return
    model = task.model.eval()

    def scores(source: ImageSource) -> Scores:
        return recognise(model, encode_source(context, model.vlltr, source, evaluation))

    if data.corpus is not None:
        data.corpus.save(context.folder / TEXTS_FILE)
        if recipe.model.fusion_weight is None:
            branches = scores(data.validation)
            model.config.fusion_weight = choose_fusion_weight(
                branches["visual"], branches["language"], data.validation.labels
            )
        summary["fusion_weight"] = model.config.fusion_weight
    explain = attention_of(context, model, evaluation)
    write_evaluation(context, data, scores, encoder.image_size, summary, explain)
    save_model(model, encoder.processor, context.folder)


def check_classes(train: ImageSource) -> None:
    """Raise `UserError` for image-text pairs, which have no class, and for fewer than two classes."""
    pairs = int((train.labels < 0).sum())
    if pairs:
        raise UserError(f"task=recognition needs a label for every image; {train.name} has {pairs} without: task=unicl")
    if train.num_classes < 2:
        raise UserError(f"task=recognition needs at least 2 classes; {train.name} has {train.num_classes}")


def build_recogniser(context: Context, data: RunData, encoder: DualEncoder) -> VLLTRForImageClassification:
    """A recogniser around the encoder, with a fresh head that depends on the seed alone."""
    recipe, accelerator = context.recipe, context.accelerator
    options = recipe.model
    weight = NEUTRAL_FUSION_WEIGHT if options.fusion_weight is None else options.fusion_weight
    config = VLLTRConfig.from_dual_encoder(
        encoder.model.config,
        num_labels=data.train.num_classes,
        num_anchors=options.num_anchors if data.corpus is not None else 0,
        fusion_weight=weight,
        detach_norm=options.detach_norm,
        visual_head=options.visual_head,
        visual_scale=options.visual_scale,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(recipe.seed, 0, 0, "head"))
        model = VLLTRForImageClassification(config)
    model.vlltr.load_state_dict(encoder.model.state_dict())
    name_classes(model, data.train.class_names)
    model.head.class_counts.copy_(torch.from_numpy(data.train.class_counts()))
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model.to(accelerator.device)


def give_anchors(
    context: Context,
    data: RunData,
    model: VLLTRForImageClassification,
    encoder: DualEncoder,
    evaluation: Transform,
) -> None:
    """Encode the corpus, keep the M best sentences of each class and store them in the head."""
    recipe, corpus = context.recipe, data.corpus
    vlltr: VLLTRModel = model.vlltr
    tokenize = Collator(encoder.processor.tokenizer, recipe.data.max_text_length).tokenize
    states = text_states(vlltr, corpus.texts, tokenize, cache=context.cache)
    features = project(vlltr.text_projection, states, vlltr.device)
    selection = choose_anchors(recipe, data, vlltr, features, evaluation, context.cache)
    sentences = [[corpus.texts[i] if i >= 0 else "" for i in row] for row in selection.index.tolist()]
    used = selection.index[selection.mask].tolist()
    provenance = sorted({(corpus.sources[i], corpus.licenses[i]) for i in used})
    model.set_anchors(
        gather_anchor_features(features, selection).to(vlltr.device),
        selection.mask.to(vlltr.device),
        sentences,
        {
            "selection": recipe.anchors.selection,
            "split": recipe.anchors.split,
            "images_per_class": recipe.anchors.images_per_class,
            "texts": [{"source": source, "license": license} for source, license in provenance],
        },
    )
