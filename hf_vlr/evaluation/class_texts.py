"""The sentences that a dual encoder is given for a dataset's classes."""

from pathlib import Path

from hf_vlr.data.corpus import ClassTextCorpus, build_corpus, default_texts
from hf_vlr.data.named_texts import names_in, texts_by_name
from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.evaluation.class_names import match_classes
from hf_vlr.evaluation.predictions import PREDICTIONS_FILE, read_predictions
from hf_vlr.evaluation.protocol import RECIPE_FILE
from hf_vlr.training.recipe import load_recipe
from hf_vlr.training.run_folder import TEXTS_FILE

BESIDE = f"{TEXTS_FILE} beside the model"


def class_texts(location: str, texts: str | None, source: ImageSource) -> tuple[ClassTextCorpus, str]:
    """(sentences, where they come from): `data.texts`, else those beside the model, else the dataset's own.

    The texts beside a model are for the classes it was trained on, and are found by the names of these; where a class
    of the dataset is not among them, as unseen ones are not, the dataset's own are taken for all, and the second value
    says so.
    """
    beside = Path(location) / TEXTS_FILE
    if texts is not None or not beside.is_file() or source.split != "train":
        return build_corpus(texts, source), texts or default_texts(source)
    known = names_in(beside) or _names_of_run(beside, source)
    if known is not None:
        try:
            found = match_classes([known[label] for label in sorted(known)], source.class_names)
        except UserError:
            found = None
        if found is not None:
            return texts_by_name(beside, known, found.tolist(), source.class_names), BESIDE
    return build_corpus(None, source), f"{default_texts(source)}, because {BESIDE} are for other classes"


def _names_of_run(beside: Path, source: ImageSource) -> dict[int, str] | None:
    """Class names by label of a file that does not say them, from the run that wrote it; None where nothing tells."""
    if (beside.parent / PREDICTIONS_FILE).is_file():
        return dict(enumerate(read_predictions(beside.parent).class_names))
    recipe = beside.parent / RECIPE_FILE
    same = recipe.is_file() and load_recipe(recipe).data.source == source.name
    return dict(enumerate(source.class_names)) if same else None
