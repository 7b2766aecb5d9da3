"""The classifier of a trained recogniser made anew for balanced classes, its features frozen (Kang et al., ICLR 2020).

It acts on the last layer of the visual branch: of an MLP head on the layer behind its hidden features. The result is a
recogniser like any other.

Letters: `K` views, `N` images, `C` classes, `W` width of what the last layer sees.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoConfig

from hf_vlr.data.batches import Collator
from hf_vlr.data.source import ImageSource
from hf_vlr.distributed import rank_and_world
from hf_vlr.errors import UserError, first_line
from hf_vlr.evaluation.fusion import choose_fusion_weight
from hf_vlr.evaluation.predictors import Scores, project, recognise
from hf_vlr.feature_synthesis import build_synthesis
from hf_vlr.features import Transform, vision_states
from hf_vlr.modeling import VLLTRForImageClassification
from hf_vlr.modeling.modeling_vlltr import CosineClassifier
from hf_vlr.randomness import seed_for
from hf_vlr.rebalancing import ScaledClassifier, choose_scale, choose_tau, ncm_classifier, tau_classifier
from hf_vlr.training.context import Context
from hf_vlr.training.contrast import encode_source, unique_names
from hf_vlr.training.explaining import attention_of
from hf_vlr.training.feeding import epoch_keys, validation_batches
from hf_vlr.training.loaders import Batch, StateBatches
from hf_vlr.training.model_builder import DualEncoder, adapt_processor, load_dual_encoder
from hf_vlr.training.options import PARTS, Recipe
from hf_vlr.training.run_data import RunData, labelled, load_split, transforms
from hf_vlr.training.run_folder import TEXTS_FILE, open_folder, save_model, write_evaluation
from hf_vlr.training.tasks import Features, Task, image_features, real
from hf_vlr.training.tower_specs import UNLOADABLE
from hf_vlr.training.trainer import Trainer

BALANCED_SAMPLERS = ("class-balanced", "over")
CHUNK = 8192


@dataclass(frozen=True)
class Rebalancing:
    """What a method works on: a run, its labelled training and validation images, a recogniser, its transforms."""

    context: Context
    train: ImageSource
    validation: ImageSource | None
    model: VLLTRForImageClassification
    evaluation: Transform
    augmentation: Transform

    @property
    def layer(self) -> nn.Linear:
        """The last layer of the visual branch."""
        visual = self.model.head.visual
        return visual[-1] if isinstance(visual, nn.Sequential) else visual

    def validation_features(self) -> tuple[Tensor, Tensor]:
        """What the last layer sees of the validation images [N, W], on the CPU, and their labels [N]."""
        features = encode_source(self.context, self.model.vlltr, self.validation, self.evaluation)
        labels = torch.from_numpy(self.validation.labels)
        return project(before_last(self.model), features, self.model.device), labels

    def training_states(self) -> Tensor:
        """Tower states [K, N, tower width] of `data.cache_views` views of the training images, or of the first."""
        options = self.context.recipe.data
        return vision_states(
            self.model.vlltr,
            self.train.images,
            self.evaluation,
            self.augmentation,
            views=max(1, options.cache_views),
            workers=options.workers,
            cache=self.context.cache,
            note="training images",
        )


def fit_rebalance(context: Context, data: RunData) -> None:
    """Give the recogniser of `model.init` a new last layer by `rebalance.method`, choose α, evaluate, write.

    Nothing is chosen on anything but the validation split, and nothing else of the model changes.
    """
    recipe, accelerator = context.recipe, context.accelerator
    check_method(recipe)
    model, encoder = load_recogniser(recipe, data.train.class_names)
    evaluation, augmentation = transforms(recipe.data, encoder.image_processor)
    train, validation = labelled(data.train), data.validation
    if validation is None and chooses(recipe, model):
        validation = load_split(recipe, "validation")
    validation = None if validation is None else labelled(validation)
    model.to(accelerator.device).eval().requires_grad_(False)
    model.head.class_counts.copy_(torch.from_numpy(train.class_counts()))
    work = Rebalancing(context, train, validation, model, evaluation, augmentation)
    open_folder(context)
    summary = {"method": recipe.rebalance.method} | METHODS[recipe.rebalance.method](work)
    if not accelerator.is_main_process:
        return

    def scores(source: ImageSource) -> Scores:
        return recognise(model, encode_source(context, model.vlltr, source, evaluation))

    if model.config.num_anchors:
        alpha = recipe.model.fusion_weight
        if alpha is None:
            branches = scores(validation)
            alpha = choose_fusion_weight(branches["visual"], branches["language"], validation.labels)
        summary["fusion_weight"] = model.config.fusion_weight = alpha
        data.corpus.save(context.folder / TEXTS_FILE)
    explain = attention_of(context, model, evaluation)
    write_evaluation(context, data, scores, encoder.image_size, summary, explain)
    save_model(model, encoder.processor, context.folder)


def check_method(recipe: Recipe) -> None:
    """Raise `UserError` for a recipe without a recogniser to start from, or with draws that are not balanced."""
    method, sampler = recipe.rebalance.method, recipe.data.sampler
    if recipe.model.init is None:
        raise UserError("task=rebalance needs a trained recogniser: set model.init to the folder of its run")
    if method in ("crt", "lws") and sampler not in BALANCED_SAMPLERS:
        raise UserError(
            f"rebalance.method={method} trains on balanced classes, not on data.sampler={sampler}: "
            f"set data.sampler={' or '.join(BALANCED_SAMPLERS)}"
        )


def chooses(recipe: Recipe, model: VLLTRForImageClassification) -> bool:
    """Whether the run looks at validation images: for τ, for the scale of class means, or for the fusion weight."""
    options = recipe.rebalance
    chooses_tau = options.method == "tau-norm" and options.tau is None
    chooses_alpha = bool(model.config.num_anchors) and recipe.model.fusion_weight is None
    return chooses_tau or options.method == "ncm" or chooses_alpha


def load_recogniser(recipe: Recipe, class_names: list[str]) -> tuple[VLLTRForImageClassification, DualEncoder]:
    """The recogniser of `model.init`, and the dual encoder in it with its processor.

    Raises `UserError` for another kind of model, for other classes, where language is wanted and missing or the other
    way round, and for a cosine classifier, whose weights have no lengths that a method could change.
    """
    location, options = recipe.model.init, recipe.model
    processor = load_dual_encoder(location, "vlltr").processor
    found = AutoConfig.from_pretrained(location, trust_remote_code=False)
    if "VLLTRForImageClassification" not in (found.architectures or []):
        raise UserError(f"model.init={location} is no recogniser; task=rebalance needs what task=recognition wrote")
    try:
        model = VLLTRForImageClassification.from_pretrained(location)
    except UNLOADABLE as error:
        raise UserError(f"model.init={location} cannot be loaded: {first_line(error)}") from error
    known = [model.config.id2label[index] for index in range(model.config.num_labels)]
    if unique_names(class_names) != known:
        raise UserError(
            f"model.init={location} has other classes ({len(known)}) than the training data ({len(class_names)}), "
            "or in another order"
        )
    if bool(model.config.num_anchors) != options.language:
        kind = "has a language branch" if model.config.num_anchors else "is visual only"
        raise UserError(f"model.init={location} {kind}: set model.language={str(not options.language).lower()}")
    method = recipe.rebalance.method
    if method in ("tau-norm", "lws") and isinstance(model.head.visual, CosineClassifier):
        raise UserError(
            f"rebalance.method={method} is for the lengths of weights, which a cosine head has not; use crt"
        )
    encoder = DualEncoder(model.vlltr, processor)
    adapt_processor(recipe, encoder)
    return model, encoder


def before_last(model: VLLTRForImageClassification) -> nn.Module:
    """From projected image features to what the last layer of the visual branch sees."""
    visual = model.head.visual
    return visual[:-1] if isinstance(visual, nn.Sequential) else nn.Identity()


class ClassifierTask(Task):
    """Cross-entropy (with `loss.label_smoothing`) of a last layer on the frozen features of a recogniser.

    classifier: from features [N, W] to logits [N, C]; only what it registers is trained and kept in checkpoints.
    """

    separable = True

    def __init__(self, classifier: nn.Module, model: VLLTRForImageClassification, recipe: Recipe) -> None:
        super().__init__(classifier, model.vlltr, recipe.model, PARTS)
        self.label_smoothing = recipe.loss.label_smoothing
        self._recogniser = (model,)

    def encode(self, batch: Batch) -> Features:
        model = self._recogniser[0]
        with torch.no_grad():
            return {"images": real(batch, before_last(model)(image_features(model.vlltr, batch)))}

    def objective(self, features: Features, seen: Features, batch: Batch) -> dict[str, Tensor]:
        logits, labels = self.model(features["images"]), real(batch, batch["labels"])
        loss = cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="sum")
        # the sum of this process's images, such that the mean over processes is the mean over all images
        return {"loss": loss * rank_and_world()[1] / batch.get("rows", len(batch["labels"]))}


def retrain(work: Rebalancing, classifier: nn.Module) -> dict[str, Any]:
    """Train a last layer on the cached states of the training images, as the recipe says."""
    context, recipe = work.context, work.context.recipe
    states = work.training_states()
    synthesis = build_synthesis(recipe.data.synthesis, states, work.train.labels, recipe.data.neighbours)
    batches = StateBatches(work.train, states, epoch_keys(context, work.train), recipe.seed, synthesis=synthesis)
    task, encoder = ClassifierTask(classifier, work.model, recipe), work.model.vlltr
    validation = validation_batches(context, work.validation, None, encoder, Collator(None), work.evaluation)
    return Trainer(task, batches, recipe, context.folder, context.accelerator, validation).fit(context.resume)


def crt(work: Rebalancing) -> dict[str, Any]:
    """Classifier re-training: the last layer from fresh weights that depend on the seed alone, on balanced classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(work.context.recipe.seed, 0, 0, "head"))
        fresh = nn.Linear(work.layer.in_features, work.layer.out_features, bias=work.layer.bias is not None)
    work.layer.load_state_dict(fresh.state_dict())
    return retrain(work, work.layer.requires_grad_(True))


def lws(work: Rebalancing) -> dict[str, Any]:
    """Learnable weight scaling: one factor per class trained on balanced classes, then multiplied into the layer."""
    classifier = ScaledClassifier(work.layer)
    summary = retrain(work, classifier)
    classifier.fold()
    return summary


@torch.no_grad()
def tau_norm(work: Rebalancing) -> dict[str, Any]:
    """τ-normalisation of the weights; the bias is dropped, as the authors do."""
    tau, chosen_on = work.context.recipe.rebalance.tau, None
    if tau is None:
        features, labels = work.validation_features()
        weight, chosen_on = work.layer.weight.cpu(), "validation"
        tau = choose_tau(features @ weight.t(), weight, labels)
    set_weight(work.layer, tau_classifier(work.layer.weight, tau))
    return {"tau": tau, "chosen_on": chosen_on}


@torch.no_grad()
def ncm(work: Rebalancing) -> dict[str, Any]:
    """Nearest class mean by cosine, over all cached views; the scale of the logits is chosen on validation images.

    In a linear layer the length of an image's feature stays in its logits: the order of the classes is that of the
    cosines, the scale is for a feature of the length that validation images have on average.
    """
    model, layer = work.model, work.layer
    head = nn.Sequential(model.vlltr.visual_projection, before_last(model))
    labels = torch.from_numpy(work.train.labels).split(CHUNK)
    means = ncm_classifier(
        (
            (project(head, part, model.device), own)
            for view in work.training_states()
            for part, own in zip(view.split(CHUNK), labels, strict=True)
        ),
        model.config.num_labels,
    )
    features, labels = work.validation_features()
    if isinstance(layer, CosineClassifier):
        layer.scale = model.config.visual_scale = choose_scale(normalize(features, dim=1) @ means.t(), labels)
        set_weight(layer, means)
        return {"scale": layer.scale, "chosen_on": "validation"}
    length = features.norm(dim=1).mean()
    scale = choose_scale(features @ means.t() / length, labels)
    set_weight(layer, scale / length * means)
    return {"scale": scale, "chosen_on": "validation"}


def set_weight(layer: nn.Linear, weight: Tensor) -> None:
    """Give a layer other weights [C, W] and no bias."""
    layer.weight.copy_(weight)
    if layer.bias is not None:
        layer.bias.zero_()


METHODS = {"tau-norm": tau_norm, "crt": crt, "lws": lws, "ncm": ncm}
