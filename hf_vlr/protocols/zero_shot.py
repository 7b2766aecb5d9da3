"""Zero-shot classification with several kinds of class texts, side by side.

A class is the normalised mean of its normalised sentences, an image goes to the class of the highest cosine (Radford
et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021, §3.1.4). Rows: one template,
seven, all 80, and the class's own texts.
"""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hf_vlr.cli.output import say
from hf_vlr.data.corpus import ClassTextCorpus
from hf_vlr.errors import UserError
from hf_vlr.evaluation.encoders import Encoder
from hf_vlr.evaluation.predictors import zero_shot
from hf_vlr.evaluation.record import record
from hf_vlr.protocols.inputs import Inputs
from hf_vlr.protocols.options import ZeroShotOptions
from hf_vlr.protocols.result import result_document, summary, write_result
from hf_vlr.training.options import Recipe

CORPUS = "corpus"
TEMPLATES = "clip-templates:"


def zero_shot_scores(encoder: Encoder, features: Tensor, vectors: Tensor) -> np.ndarray:
    """Log-probabilities `[N, C]` of image features `[N, D]` against class vectors `[C, D]`, with the model's scale."""
    return zero_shot(features, vectors, encoder.scale)["language"]


def run(encoder: Encoder, recipe: Recipe, settings: ZeroShotOptions, out: Path | None) -> dict[str, Any]:
    """One predictor for each kind of text in `settings.rows`, measured by shot groups.

    A row whose texts cannot be had is named with the reason and is no number. Raises `UserError` where that is so of
    all rows.
    """
    inputs = Inputs(encoder, recipe)
    corpora: dict[str, ClassTextCorpus] = {}
    missing: dict[str, str] = {}
    for row in settings.rows:
        try:
            corpora[row] = inputs.corpus(None if row == CORPUS else row)
        except UserError as error:
            missing[row] = str(error)
    if not corpora:
        raise UserError(f"no row can be run: {'; '.join(dict.fromkeys(missing.values()))}")
    part = inputs.part(inputs.split)
    scores = {
        row_name(row): zero_shot_scores(encoder, part.features, inputs.class_vectors(corpus))
        for row, corpus in corpora.items()
    }
    sentences = {row_name(row): len(corpus) for row, corpus in corpora.items()}
    texts = " | ".join(inputs.texts() if row == CORPUS else row for row in corpora)
    predictions = inputs.predictions(part, scores, texts, task="zero-shot", sentences=sentences)
    document = record(predictions, out, recipe.eval)
    for row, why in missing.items():
        say(f"not run: {row} ({why})")
    numbers = {"predictors": summary(document), "not_run": missing}
    result = result_document("zero-shot", settings, predictions.protocol, numbers)
    write_result(out, result)
    return result


def row_name(row: str) -> str:
    """What a row is called in the table."""
    if row == CORPUS:
        return "class texts"
    count = row.removeprefix(TEMPLATES)
    return row if count == row else f"{count} template" + "s" * (count != "1")
