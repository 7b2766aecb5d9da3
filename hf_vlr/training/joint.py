"""One stage: contrast and recognition trained together, with anchors chosen on the way."""

import copy
import math

import numpy as np
from torch import Tensor

from hf_vlr.data.batches import Collator
from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.evaluation.fusion import choose_fusion_weight
from hf_vlr.evaluation.predictors import Scores, class_vectors, recognise, zero_shot
from hf_vlr.modeling import VLLTRForImageClassification
from hf_vlr.training.anchor_choice import AnchorChoice
from hf_vlr.training.context import Context
from hf_vlr.training.contrast import encode_source
from hf_vlr.training.explaining import attention_of
from hf_vlr.training.feeding import contrast_batches, validation_batches
from hf_vlr.training.joint_task import JointTask
from hf_vlr.training.model_builder import build_dual_encoder
from hf_vlr.training.options import Recipe
from hf_vlr.training.recognition import build_recogniser
from hf_vlr.training.run_data import RunData, spoken_texts, transforms
from hf_vlr.training.run_folder import TEXTS_FILE, open_folder, save_model, write_evaluation
from hf_vlr.training.tower_training import prepare_towers
from hf_vlr.training.trainer import Trainer


def fit_joint(context: Context, data: RunData) -> None:
    """Train a recogniser from its towers on, choosing anchors on the way; choose α, evaluate, write.

    Anchors are chosen by the untrained projections before the first step, and again before every
    `anchors.refresh_every`th epoch; they are not chosen after the last one, because query and key have learned to
    attend to those they had.
    """
    recipe, accelerator = context.recipe, context.accelerator
    check_joint(recipe, data)
    encoder = build_dual_encoder(recipe, "vlltr", spoken_texts(data))
    model = build_recogniser(context, data, encoder)
    teacher = copy.deepcopy(model.vlltr) if recipe.loss.distillation else None
    prepare_towers(model.vlltr, recipe.model)
    evaluation, augmentation = transforms(recipe.data, encoder.image_processor)
    collator = Collator(encoder.processor.tokenizer, recipe.data.max_text_length)
    batches = contrast_batches(context, data, model.vlltr, collator, evaluation, augmentation)
    validation = validation_batches(context, data.validation, data.corpus, model.vlltr, collator, evaluation)
    open_folder(context)
    steps_per_epoch = math.ceil(batches.batches_per_epoch / recipe.train.accumulation)
    choose = AnchorChoice(context, data, model, collator, evaluation, steps_per_epoch)
    task = JointTask(
        model,
        recipe.model,
        recipe.loss,
        model.head.class_counts.cpu(),
        choose,
        refresh_every=recipe.anchors.refresh_every,
        teacher=teacher,
        has_pairs=bool((data.train.labels < 0).any()),
    )
    summary = Trainer(task, batches, recipe, context.folder, accelerator, validation).fit(context.resume)
    if not accelerator.is_main_process:
        return
    model.eval()
    choose.note(task.chosen)

    def scores(source: ImageSource) -> Scores:
        features = encode_source(context, model.vlltr, source, evaluation)
        return recognise(model, features) | {"anchors": anchor_scores(model, features)}

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


def check_joint(recipe: Recipe, data: RunData) -> None:
    """Raise `UserError` for what has no recognition, no contrast or no language."""
    if data.corpus is None:
        raise UserError("task=joint needs language: leave model.language true")
    if recipe.loss.objective not in ("unicl", "clip"):
        raise UserError(f"task=joint contrasts with loss.objective=unicl or clip, not {recipe.loss.objective}")
    if data.train.num_classes < 2:
        raise UserError(f"task=joint needs at least 2 classes; {data.train.name} has {data.train.num_classes}")
    if any(source.num_classes != data.train.num_classes for source in data.measured):
        raise UserError("task=joint recognises the classes of data.source: let data.mix add pairs:SOURCE alone")


def anchor_scores(model: VLLTRForImageClassification, features: Tensor) -> np.ndarray:
    """Log-probabilities [N, C] by each class's mean anchor, as stage 1 predicts."""
    mask = model.head.anchor_mask.cpu()
    vectors = class_vectors(model.head.anchors.cpu()[mask], mask.nonzero()[:, 0], len(mask))
    return zero_shot(features, vectors, model.vlltr.logit_scale.exp().item())["language"]
