"""A run's task with random weights and blank inputs, to count and to time what its steps compute.

Letters: `C` classes, `U` unique texts, `L` tokens of a text, `W` width of a tower.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from hf_vlr.modeling import UniCLModel, VLLTRConfig, VLLTRForImageClassification
from hf_vlr.training.contrastive_task import ContrastiveTask
from hf_vlr.training.joint_task import JointTask
from hf_vlr.training.loaders import Batch
from hf_vlr.training.model_builder import MODELS
from hf_vlr.training.options import Recipe
from hf_vlr.training.rebalance import ClassifierTask
from hf_vlr.training.recognition_task import RecognitionTask
from hf_vlr.training.sketch import Sketch
from hf_vlr.training.tasks import Task
from hf_vlr.training.tower_training import prepare_towers

Forward = Callable[[], Tensor]
# classes of a head whose number is not known: it is left out of all counts then
PLACEHOLDER_CLASSES = 2
MODELS_OF_STAGE1 = {"unicl": "unicl", "cvlp": "vlltr"}


@dataclass(frozen=True)
class Shape:
    """What a recipe does not say of its data. classes: None: not known. text_length: tokens of a batch's texts."""

    classes: int | None
    has_pairs: bool
    text_length: int


class Rehearsal:
    """Forward passes of a task, each a scalar to be differentiated.

    Whatever is built here is built on the device that is torch's default, so also without memory (`FakeTensorMode`).
    `autocast` is the run's number format. Towers are not compiled.
    """

    def __init__(self, recipe: Recipe, sketch: Sketch, shape: Shape, autocast: Callable) -> None:
        self.recipe, self.sketch, self.shape, self.autocast = recipe, sketch, shape, autocast
        self.task = build_task(recipe, sketch, shape).train()
        self.encoder: UniCLModel = self.task._encoder[0]
        contrasts = recipe.task in (*MODELS_OF_STAGE1, "joint")
        self.cached = bool(recipe.data.cache_views) or recipe.task == "rebalance"
        self.views = 2 if contrasts and recipe.loss.objective == "supcon" else 1
        self.speaks = contrasts and recipe.loss.objective != "supcon"
        self.taught = bool(self.speaks and recipe.loss.distillation)
        self.has_head = recipe.task in ("recognition", "joint") and shape.classes is not None
        if self.has_head and self.whole.model.config.num_anchors:
            self.whole.model.head.constants()  # once in a run, so not in a step

    @property
    def whole(self) -> nn.Module:
        """All that is kept on the device for the task, be it trained or not; the teacher aside."""
        return getattr(self.task, "_recogniser", (self.task,))[0]

    def images(self, count: int) -> Forward:
        """`count` images as a step computes them: towers, or states of theirs, and the classifiers on top."""
        batch = self._pictures(count, self.cached)

        def forward() -> Tensor:
            with self.autocast():
                features = self.task.encode(batch)
                found = [features["images"]] + ([features["second"]] if "second" in features else [])
                if self.recipe.task == "rebalance":
                    found.append(self.task.model(features["images"]))
                if self.has_head:
                    output = self.task.model(image_features=features["images"])
                    found += [logits for logits in (output.visual_logits, output.language_logits) if logits is not None]
            return scalar(found)

        return forward

    def texts(self, count: int) -> Forward:
        """`count` texts as a step computes them."""
        batch = self._texts(count, self.cached)

        def forward() -> Tensor:
            with self.autocast():
                return scalar([self.task.encode(batch)["texts"]])

        return forward

    def pictures_only(self, count: int) -> Forward:
        """The vision tower's forward pass alone, as for states that are computed once."""
        pictures = self._pictures(count, cached=False)["pixel_values"]

        def forward() -> Tensor:
            with torch.no_grad(), self.autocast():
                return scalar([self.encoder.get_image_features(pictures)])

        return forward

    def texts_only(self, count: int) -> Forward:
        """The text tower's forward pass alone."""
        ids = self._texts(count, cached=False)["input_ids"]

        def forward() -> Tensor:
            with torch.no_grad(), self.autocast():
                return scalar([self.encoder.get_text_features(ids)])

        return forward

    def _pictures(self, count: int, cached: bool) -> Batch:
        batch = {"labels": torch.zeros(count, dtype=torch.int64)}
        if cached:
            names = ("vision_states", "second_vision_states")
            shape: tuple[int, ...] = (self.encoder.visual_projection.in_features,)
        else:
            names = ("pixel_values", "second_pixel_values")
            shape = (3, self.sketch.image_size, self.sketch.image_size)
        return batch | {name: torch.zeros(count, *shape) for name in names[: self.views]}

    def _texts(self, count: int, cached: bool) -> Batch:
        batch = {"labels": torch.zeros(count, dtype=torch.int64)}
        if cached:
            return batch | {"text_states": torch.zeros(count, self.encoder.text_projection.in_features)}
        # no mask: every text has all its tokens, the most that can be to compute
        ids = torch.zeros(count, self.shape.text_length, dtype=torch.int64)
        return batch | {"input_ids": ids, "attention_mask": None}


def build_task(recipe: Recipe, sketch: Sketch, shape: Shape) -> Task:
    """The task that a recipe trains, around a model with fresh weights."""
    options, classes = recipe.model, shape.classes or PLACEHOLDER_CLASSES
    distils = recipe.loss.distillation and recipe.task in (*MODELS_OF_STAGE1, "joint")
    if recipe.task in MODELS_OF_STAGE1:
        kind, config = MODELS[MODELS_OF_STAGE1[recipe.task]][1], sketch.config
    else:
        kind = VLLTRForImageClassification
        config = VLLTRConfig.from_dual_encoder(
            sketch.config,
            num_labels=classes,
            num_anchors=options.num_anchors if options.language else 0,
            visual_head=options.visual_head,
        )
    model = prepared(kind(config), recipe)
    teacher = type(encoder_of(model))(config) if distils else None
    # tasks look at the values of class counts, which tensors without memory have not
    with unset_fake_temporarily():
        return task_of(recipe, model, teacher, classes, shape.has_pairs)


def task_of(recipe: Recipe, model: nn.Module, teacher: UniCLModel | None, classes: int, has_pairs: bool) -> Task:
    """A recipe's task; class counts, which re-weight and cost nothing, are taken to be equal."""
    options, counts = recipe.model, torch.ones(classes)
    loss = replace(recipe.loss, classification="cross-entropy", reweight="none", logit_adjustment=0.0)
    if recipe.task in MODELS_OF_STAGE1:
        return ContrastiveTask(model, options, loss, teacher, num_classes=classes, has_pairs=has_pairs)
    if recipe.task == "rebalance":
        layer = model.head.visual[-1] if isinstance(model.head.visual, nn.Sequential) else model.head.visual
        model.requires_grad_(False)
        return ClassifierTask(layer.requires_grad_(True), model, recipe)
    if recipe.task == "joint":
        return JointTask(model, options, loss, counts, lambda _, chosen: chosen, teacher=teacher, has_pairs=has_pairs)
    return RecognitionTask(model, options, loss, counts)


def encoder_of(model: nn.Module) -> UniCLModel:
    """The dual encoder in a model."""
    return model if isinstance(model, UniCLModel) else model.vlltr


def prepared(model: nn.Module, recipe: Recipe) -> nn.Module:
    """The model with what training does to its towers, compilation aside."""
    if recipe.model.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    prepare_towers(encoder_of(model), replace(recipe.model, compile=False))
    return model


def scalar(tensors: list[Tensor]) -> Tensor:
    """A number that depends on every element of every tensor."""
    return torch.stack([tensor.float().sum() for tensor in tensors]).sum()
