"""What a run reads: its splits, its class texts, and the transforms that fit its model."""

from dataclasses import dataclass

import PIL.Image
from torchvision.transforms import InterpolationMode
from transformers import CLIPImageProcessor

from hf_vlr.data.corpus import ClassTextCorpus, build_corpus
from hf_vlr.data.mixture import PAIRS, as_pairs, mix
from hf_vlr.data.source import ImageSource, check_source, load_source
from hf_vlr.data.streaming.splits import STREAM
from hf_vlr.data.transforms import build_eval_transform, build_train_transform
from hf_vlr.errors import UserError
from hf_vlr.features import Transform
from hf_vlr.training.options import DataOptions, Recipe


@dataclass(frozen=True)
class RunData:
    """What a run reads.

    validation: None where nothing is chosen on it. corpus: None for a model without language. measured: the splits of
    `eval.splits`, opened before training, so that a missing one is not found after it.
    """

    train: ImageSource
    validation: ImageSource | None
    corpus: ClassTextCorpus | None
    measured: list[ImageSource]


def load_split(recipe: Recipe, split: str) -> ImageSource:
    """One split of the recipe's dataset."""
    data = recipe.data
    return load_source(
        data.source,
        split,
        seed=data.split_seed,
        folds=data.folds,
        fold=data.fold,
        validation_fraction=data.validation_fraction,
        options=data.options,
    )


def load_run_data(recipe: Recipe) -> RunData:
    """All that training reads; raises `UserError` before any work for a class without images or without text."""
    train = load_split(recipe, "train")
    check_source(train)
    if recipe.data.mix:
        train = mixture(recipe, train)
    corpus = None
    if recipe.model.language:
        corpus = build_corpus(recipe.data.texts, train).weighted(recipe.data.text_sampling)
        corpus.require_every_class(train.class_names)
    validation = load_split(recipe, "validation") if chooses_on_validation(recipe) else None
    measured = [labelled(load_split(recipe, split)) for split in recipe.eval.splits]
    for source in measured:
        if source.class_names != train.class_names[: source.num_classes]:
            raise UserError(
                f"eval.splits={source.split}: its classes are not the trained ones; measure it with `hf-vlr eval`"
            )
    return RunData(train, validation, corpus, measured)


def mixture(recipe: Recipe, train: ImageSource) -> ImageSource:
    """The training rows joined with those of `data.mix`; raises `UserError` for a recogniser, which has no pairs."""
    if recipe.task == "recognition":
        raise UserError("data.mix is for task=unicl and task=cvlp; train the recogniser on data.source alone")
    return mix(train, mixed_sources(recipe))


def mixed_sources(recipe: Recipe) -> list[ImageSource]:
    """The training rows of each source of `data.mix`."""
    others = []
    # streams of one run share their cache; the other options are the first source's own
    cache = {key: value for key, value in recipe.data.options.items() if key in ("cache_dir", "cache_gib")}
    for spec in recipe.data.mix:
        name = spec.removeprefix(PAIRS)
        options = cache if name.startswith(STREAM) else None
        source = load_source(name, "train", seed=recipe.data.split_seed, validation_fraction=0.0, options=options)
        others.append(as_pairs(source) if spec.startswith(PAIRS) else source)
    return others


def labelled(source: ImageSource) -> ImageSource:
    """The rows of a source that have a class: image-text pairs cannot be told right from wrong."""
    return source.subset((source.labels >= 0).nonzero()[0]) if (source.labels < 0).any() else source


def spoken_texts(data: RunData) -> list[str]:
    """Every text that training may speak: the corpus, and the captions of image-text pairs."""
    own = zip(data.train.captions, data.train.labels, strict=True)
    pairs = [caption for caption, label in own if label < 0 and caption]
    return [*(data.corpus.texts if data.corpus else []), *pairs]


def chooses_on_validation(recipe: Recipe) -> bool:
    """Whether the run looks at validation images, be it for its anchors, its fusion weight or a curve of their loss."""
    fusion = recipe.task in ("recognition", "joint") and recipe.model.fusion_weight is None
    chooses = recipe.model.language and (fusion or recipe.anchors.split == "validation")
    return chooses or recipe.train.validate_every is not None


def transforms(data: DataOptions, processor: CLIPImageProcessor) -> tuple[Transform, Transform]:
    """(evaluation, training) transform; the evaluation's is what the saved processor computes."""
    size, mean, std = processor.crop_size["height"], processor.image_mean, processor.image_std
    # None: the processor squashes
    shortest = processor.size.get("shortest_edge")
    interpolation = InterpolationMode[PIL.Image.Resampling(processor.resample).name]
    evaluation = build_eval_transform(
        size, mean, std, shortest and size / shortest, interpolation, decoder=data.decoder
    )
    training = build_train_transform(
        size, mean, std, data.augment, min_scale=data.min_scale, flip=data.flip, decoder=data.decoder
    )
    return evaluation, training
