"""The end of every evaluation: its numbers printed, and its folder written."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_vlr.disk import writing
from hf_vlr.evaluation.document import metrics_document, write_metrics
from hf_vlr.evaluation.per_class import per_class_table
from hf_vlr.evaluation.predictions import METRICS_FILE, PREDICTIONS_FILE, Predictions, write_predictions
from hf_vlr.evaluation.reference import check_reference
from hf_vlr.evaluation.table import render_table
from hf_vlr.evaluation.text_file import write_text
from hf_vlr.training.options import EvalOptions

if TYPE_CHECKING:
    from hf_vlr.report.examples import Example

REPORT_FILE = "report.html"


def record(
    predictions: Predictions,
    folder: Path | None,
    options: EvalOptions,
    examples: Sequence["Example"] = (),
    reference: Predictions | None = None,
    *,
    then: str = "mend that and evaluate again",
    keep_predictions: bool = False,
) -> dict[str, Any]:
    """Print the table of `predictions` and return their metrics document; with a folder also write it.

    The folder gets `predictions.npz`, `per_class.csv`, `report.html` (unless `options.report` is false) and, last,
    `metrics.json`: where that is, the evaluation was complete; what an earlier one left there goes first. `examples`
    and the gain over a `reference` go into the report. With `keep_predictions` the folder's own file stays as it is,
    because they were read from it. Raises `UserError` that says `then` where the disk is full, for a reference on other
    images, and as `metrics_document`.
    """
    if reference is not None:
        check_reference(predictions, reference)
    document = metrics_document(predictions, options.rule, options.resamples, mixed_convention=options.mixed_convention)
    print_summary(predictions, document)
    if folder is not None:
        with writing(folder / PREDICTIONS_FILE, then):
            folder.mkdir(parents=True, exist_ok=True)
            # no report beside numbers that it does not show
            (folder / REPORT_FILE).unlink(missing_ok=True)
            if not keep_predictions:
                # else they hold the protocol of the predictions that stay
                (folder / METRICS_FILE).unlink(missing_ok=True)
                write_predictions(folder / PREDICTIONS_FILE, predictions)
        if options.report:
            report = _report(predictions, document, examples, reference)
            with writing(folder / REPORT_FILE, then):
                write_text(folder / REPORT_FILE, report)
            print(f"{folder / REPORT_FILE}\n")
        with writing(folder / METRICS_FILE, then):
            write_metrics(folder, document, _per_class(predictions, options.rule))
    return document


def print_summary(predictions: Predictions, document: dict[str, Any]) -> None:
    """The table, below what was measured and at what cost."""
    protocol = document["protocol"]
    classes = f"classes {protocol['classes']}" if protocol.get("classes") else None
    notes = [f"{len(predictions.labels)} images", classes, protocol.get("test_time_augmentation")]
    print(f"{protocol.get('split') or 'predictions'}: {', '.join(note for note in notes if note)}")
    # every number, folded where the terminal is narrow
    print(render_table(document["predictors"], wide=True, width=shutil.get_terminal_size().columns))


def _per_class(predictions: Predictions, rule: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of `per_class.csv`, by predictor, one predictor's scores in memory at a time."""
    known = (predictions.labels, predictions.train_counts, predictions.class_names)
    return {name: per_class_table(predictions.scores[name], *known, rule) for name in predictions.scores}


def _report(
    predictions: Predictions,
    document: dict[str, Any],
    examples: Sequence["Example"],
    reference: Predictions | None,
) -> str:
    # plots take time to import, and a run without a report needs none
    from hf_vlr.report.page import report_html

    return report_html(predictions, document, examples=examples, reference=reference, title=_title(document))


def _title(document: dict[str, Any]) -> str:
    protocol = document["protocol"]
    named = [str(protocol[name]) for name in ("model", "source", "split") if protocol.get(name)]
    return ", ".join(named) or "Predictions"
