"""From a folder or a Hub id to the kind of subject that lies there."""

from hf_vlr.errors import UserError
from hf_vlr.evaluation.class_texts import class_texts
from hf_vlr.evaluation.classifiers import HubClassifier, is_classifier
from hf_vlr.evaluation.dual_encoders import ZeroShot
from hf_vlr.evaluation.encoders import OWN_TYPES, UniCLEncoder, open_encoder, read_config
from hf_vlr.evaluation.recognisers import Recogniser
from hf_vlr.evaluation.subject import Subject
from hf_vlr.modeling import VLLTRForImageClassification
from hf_vlr.training.options import Recipe


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
