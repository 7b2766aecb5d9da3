"""The numbers behind the plots against independent definitions, and the plots as pieces of a page."""

import dataclasses
import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from hf_vlr.evaluation.document import metrics_document
from hf_vlr.evaluation.fusion import fused_log_probabilities
from hf_vlr.evaluation.metrics import evaluate_predictions
from hf_vlr.evaluation.predictions import Predictions
from hf_vlr.posthoc.logit_adjustment import adjusted
from hf_vlr.report import svg
from hf_vlr.report.figures.frequency import frequency_figure
from hf_vlr.report.figures.interval import interval_figure
from hf_vlr.report.figures.reliability import reliability_figure
from hf_vlr.report.figures.shift import shift_figure
from hf_vlr.report.figures.sweep import NOT_CHOSEN, adjustment_figure, fusion_figure
from hf_vlr.report.figures.tail import gain_figure, mean_window, running_mean, tail_figure
from hf_vlr.report.gains import gains_body
from hf_vlr.report.protocol import protocol_list
from hf_vlr.report.sweeps import adjustment_sweep, fusion_sweep
from hf_vlr.report.view import View

SPEC = importlib.util.spec_from_file_location("report_pages", Path(__file__).with_name("report_pages.py"))
pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pages)
predictions = pages.predictions

RULES = ("oltr", "vl-ltr")


def view_of(given: Predictions, rule: str = "oltr") -> View:
    return View.of(given, metrics_document(given, rule, 0))


def uneven(given: Predictions) -> Predictions:
    """Without two thirds of the first class' images, so that class and image means differ."""
    kept = (given.labels > 0) | (np.arange(given.labels.size) < 4)
    scores = {name: values[kept] for name, values in given.scores.items()}
    return dataclasses.replace(given.with_scores(scores), labels=given.labels[kept])


def expected(given: Predictions, scores: np.ndarray, rule: str) -> dict[str, float | None]:
    entry = evaluate_predictions(scores, given.labels, given.train_counts, rule)
    return {"all": entry["accuracy"]} | {name: entry["groups"][name]["accuracy"] for name in ("many", "medium", "few")}


@pytest.mark.parametrize("rule", RULES)
def test_fusion_sweep_is_the_mixture_at_each_weight(rule):
    given = uneven(predictions())
    sweep = fusion_sweep(view_of(given, rule))
    assert sweep.values[0] == 0 and sweep.values[-1] == 1
    for index, alpha in enumerate(sweep.values):
        mixed = fused_log_probabilities(given.scores["visual"], given.scores["language"], float(alpha))
        assert {name: values[index] for name, values in sweep.accuracy.items()} == pytest.approx(
            expected(given, mixed, rule), abs=1e-12
        )


@pytest.mark.parametrize("rule", RULES)
def test_adjustment_sweep_is_logit_adjustment_at_each_tau(rule):
    given = uneven(predictions(counts=(300, 150, 60, 25, 8, 0)))
    sweep = adjustment_sweep(view_of(given, rule), "visual")
    assert sweep.values[0] == 0 and sweep.values[-1] == 2
    for index, tau in enumerate(sweep.values):
        scores = adjusted(given.scores["visual"], given.train_counts, float(tau))
        assert {name: values[index] for name, values in sweep.accuracy.items()} == pytest.approx(
            expected(given, scores, rule), abs=1e-12
        )


def test_sweeps_do_not_depend_on_how_many_rows_are_read_at_once(monkeypatch):
    view = view_of(predictions())
    whole = fusion_sweep(view), adjustment_sweep(view, "fused")
    monkeypatch.setattr("hf_vlr.report.sweeps._CHUNK_NUMBERS", 7 * 6)
    assert fusion_sweep(view).accuracy == whole[0].accuracy
    assert adjustment_sweep(view, "fused").accuracy == whole[1].accuracy


def test_what_cannot_be_swept():
    given = predictions()
    one = given.with_scores({"visual": given.scores["visual"]})
    assert fusion_sweep(view_of(one)) is None
    classes = given.with_scores({name: scores.argmax(axis=1) for name, scores in given.scores.items()})
    assert fusion_sweep(view_of(classes)) is None and adjustment_sweep(view_of(classes), "fused") is None
    assert adjustment_sweep(view_of(predictions(counts=(0, 0))), "fused") is None


@pytest.mark.parametrize("rule", RULES)
def test_view_measures_what_the_document_says(rule):
    given = uneven(predictions())
    view = view_of(given, rule)
    for one, entry in view.document["predictors"].items():
        groups = view.group_accuracy(view.correct(one))
        assert groups == pytest.approx({name: entry["groups"][name]["accuracy"] for name in groups})
        assert view.class_accuracy(view.correct(one)).mean() == pytest.approx(entry["balanced_accuracy"])


def test_main_predictor_is_the_fused_one_or_the_first():
    given = predictions()
    assert view_of(given.with_scores(dict(reversed(given.scores.items())))).main == "fused"
    assert view_of(given.with_scores({"b": given.scores["visual"], "a": given.scores["fused"]})).main == "b"


def test_main_predictor_is_the_last_one_that_was_adjusted():
    given = predictions()
    stated = {"posthoc": {"of": "fused", "steps": [{"method": "temperature", "t": 2.0}]}}
    scores = {"fused": given.scores["fused"], "fused + temperature": given.scores["fused"] / 2}
    view = view_of(dataclasses.replace(given.with_scores(scores), protocol=given.protocol | stated))
    assert view.main == "fused + temperature"
    said = gains_body(view, None)
    assert "fused, before it was adjusted" in said
    assert "temperature t=2" in protocol_list(view)


@pytest.mark.parametrize(("size", "window"), [(1, 3), (2, 3), (10, 3), (11, 4), (50, 5)])
def test_running_mean_is_that_of_the_neighbours(size, window):
    values = np.random.default_rng(size).random(size)
    half = window // 2
    slow = [values[max(0, i - half) : i + window - half].mean() for i in range(size)]
    assert running_mean(values, window) == pytest.approx(slow)
    assert running_mean(np.ones(size), window) == pytest.approx(np.ones(size))


def test_running_means_cover_a_tenth_of_the_classes():
    assert mean_window(view_of(predictions())) == 3
    assert mean_window(view_of(predictions(counts=(5,) * 100, per_class=1))) == 10


def all_figures(view: View) -> dict[str, str]:
    entries = view.document["predictors"]
    accuracy = view.class_accuracy(view.correct(view.main))
    return {
        "interval": interval_figure(view),
        "frequency": frequency_figure(view),
        "tail": tail_figure(view),
        "gain": gain_figure(view, accuracy - 0.5, {"many": 0.1, "medium": None, "few": -0.2}, "Gain"),
        "reliability": reliability_figure("fused", entries["fused"], "reliability"),
        "fusion": fusion_figure(fusion_sweep(view), 0.25),
        "adjustment": adjustment_figure(adjustment_sweep(view, "fused"), "fused"),
        "shift": shift_figure(entries),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return all_figures(view_of(predictions()))


def drawing(figure: str) -> str:
    return re.search(r'<svg class="plot".*?</svg>', figure, re.DOTALL)[0]


def test_figures_are_well_formed_and_share_no_identifier(drawn):
    seen: set[str] = set()
    for key, figure in drawn.items():
        # matplotlib's <use> carries no namespace once it is inline
        root = ElementTree.fromstring(drawing(figure))
        own = [one.get("id") for one in root.iter() if one.get("id")]
        assert len(own) == len(set(own)) and not seen & set(own)
        assert all(one.startswith(f"{key}-") for one in own)
        used = re.findall(r'(?:url\(#|href="#)([^")]+)', figure)
        assert set(used) == set(own)
        seen |= set(own)
    assert seen


def test_figures_take_their_colours_and_fonts_from_the_page(drawn):
    for figure in drawn.values():
        own = drawing(figure)
        assert not re.search(r"#[0-9a-f]{6}|rgb\(|font-family|<style|<metadata", own)
        assert "var(--muted)" in own and "<text" in own
        assert "width=" not in own[: own.index(">")] and "viewBox=" in own
    style = Path(svg.__file__).with_name("style.css").read_text()
    for role in set(re.findall(r"var\((--[\w-]+)\)", "".join(drawn.values()))):
        # in light, in dark, and on paper
        assert style.count(f"{role}: #") == 3, role


def test_groups_have_the_same_colours_in_every_figure(drawn):
    for key in ("frequency", "tail", "gain", "reliability", "fusion"):
        assert all(f"var(--{name})" in drawing(drawn[key]) for name in ("many", "medium", "few")), key


def test_sweeps_say_that_nothing_was_chosen(drawn):
    assert NOT_CHOSEN in drawn["fusion"] and NOT_CHOSEN in drawn["adjustment"]
    assert "α = 0.25, the run" in drawn["fusion"]
    assert "the run" not in fusion_figure(fusion_sweep(view_of(predictions())), None)


def test_legends_state_the_numbers(drawn):
    entry = metrics_document(predictions(), "oltr")["predictors"]["fused"]
    for group in ("many", "medium", "few"):
        assert f"{group}: {100 * entry['groups'][group]['ece']:.1f}\xa0%" in drawn["reliability"]
    assert "many: +10.0 points" in drawn["gain"] and "few: −20.0 points" in drawn["gain"]
    assert "medium: -<" in drawn["gain"]
    assert "many (more than 100): 2\xa0classes, 450\xa0images" in drawn["frequency"]
    assert "the largest has 100 times the images of the smallest" in drawn["frequency"]


def test_points_lie_where_the_numbers_are():
    given = predictions(counts=(200, 30, 5), signal=(("fused", 2.0),))
    view = view_of(given)
    own = drawing(tail_figure(view))
    spots = [(float(x), float(y)) for x, y in re.findall(r'<use href="#tail-[^"]*" x="([\d.]+)" y="([\d.]+)"', own)]
    accuracy = view.class_accuracy(view.correct("fused"))
    assert len(spots) == 3
    x, y = np.array(spots).T
    # an affine map takes ranks and accuracies to the drawing
    assert np.diff(x) == pytest.approx(np.diff(x)[0], abs=0.03)
    slope = np.polyfit(accuracy, y, 1)
    assert np.polyval(slope, accuracy) == pytest.approx(y, abs=0.05) and slope[0] < 0


def test_thousands_of_classes_are_drawn_as_pixels():
    size = svg.MAX_SHAPES + 1
    generator = np.random.default_rng(0)
    counts = np.sort(generator.integers(1, 500, size))[::-1].copy()
    labels = np.arange(size)
    guesses = np.where(generator.random(size) < 0.6, labels, 0)
    view = view_of(Predictions({"p": guesses}, labels, counts, tuple(map(str, labels)), pages.PROTOCOL))
    figure = tail_figure(view)
    assert "data:image/png;base64," in figure and len(figure) < 200_000
    gain = gain_figure(view, view.class_accuracy(view.correct("p")), dict.fromkeys(("many", "medium", "few")), "Gain")
    assert "running means over 200 classes" in gain and len(gain) < 200_000
    assert len(frequency_figure(view)) < 100_000


def test_predictors_differ_by_more_than_colour():
    marks = [svg.series(number) for number in range(6)]
    assert len(set(marks)) == 6 and len({mark for _, mark in marks[:3]}) == 3
