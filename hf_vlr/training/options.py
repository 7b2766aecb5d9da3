"""The dataclasses of an experiment.

A recipe is data: every key, its type, its default, its range and its help stand once, in the fields below.
The command line, the list of keys and all error messages are made from them.
"""

from dataclasses import MISSING, dataclass, field
from typing import Any

from hf_vlr.errors import UserError
from hf_vlr.training.keys import about, check_value, describe, leaves, option, value_at

TOWER_HELP = "timm:NAME, hf:NAME, a folder, a file, or scratch:KIND"
PARTS = ("vision_model", "text_model", "visual_projection", "text_projection", "logit_scale")


@dataclass
class DataOptions:
    """Where the images, labels and texts come from, and how they become batches."""

    source: str = option(
        "shapes-lt",
        "a built-in set, imagefolder:DIR, a Parquet folder or a Hub name; stream:SPEC reads images only when needed",
    )
    options: dict[str, Any] = field(
        default_factory=dict, metadata=about("settings of the source itself, e.g. data.options.classes=108")
    )
    mix: list[str] = field(
        default_factory=list,
        metadata=about("further training sources; pairs:SOURCE takes its texts as image-text pairs, without classes"),
    )
    texts: str | None = option(
        None,
        "class texts, a+b joins: a JSONL, CSV or folder of .txt, captions, templates, clip-templates[:1|7|80], own "
        "(the dataset's), wiki:DIR, wordnet:LABELS, llm:FILE, taxonomy:FILE; null = automatic",
    )
    text_sampling: str = option(
        "uniform",
        "how a class's sentences are drawn; distinctive: rarer where other classes have the same one",
        choices=("uniform", "distinctive"),
    )
    folds: int | None = option(None, "cut the training data into this many folds; null = use its own splits", low=2)
    fold: int | None = option(None, "the fold that is tested, 0 … folds-1", low=0)
    validation_fraction: float = option(0.1, "part of each class held out to choose on", low=0.0, high=0.9)
    sampler: str = option(
        "sqrt",
        "how often a class of n images is drawn, or with data.mix a source; progressive goes from instance to "
        "class-balanced, under and over cut or repeat every class to the size of the smallest or largest",
        choices=("instance", "class-balanced", "sqrt", "progressive", "under", "over", "source-balanced"),
    )
    synthesis: str = option(
        "none",
        "with cache_views and sampler=over: a repeated row is a new state, between neighbours of its class (smote) or "
        "from the spread of common classes (transfer)",
        choices=("none", "smote", "transfer"),
    )
    neighbours: int = option(5, "nearest states of the class that data.synthesis=smote goes towards", low=1)
    split_seed: int = option(0, "seed of generated data, folds and held-out parts; the run's own is `seed`", low=0)
    decoder: str = option(
        "auto",
        "what reads JPEG files for a model: auto = torchvision, as bytes; pillow = decoded and resized by Pillow",
        choices=("auto", "pillow"),
    )
    image_size: int | None = option(None, "side of the square the model sees; null = the model's, else 224", low=8)
    image_mean: list[float] = field(
        default_factory=list, metadata=about("three channel means; [] = those of the tower", low=0.0, high=1.0)
    )
    image_std: list[float] = field(
        default_factory=list, metadata=about("three channel deviations; [] = those of the tower", above=0.0, high=1.0)
    )
    augment: str = option("light", "strength of the augmentation", choices=("none", "light", "strong"))
    min_scale: float = option(0.4, "smallest area of a random crop, part of the image", above=0.0, high=1.0)
    flip: bool = option(True, "mirror half of the training images")
    mixup: float = option(0.0, "α of mixup's Beta(α, α) in recognition; 0 = off", low=0.0)
    cutmix: float = option(0.0, "α of CutMix's Beta(α, α) in recognition; 0 = off", low=0.0)
    caption_probability: float = option(0.0, "chance of the image's own caption over a class text", low=0.0, high=1.0)
    max_text_length: int = option(77, "tokens kept of a text", low=2)
    workers: int = option(0, "data-loading processes per training process", low=0)
    cache_views: int = option(
        0, "views whose frozen-tower states are computed once, the first not augmented; 0 = off", low=0
    )
    cache_dir: str | None = option(
        None,
        "folder that keeps those states for other runs; null = memory only, or in hf-vlr eval the assets cache; off",
    )


@dataclass
class ModelOptions:
    """The two towers and what is built on them."""

    init: str | None = option(
        None, "folder or Hub id to start from, e.g. what stage 1 wrote; the keys of the towers are then not used"
    )
    vision: str = option("scratch:vit", f"vision tower: {TOWER_HELP}")
    text: str = option("scratch:clip", f"text tower: {TOWER_HELP}")
    vision_weights: str | None = option(None, "file of weights for the vision tower; null = those it comes with")
    projection_dim: int = option(512, "width of the space that images and texts share", low=1)
    freeze: list[str] = field(default_factory=list, metadata=about("parts that are not trained", choices=PARTS))
    text_pooling: str | None = option(
        None,
        "sentence vector of the text tower; null = what suits the tower",
        choices=("eot", "cls", "mean", "pooler"),
    )
    visual_head: str = option("mlp", "classifier of the visual branch", choices=("mlp", "linear", "cosine"))
    visual_scale: float = option(30.0, "inverse temperature of the cosine classifier", above=0.0)
    language: bool = option(True, "use language; false = the visual-only baseline")
    num_anchors: int = option(64, "anchor sentences per class, at most", low=1)
    fusion_weight: float | None = option(
        0.5, "weight of the visual branch; null = chosen on validation data", low=0.0, high=1.0
    )
    detach_norm: bool = option(False, "no gradient through the norm of the attended sentences")
    logit_scale_init: float = option(2.6592, "log of the initial inverse temperature")
    max_logit_scale: float = option(100.0, "upper bound of the inverse temperature", low=1.0)
    gradient_checkpointing: bool = option(False, "trade time for memory in the towers")
    patch_dropout: float = option(
        0.0, "part of the patches that a vision transformer does not see in training", low=0.0, high=0.95
    )
    compile: bool = option(False, "torch.compile the towers")


@dataclass
class OptimOptions:
    """AdamW with warm-up and a cosine."""

    lr: float = option(1e-3, "peak learning rate", above=0.0)
    weight_decay: float = option(0.05, "decoupled weight decay of matrices", low=0.0)
    betas: list[float] = field(
        default_factory=lambda: [0.9, 0.999],
        metadata=about("AdamW's two averaging factors", low=0.0, high=1.0),
    )
    eps: float = option(1e-8, "AdamW's epsilon", above=0.0)
    warmup_fraction: float = option(0.05, "part of the steps with a rising rate", low=0.0, high=1.0)
    min_lr_ratio: float = option(0.0, "last learning rate over the peak", low=0.0, high=1.0)
    clip_norm: float = option(1.0, "largest norm of the gradient; 0 = no bound", low=0.0)
    lr_scales: dict[str, float] = field(
        default_factory=dict,
        metadata=about("factor on lr per module, e.g. optim.lr_scales.vlltr.text_model=0.1", low=0.0),
    )


@dataclass
class TrainOptions:
    """The loop: how long, how much at once, what is kept."""

    steps: int | None = option(None, "optimiser steps; null = epochs decide", low=1)
    epochs: int = option(10, "passes over the data", low=1)
    batch_size: int = option(128, "samples per optimiser step, over all processes", low=1)
    accumulation: int = option(1, "parts a step's batch is computed in; a contrast sees one part at a time", low=1)
    micro_batch: int = option(
        0,
        "images and texts that the towers encode at a time, in two passes, so that a contrast over the whole batch "
        "needs the memory of this many; 0 = all at once",
        low=0,
    )
    mixed_precision: str = option("no", "number format of the towers", choices=("no", "bf16", "fp16"))
    log_every: int = option(20, "steps between two logged lines", low=1)
    save_every: int = option(0, "steps between two checkpoints; 0 = at each epoch's end", low=0)
    keep: int = option(2, "checkpoints kept", low=1)
    validate_every: int | None = option(
        None, "steps between two losses on validation data; 0 = at each epoch's end; null = never", low=0
    )
    trackers: list[str] = field(
        default_factory=list,
        metadata=about("where log lines are sent besides log.jsonl", choices=("tensorboard", "trackio", "wandb")),
    )
    push_to_hub: str | None = option(None, "ORG/NAME: publish the run on the Hub once it is complete")
    hub_private: bool = option(False, "the repository that push_to_hub makes is private")


@dataclass
class LossOptions:
    """Terms of the objective."""

    objective: str = option(
        "unicl",
        "what stage 1 minimises: positives are all of a class (unicl), the pair alone (clip), of a class by a sigmoid "
        "(siglip) or between images (supcon); multi-task adds a linear classifier to unicl",
        choices=("unicl", "clip", "siglip", "supcon", "multi-task"),
    )
    label_smoothing: float = option(0.0, "weight spread over all classes or texts", low=0.0, high=0.99)
    distillation: float = option(0.0, "weight of the frozen teacher's targets in stage 1", low=0.0, high=1.0)
    direction: str = option("both", "sides of the contrast", choices=("both", "image_to_text", "text_to_image"))
    visual_weight: float = option(1.0, "weight of the visual branch's loss", low=0.0)
    language_weight: float = option(1.0, "weight of the language branch's loss", low=0.0)
    contrast_weight: float = option(1.0, "weight of the contrast in task=joint", low=0.0)
    classification: str = option("cross-entropy", "loss of a classifier", choices=("cross-entropy", "focal", "ldam"))
    logit_adjustment: float = option(
        0.0, "factor on log class frequency added in training; 1 = balanced softmax", low=0.0
    )
    focal_gamma: float = option(2.0, "how much the focal loss plays down easy images", low=0.0)
    ldam_margin: float = option(0.5, "margin of the rarest class, in cosines", low=0.0, high=1.0)
    reweight: str = option(
        "none",
        "weights of the classes: 1/n_c, or class-balanced by the effective number of images",
        choices=("none", "inverse", "class-balanced"),
    )
    reweight_beta: float = option(0.9999, "β of the effective number (1 - β^n)/(1 - β)", low=0.0, high=0.999999)
    reweight_after: float = option(
        0.0, "part of the training without these weights; 0.8 with ldam = LDAM-DRW", low=0.0, high=1.0
    )


@dataclass
class RebalanceOptions:
    """task=rebalance: the classifier of a trained recogniser anew, its features frozen (Kang et al., ICLR 2020)."""

    method: str = option(
        "tau-norm",
        "weights over their norm to the power τ; classifier re-trained (crt) or its scales (lws), both with sampler="
        "class-balanced or over; class means (ncm)",
        choices=("tau-norm", "crt", "lws", "ncm"),
    )
    tau: float | None = option(None, "τ of tau-norm; null = chosen on validation data", low=0.0, high=10.0)


@dataclass
class AnchorOptions:
    """How the sentences that stand for a class are chosen between the stages."""

    selection: str = option(
        "scored",
        "which sentences: those that best find the images of their class (scored), the corpus's first, or random ones",
        choices=("scored", "first", "random"),
    )
    split: str = option("train", "images the sentences are scored on", choices=("train", "validation"))
    images_per_class: int = option(50, "images per class they are scored on, at most", low=1)
    chunk: int = option(4096, "sentences scored at a time", low=1)
    refresh_every: int = option(1, "task=joint: epochs between two choices", low=1)


@dataclass
class EvalOptions:
    """What is measured, and on what."""

    rule: str = option("oltr", "which classes are many, medium and few: oltr, vl-ltr or custom:HI,LO")
    splits: list[str] = field(
        default_factory=lambda: ["test"],
        metadata=about("splits that are measured", choices=("train", "validation", "test", "unseen")),
    )
    batch_size: int = option(256, "images at a time", low=1)
    crops: str = option(
        "none", "test-time ensemble of crops, whose cost is stated: none, five, ten", choices=("none", "five", "ten")
    )
    mixed_convention: bool = option(
        False, "also report VL-LTR's own convention, which takes groups and accuracy from two predictors, labelled so"
    )
    resamples: int = option(2000, "bootstrap resamples of every interval; 0 for none", low=0)
    report: bool = option(True, "write report.html")


@dataclass
class Recipe:
    """One experiment: a task, its data, its model, and how the one is fitted to the other."""

    task: str = option(MISSING, "what is trained", choices=("unicl", "cvlp", "recognition", "joint", "rebalance"))
    seed: int = option(0, "seed of every random draw", low=0)
    output: str = option("runs/untitled", "folder the run is written to; default runs/NAME-OF-THE-RECIPE")
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    rebalance: RebalanceOptions = field(default_factory=RebalanceOptions)
    anchors: AnchorOptions = field(default_factory=AnchorOptions)
    eval: EvalOptions = field(default_factory=EvalOptions)

    def check(self) -> None:
        """Raise `UserError` for a value out of its range, and for two values that contradict each other."""
        for key, leaf in leaves(Recipe):
            check_value(key, leaf, value_at(self, key))
        data, train = self.data, self.train
        if data.folds is not None and data.fold is None:
            raise UserError(f"data.folds={data.folds} needs data.fold, the fold that is tested (0 … {data.folds - 1})")
        if data.fold is not None and data.folds is not None and data.fold >= data.folds:
            raise UserError(f"data.fold={data.fold} must be below data.folds={data.folds}")
        if train.batch_size % train.accumulation:
            raise UserError(
                f"train.batch_size={train.batch_size} must be a multiple of train.accumulation={train.accumulation}"
            )
        if self.loss.distillation and self.loss.objective not in ("unicl", "clip"):
            raise UserError(f"loss.distillation goes with loss.objective=unicl or clip, not {self.loss.objective}")
        if (data.mixup or data.cutmix) and (self.task != "recognition" or data.cache_views):
            raise UserError("data.mixup and data.cutmix are for task=recognition on pictures, without data.cache_views")
        if data.cache_views and "vision_model" not in self.model.freeze and self.task != "rebalance":
            raise UserError("data.cache_views needs a frozen vision tower: add model.freeze=vision_model")
        if len(self.optim.betas) != 2 or 1.0 in self.optim.betas:
            raise UserError(f"optim.betas={self.optim.betas} must be two numbers below 1")
        for key, values in (("image_mean", data.image_mean), ("image_std", data.image_std)):
            if len(values) not in (0, 3):
                raise UserError(f"data.{key}={values} must be three numbers, one per channel")
        # Here and not at the top: the metrics need numpy, and listing the keys does not.
        from hf_vlr.data.shots import shot_rule

        shot_rule(self.eval.rule)


def describe_keys() -> list[tuple[str, str, str, str]]:
    """(dotted key, type, default, help) of every recipe key."""
    return describe(Recipe)
