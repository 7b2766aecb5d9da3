"""The sentences that a freshly trained recogniser attends to, for its report."""

from collections.abc import Sequence

from hf_vlr.data.source import ImageSource
from hf_vlr.evaluation.explanation import Explain
from hf_vlr.evaluation.recognisers import attended_sentences
from hf_vlr.evaluation.subject import Sentences
from hf_vlr.features import Transform
from hf_vlr.modeling import VLLTRForImageClassification
from hf_vlr.training.context import Context
from hf_vlr.training.contrast import encode_source


def attention_of(context: Context, model: VLLTRForImageClassification, evaluation: Transform) -> Explain:
    """A function from images and a class for each to the anchor sentences they attend to most."""

    def sentences(source: ImageSource, classes: Sequence[int]) -> list[Sentences]:
        return attended_sentences(model, encode_source(context, model.vlltr, source, evaluation), classes)

    return sentences
