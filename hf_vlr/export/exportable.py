"""A model from a folder or the Hub as what can be exported of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hf_vlr.data.corpus import build_corpus, default_texts
from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.evaluation.dual_encoders import PREDICTOR, ZeroShot
from hf_vlr.evaluation.encoders import OWN_TYPES, UniCLEncoder, open_encoder, read_config
from hf_vlr.evaluation.recognisers import Recogniser
from hf_vlr.evaluation.subject import Subject
from hf_vlr.evaluation.subjects import class_texts
from hf_vlr.export.graphs import Graph, ImageGraph, RecogniserGraph, TextGraph
from hf_vlr.export.preprocessing import Preprocessing, preprocessing_of
from hf_vlr.modeling import VLLTRForImageClassification
from hf_vlr.modeling.towers import text_length
from hf_vlr.training.options import Recipe

# of a recogniser's outputs, as an evaluation calls its predictors
BRANCHES = {"logits": "fused", "visual_logits": "visual", "language_logits": "language"}


@dataclass(frozen=True)
class Exportable:
    """What is written of a model, with the model itself in float32 on the processor.

    name: the folder's name or the Hub id. kind: in words. image, text: the graphs, text None without. subject: what an
    evaluation measures, None for an encoder without classes. predictors: its predictors by the output that holds them.
    labels: C class names, () without. train_counts: training images of each class, int64 [C], None where not known.
    """

    name: str
    kind: str
    encoder: UniCLEncoder
    image: Graph
    preprocessing: Preprocessing
    text: TextGraph | None = None
    subject: Subject | None = None
    predictors: dict[str, str] = field(default_factory=dict)
    labels: Sequence[str] = ()
    train_counts: npt.NDArray[np.int64] | None = None


def open_exportable(location: str, recipe: Recipe, classes: ImageSource | None = None) -> Exportable:
    """A recogniser, or a dual encoder with `classes` (whose texts are `data.texts`) as a classifier, or bare.

    Raises `UserError` for a model of another kind, for classes without texts, and for a recogniser's `named_classes`.
    """
    config = read_config(location)
    if config.model_type not in OWN_TYPES:
        raise UserError(
            f"model {location} ({config.model_type}) cannot be exported: recognisers and dual encoders of this "
            f"package can; turn a CLIP or SigLIP into one with hf-vlr convert --from hf-clip {location} OUT"
        )
    encoder = open_encoder(location, recipe)
    # float32 where the files may hold halves, and the reference of all comparisons
    encoder.model.to("cpu", torch.float32).requires_grad_(False)
    name = Path(location).resolve().name if Path(location).is_dir() else location
    preprocessing = preprocessing_of(encoder.transform)
    if isinstance(encoder.model, VLLTRForImageClassification):
        if classes is not None and not len(classes):
            raise UserError(f"--class-names is for a dual encoder; the recogniser {name} has classes of its own")
        return _recogniser(name, encoder, preprocessing)
    text = _text_graph(encoder)
    if classes is None:
        graph = ImageGraph(encoder.model, encoder.model.get_image_features).eval()
        return Exportable(name, "dual encoder", encoder, graph, preprocessing, text)
    return _zero_shot(name, encoder, preprocessing, text, classes, recipe)


def named_classes(names: Sequence[str]) -> ImageSource:
    """Classes of which nothing but the names is known, as a dataset without images."""
    return ImageSource("class names", "train", [], np.zeros(0, dtype=np.int64), [], list(names))


def _recogniser(name: str, encoder: UniCLEncoder, preprocessing: Preprocessing) -> Exportable:
    model: VLLTRForImageClassification = encoder.model
    graph = RecogniserGraph(model).eval()
    subject = Recogniser(encoder)
    return Exportable(
        name,
        "recogniser" if model.config.num_anchors else "recogniser without language",
        encoder,
        graph,
        preprocessing,
        subject=subject,
        predictors=BRANCHES if model.config.num_anchors else {"logits": "visual"},
        labels=[model.config.id2label[index] for index in range(model.config.num_labels)],
        train_counts=subject.train_counts(),
    )


def _zero_shot(
    name: str,
    encoder: UniCLEncoder,
    preprocessing: Preprocessing,
    text: TextGraph | None,
    classes: ImageSource,
    recipe: Recipe,
) -> Exportable:
    if text is None:
        raise UserError(f"model {name} has no text tower, so it cannot read the texts of classes: leave them out")
    if len(classes):
        subject = ZeroShot(encoder, lambda source: class_texts(encoder.location, recipe.data.texts, source))
    else:
        told = recipe.data.texts or default_texts(classes)
        subject = ZeroShot(encoder, lambda source: (build_corpus(told, source), told))
    subject.prepare(classes, lambda: classes)
    graph = ImageGraph(
        encoder.model, encoder.model.get_image_features, subject.vectors, encoder.scale, encoder.bias
    ).eval()
    counts = classes.class_counts() if len(classes) else None
    return Exportable(
        name,
        "zero-shot classifier",
        encoder,
        graph,
        preprocessing,
        text,
        subject,
        {"logits": PREDICTOR},
        list(classes.class_names),
        counts,
    )


def _text_graph(encoder: UniCLEncoder) -> TextGraph | None:
    if not encoder.has_texts:
        return None
    length = min(text_length(encoder.inner.config.text_config), encoder.max_length)
    return TextGraph(encoder.inner, encoder.inner.get_text_features, length).eval()
