"""From a folder or a Hub id to the kind of subject that lies there."""

from pathlib import Path

from hf_vlr.data.corpus import ClassTextCorpus, build_corpus, default_texts
from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.evaluation.classifiers import HubClassifier, is_classifier
from hf_vlr.evaluation.dual_encoders import ZeroShot
from hf_vlr.evaluation.encoders import OWN_TYPES, UniCLEncoder, open_encoder, read_config
from hf_vlr.evaluation.recognisers import Recogniser
from hf_vlr.evaluation.subject import Subject
from hf_vlr.modeling import VLLTRForImageClassification
from hf_vlr.training.options import Recipe
from hf_vlr.training.run_folder import TEXTS_FILE


def open_subject(location: str, recipe: Recipe, same_order: bool = False) -> Subject:
    """The model in a folder or on the Hub as what it can be measured as.

    With `same_order` its outputs are the dataset's classes in order, whatever their names. Raises `UserError` for a
    model that is neither a recogniser, nor a dual encoder, nor an image classifier.
    """
    config = read_config(location)
    if config.model_type not in OWN_TYPES and is_classifier(config):
        return HubClassifier(location, recipe, same_order)
    encoder = open_encoder(location, recipe)
    if isinstance(encoder, UniCLEncoder) and isinstance(encoder.model, VLLTRForImageClassification):
        return Recogniser(encoder, same_order)
    if not encoder.has_texts:
        raise UserError(
            f"model {location} ({config.model_type}) is neither an image classifier nor a dual encoder of images and "
            "texts, so it names nothing; measure what you compute from its features with --logits"
        )
    return ZeroShot(encoder, lambda source: class_texts(location, recipe.data.texts, source))


def class_texts(location: str, texts: str | None, source: ImageSource) -> tuple[ClassTextCorpus, str]:
    """(sentences, where they come from): `data.texts`, else those beside the model, else the dataset's own.

    The texts beside a model are for the classes it was trained on, which unseen ones are not.
    """
    beside = Path(location) / TEXTS_FILE
    if texts is None and beside.is_file() and source.split == "train":
        return ClassTextCorpus.from_file(beside, source.class_names), f"{TEXTS_FILE} beside the model"
    return build_corpus(texts, source), texts or default_texts(source)
