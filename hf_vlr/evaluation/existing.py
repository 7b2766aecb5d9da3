"""Predictions that exist already, measured: anybody's arrays, or those of a run under another rule.

Nothing here needs torch, whose import takes longer than to measure 50,000 images of 1,000 classes.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_vlr.errors import UserError
from hf_vlr.evaluation.document import PROTOCOL_FIELDS
from hf_vlr.evaluation.predictions import PREDICTIONS_FILE, Predictions, read_predictions
from hf_vlr.evaluation.record import record
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import override_recipe

STATED = "protocol."
# what only a model can be asked for
OF_MODELS = ("eval.splits", "eval.crops", "eval.batch_size")


def measure_folder(
    folder: str, words: Sequence[str] = (), out: str | None = None, reference: str | None = None
) -> dict[str, Any]:
    """Measure the predictions of a run or an evaluation anew, without its model; into its own folder unless `out`.

    `folder` may also be the file itself; its folder is then its own.
    """
    given = Path(folder)
    file = given / PREDICTIONS_FILE if given.is_dir() else given
    target = Path(out) if out else file.parent
    keep = (target / PREDICTIONS_FILE).resolve() == file.resolve()
    return measure_predictions(read_predictions(folder), words, str(target), reference, keep=keep)


def measure_predictions(
    predictions: Predictions,
    words: Sequence[str] = (),
    out: str | None = None,
    reference: str | None = None,
    *,
    keep: bool = False,
) -> dict[str, Any]:
    """Measure predictions that exist already; `words` are `eval.KEY=VALUE` and `protocol.FIELD=TEXT`.

    Writes the folder `out` where there is one; with `keep` its predictions stay as they are. Raises `UserError` for
    other words, for settings that need a model, and as `record` does.
    """
    known = (*PROTOCOL_FIELDS, "source", "model")
    stated: dict[str, Any] = {}
    settings = []
    for word in words:
        name, _, value = word.partition("=")
        if not name.startswith(STATED):
            settings.append(word)
        elif name.removeprefix(STATED) in known:
            stated[name.removeprefix(STATED)] = value
        else:
            raise UserError(f"{name} is no field of the protocol; there are: {', '.join(known)}")
    for word in settings:
        if not word.startswith("eval."):
            raise UserError(f"{word}: of predictions that exist, only eval.KEY and protocol.FIELD can be said")
        if word.partition("=")[0] in OF_MODELS:
            raise UserError(f"{word}: predictions that exist stay as they are; {word.partition('=')[0]} is for a MODEL")
    options = override_recipe(Recipe(task="recognition"), settings).eval
    protocol = dict.fromkeys(PROTOCOL_FIELDS) | dict(predictions.protocol) | stated
    before = read_predictions(reference) if reference else None
    whole = replace(predictions, protocol=protocol)
    return record(whole, Path(out) if out else None, options, reference=before, keep_predictions=keep)
