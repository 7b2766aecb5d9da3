"""An evaluation as one HTML file that asks for nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_vlr.evaluation.predictions import Predictions
from hf_vlr.evaluation.reference import check_reference
from hf_vlr.report.cards import examples_body
from hf_vlr.report.classes import classes_body
from hf_vlr.report.examples import Example
from hf_vlr.report.figures.frequency import frequency_figure
from hf_vlr.report.figures.interval import interval_figure
from hf_vlr.report.figures.reliability import reliability_figure
from hf_vlr.report.figures.shift import shift_figure
from hf_vlr.report.figures.sweep import adjustment_figure, fusion_figure
from hf_vlr.report.figures.tail import tail_figure
from hf_vlr.report.gains import gains_body
from hf_vlr.report.headline import headline_table, measures_table
from hf_vlr.report.markup import Html, figures, paragraph
from hf_vlr.report.mistakes import group_table, pairs_table, tail_sentence
from hf_vlr.report.protocol import protocol_list
from hf_vlr.report.shell import Section, page
from hf_vlr.report.summary import summary
from hf_vlr.report.sweeps import adjustment_sweep, fusion_sweep
from hf_vlr.report.view import View


def report_html(
    predictions: Predictions,
    document: Mapping[str, Any],
    *,
    examples: Sequence[Example] = (),
    reference: Predictions | None = None,
    title: str,
) -> str:
    """The whole page of an evaluation: numbers, plots and examples.

    `document` is `metrics_document` of the same `predictions`; `reference` another model's predictions on the same
    images, over which the gain is shown. Parts that nothing is known of (examples, sweeps without scores) are left
    out. The page holds its pictures and styles, runs no script and makes no request. Time and memory: a few passes
    over the scores of a predictor at a time, a few MiB of each in work at once. Raises `UserError` for a document of
    other predictors, and as `check_reference` does.
    """
    if reference is not None:
        check_reference(predictions, reference)
    view = View.of(predictions, document)
    bodies = {
        "Results": _results(view),
        "Protocol": protocol_list(view),
        "The tail": figures([frequency_figure(view), tail_figure(view)]),
        "Gain": gains_body(view, reference),
        "Errors": _errors(view),
        "Calibration": _calibration(view),
        "What if": _conditions(view),
        "Examples": examples_body(examples) if examples else None,
        "Classes": classes_body(view),
    }
    return page(title, [Section(heading, body) for heading, body in bodies.items() if body is not None])


def _results(view: View) -> Html:
    return Html(figures([summary(view), interval_figure(view)]) + headline_table(view) + measures_table(view))


def _errors(view: View) -> Html:
    maps = figures([group_table(view, one) for one in view.predicted])
    pairs = pairs_table(view, view.main, None, f"Confusions by {view.main}")
    few = pairs_table(view, view.main, view.groups["few"], f"Confusions of few-shot classes by {view.main}")
    return Html(tail_sentence(view, view.main) + maps + pairs + few)


def _calibration(view: View) -> Html | None:
    """A diagram for each predictor with scores; None without."""
    predictors = view.document["predictors"]
    drawn = [reliability_figure(one, predictors[one], f"reliability-{n}") for n, one in enumerate(view.scored())]
    if not drawn:
        return None
    how = (
        "Is a predictor right as often as it is sure? On the diagonal it is, below it is surer than right. "
        "Each dot is a bin of confidences; larger ones hold more images, and small ones are mostly chance."
    )
    return Html(paragraph(how) + figures(drawn))


def _conditions(view: View) -> Html:
    """Fusion weight and logit adjustment where there are scores to sweep, and other test priors."""
    drawn = []
    fusion = fusion_sweep(view)
    if fusion is not None:
        drawn.append(fusion_figure(fusion, _chosen_weight(view)))
    adjustment = adjustment_sweep(view, view.main)
    if adjustment is not None and adjustment.accuracy["few"][0] is not None:
        drawn.append(adjustment_figure(adjustment, view.main))
    predictors = view.document["predictors"]
    return figures([*drawn, shift_figure({one: predictors[one] for one in view.predicted})])


def _chosen_weight(view: View) -> float | None:
    """The fusion weight that the run used, where its protocol states it."""
    return (view.document["protocol"].get("training") or {}).get("fusion_weight")
