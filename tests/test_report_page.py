"""The report as a page: whole, safe against what names hold, honest about noise."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_vlr.errors import UserError
from hf_vlr.evaluation.document import metrics_document
from hf_vlr.evaluation.predictions import Predictions
from hf_vlr.report.examples import Example, pick_examples
from hf_vlr.report.markup import Cell, Html, escaped, legend, name, table
from hf_vlr.report.mistakes import confused_pairs
from hf_vlr.report.page import report_html
from hf_vlr.report.shell import Section, page

SPEC = importlib.util.spec_from_file_location("report_pages", Path(__file__).with_name("report_pages.py"))
pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pages)
Reader, predictions = pages.Reader, pages.predictions

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='x'>&amp;",
    "🦜 parrot $x^2$",
    "w" * 400,
    "שלום\u202e evil",
    "null\x00\x1b[31m",
)


def report(given: Predictions, rule: str = "oltr", resamples: int = 200, mixed: bool = False, **more: object) -> str:
    document = metrics_document(given, rule, resamples, mixed_convention=mixed)
    return report_html(given, document, **{"title": "A report", **more})


def shown(given: Predictions, **more: object) -> Reader:
    return Reader(report(given, **more))


@pytest.fixture(scope="module")
def whole() -> str:
    """A page with every part."""
    return report(predictions(), examples=examples("class 0", "class 1"))


def examples(*names: str) -> list[Example]:
    picture = Image.new("RGBA", (40, 20), (255, 0, 0, 0))
    sentences = ((0.75, f"a photo of {names[0]}"), (0.25, "a thing"))
    return [
        Example(picture, names[0], names[0], "few", 0.9, 0.9, sentences),
        Example(picture.convert("L"), names[0], names[1], "few", 0.6, 0.125),
    ]


def test_page_has_every_part_and_asks_for_nothing(whole):
    html, found = whole, Reader(whole)
    headings = ["Results", "Protocol", "The tail", "Gain", "Errors", "Calibration", "What if", "Examples", "Classes"]
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", html) == headings
    assert len(found.all("h1")) == 1
    assert not [tag for tag, _ in found.elements if tag in ("script", "iframe", "object", "embed", "base", "form")]
    assert not re.search(r"https?://(?!www\.w3\.org/)", html.replace("xmlns", ""))
    assert all(value.startswith("data:") for value in found.values("src"))
    assert all(value.startswith(("#", "data:")) for value in found.values("href"))
    assert all(value.startswith("#") for value in re.findall(r"url\(([^)]*)\)", html))
    policy = next(one["content"] for one in found.all("meta") if one.get("http-equiv"))
    assert "default-src 'none'" in policy and "script" not in policy and "http:" not in policy


def test_identifiers_are_unique_and_links_lead_somewhere(whole):
    found = Reader(whole)
    identifiers = found.values("id")
    assert len(identifiers) == len(set(identifiers)) > 10
    assert {value[1:] for value in found.values("href") if value.startswith("#")} <= set(identifiers)


def test_everything_seen_has_a_label(whole):
    found = Reader(whole)
    assert all(one.get("alt") for one in found.all("img"))
    assert len(found.all("img")) == 2
    drawings = found.all("svg")
    assert all(one.get("aria-label") or one.get("aria-hidden") == "true" for one in drawings)
    assert sum(one.get("role") == "img" for one in drawings) == 10
    scrolled = [one for one in found.all("div") if (one.get("class") or "").startswith("scroll")]
    assert scrolled and all(one["tabindex"] == "0" and one["aria-label"] for one in scrolled)


@pytest.mark.parametrize("rule", ["oltr", "vl-ltr", "custom:1000,0"])
def test_the_numbers_are_those_of_the_document(rule):
    given = predictions()
    document = metrics_document(given, rule, 200)
    found = Reader(report_html(given, document, title="x"))
    for entry in document["predictors"].values():
        values = [entry[key] for key in ("accuracy", "balanced_accuracy", "macro_f1", "worst_tenth", "ece")]
        values += [group["accuracy"] for group in entry["groups"].values() if group["accuracy"] is not None]
        values += entry["intervals"]["accuracy"]
        assert all(f"{100 * value:.1f}" in found.text for value in values)
        assert f"{entry['nll']:.3f}" in found.text and f"{entry['brier']:.3f}" in found.text
    assert document["protocol"]["rule"]["name"] in found.text
    assert f"torch {document['protocol']['versions']['torch']}" in found.text


def test_names_cannot_do_harm():
    given = predictions(names=HOSTILE)
    given = given.with_scores({"<b>fused": given.scores["fused"], "visual": given.scores["visual"]})
    hostile = dataclasses.replace(given, protocol=given.protocol | {"texts": "<script>x</script>", "source": "<i>"})
    html = report(hostile, examples=examples(*HOSTILE[:2]), title=HOSTILE[0])
    found = Reader(html)
    assert not {"script", "b", "i"} & {tag for tag, _ in found.elements}
    assert not any(key.startswith("on") for _, attributes in found.elements for key in attributes)
    assert not re.search("[\x00-\x08\x0e-\x1f\u202e]", html)
    for one in HOSTILE[:4]:
        assert one in found.text
    assert "<b>fused" in found.text and "a photo of <script>alert(1)</script>" in found.text


def test_a_group_without_classes_is_a_dash():
    found = shown(predictions(counts=(500, 400, 300)))
    assert "many (more than 100): 3 classes, 1,200 images" in found.text
    assert "few: no test images." in found.text
    assert "No few-shot class has test images." in found.text
    row = found.text[found.text.index("predictor all images balanced many") :]
    assert row.index("fused") < row.index(" - ") < row.index("visual")


def test_a_class_without_test_images_is_no_number():
    given = predictions()
    kept = given.labels != 2
    fewer = dataclasses.replace(
        given.with_scores({n: s[kept] for n, s in given.scores.items()}), labels=given.labels[kept]
    )
    found = shown(fewer)
    assert "Classes without test images 1, in no mean" in found.text
    assert "nan" not in found.text.lower()


def test_predicted_classes_without_scores_have_no_calibration_and_no_sweeps():
    given = predictions()
    chosen = {name: scores.argmax(axis=1) for name, scores in given.scores.items()}
    html = report(given.with_scores(chosen))
    assert "Calibration" not in html and "fusion weight" not in html and "logit adjustment" not in html
    assert "other way round" in html


@pytest.mark.parametrize("counts", [(0,), (7,), (0, 0, 0), (500, 0, 3)])
def test_one_image_one_class_and_untrained_classes(counts):
    html = report(predictions(counts=counts, per_class=1))
    found = Reader(html)
    assert "nan" not in found.text.lower()
    assert ("No class has training images" in found.text) == (max(counts) == 0)


def test_eight_thousand_classes_fit_a_small_page():
    generator = np.random.default_rng(0)
    counts = np.sort(generator.integers(2, 1000, 8142))[::-1].copy()
    labels = np.arange(8142)
    guesses = {n: np.where(generator.random(8142) < p, labels, 0) for n, p in (("fused", 0.7), ("visual", 0.5))}
    names = tuple(f"species {index}" for index in range(8142))
    html = report(Predictions(guesses, labels, counts, names, pages.PROTOCOL))
    assert len(html) < 3e6
    found = Reader(html)
    assert "8,092 more are in per_class.csv" in found.text
    # the cloud is one picture of pixels, not thousands of shapes
    assert html.count("data:image/png") >= 1 and html.count("<use") < 200


def test_the_same_predictions_make_the_same_page(whole):
    assert report(predictions(), examples=examples("class 0", "class 1")) == whole


def test_a_lead_is_claimed_only_where_intervals_lie_apart():
    near = (("one", 1.50), ("two", 1.55))
    text = shown(predictions(signal=near)).text
    assert "none is clearly ahead" in text and "is ahead:" not in text
    far = (("one", 8.0), ("two", 0.0))
    text = shown(predictions(signal=far)).text
    assert "On few-shot classes one is ahead" in text and "On all images one is ahead" in text
    assert "none is clearly ahead" not in text
    text = shown(predictions(signal=far), resamples=0).text
    assert "is ahead:" not in text and "without intervals it is open" in text
    level = predictions()
    level = level.with_scores({"one": level.scores["fused"], "two": level.scores["fused"]})
    assert "one and two are level" in shown(level).text


@pytest.mark.parametrize(("images", "enough"), [(5, False), (6, True)])
def test_a_handful_of_images_shows_nothing(images, enough):
    """All right against all wrong: the bootstrap has no spread, and only the number of images tells chance apart."""
    counts, labels = np.array([3, 200]), np.zeros(images, dtype=np.int64)
    good, bad = (np.full(images, guess) for guess in (0, 1))
    given = Predictions({"good": good, "bad": bad}, labels, counts, ("rare", "common"), pages.PROTOCOL)
    html = report(given, reference=given.with_scores({"good": bad}))
    text = Reader(html).text
    assert ("good is ahead" in text) == enough == ('class="best"' in html)
    assert ("too few images to tell" in text) == (f"too few to tell, they differ on {images} images" in text) != enough
    assert ("a gain." in text) == enough


def test_bold_marks_a_lead_and_nothing_else():
    bold = 'class="best"'
    assert bold not in report(predictions(signal=(("one", 1.50), ("two", 1.55))))
    assert bold not in report(predictions(signal=(("one", 8.0),)))
    assert bold in report(predictions(signal=(("one", 8.0), ("two", 0.0))))


def test_gain_over_a_reference():
    given = predictions(signal=(("fused", 6.0), ("visual", 5.0)))
    assert "a gain." in shown(given, reference=predictions(signal=(("fused", 0.0),), seed=1)).text
    same = shown(given, reference=given).text
    assert "a gain." not in same and "a loss." not in same and "no difference that these images show" in same
    worse = predictions(signal=(("fused", 0.0),))
    assert "a loss." in shown(worse, reference=given).text
    assert "the reference model's fused" in same


def test_without_a_reference_the_gain_is_that_of_fusing(whole):
    assert "over visual, the image branch alone" in whole
    assert "Gain" not in report(predictions(signal=(("language", 2.0),)))


def test_a_reference_on_other_images_is_refused():
    given = predictions()
    with pytest.raises(UserError, match="same split"):
        report(given, reference=dataclasses.replace(given, labels=given.labels[::-1].copy()))


def test_a_document_of_other_predictors_is_refused():
    given = predictions()
    document = metrics_document(given, "oltr")
    with pytest.raises(UserError, match="own predictions"):
        report_html(given.with_scores({"other": given.scores["fused"]}), document, title="x")


def test_the_mixed_convention_is_labelled_and_never_leads():
    html = report(predictions(), rule="vl-ltr", mixed=True)
    assert re.search(r'<p class="warning">[^<]*mixed convention: [^<]*two predictors', html)
    assert html.count("mixed convention") >= 2
    assert not re.search(r"<strong><bdi>[^<]*mixed", html)


def test_cards_show_picture_verdict_and_sentences(whole):
    found = Reader(whole)
    assert "✓ right: class 0, 90 % sure few-shot class" in found.text
    assert "a photo of class 0 75 %" in found.text
    assert "✗ wrong: class 1, 60 % sure It shows class 0 (few-shot), which got 12 %." in found.text
    failures, successes = found.text.index("Failures"), found.text.index("Successes")
    assert failures < found.text.index("✗ wrong") < successes < found.text.index("✓ right")


def test_examples_are_rare_classes_and_confident_first():
    labels = np.array([0, 0, 1, 1, 2, 2])
    probabilities = np.array(
        [
            [0.9, 0.05, 0.05],  # right, common
            [0.1, 0.8, 0.1],  # wrong, common
            [0.6, 0.3, 0.1],  # wrong, rarer, less sure
            [0.7, 0.2, 0.1],  # wrong, rarer, surer
            [0.1, 0.1, 0.8],  # right, rarest
            [0.2, 0.3, 0.5],  # right, rarest, less sure
        ]
    )
    given = Predictions({"p": np.log(probabilities)}, labels, np.array([90, 20, 2]), ("a", "b", "c"))
    assert pick_examples(given, "p", 4) == [3, 1, 4, 0]
    assert pick_examples(given, "p", 0) == []
    assert pick_examples(given, "p", 1) == [4]
    assert pick_examples(given, "p", 100) == [3, 1, 2, 4, 0, 5]
    right = given.with_scores({"p": np.log(np.eye(3)[labels] * 0.8 + 0.1)})
    assert pick_examples(right, "p", 4) == [4, 2, 0, 5]


def test_examples_of_classes_without_scores_follow_the_test_set():
    given = predictions()
    classes = given.with_scores({"p": given.scores["fused"].argmax(axis=1)})
    chosen = pick_examples(classes, "p", 10)
    assert len(chosen) == len(set(chosen)) == 10 and chosen == pick_examples(classes, "p", 10)
    assert [classes.scores["p"][row] == given.labels[row] for row in chosen] == [False] * 5 + [True] * 5


def test_examples_refuse_what_is_not_there():
    with pytest.raises(UserError, match="no predictor 'x'"):
        pick_examples(predictions(), "x", 3)
    with pytest.raises(UserError, match="-1 examples"):
        pick_examples(predictions(), "fused", -1)


def test_confused_pairs_are_the_confusion_matrix():
    generator = np.random.default_rng(0)
    labels, predicted = generator.integers(0, 7, (2, 200))
    pairs, counts = confused_pairs(labels, predicted, 7)
    matrix = np.zeros((7, 7), dtype=int)
    for (true, taken), count in zip(pairs, counts):
        matrix[true, taken] = count
    expected = np.zeros((7, 7), dtype=int)
    for true, taken in zip(labels, predicted):
        expected[true, taken] += 1
    assert (matrix == expected).all() and (np.diff(counts) <= 0).all()


def test_a_page_of_its_own():
    html = page(
        "a < b", [Section("One & two", "<p>x</p>"), Section("One two", ""), Section("内容", "")], lead="<p>y</p>"
    )
    found = Reader(html)
    assert html.startswith("<!DOCTYPE html>") and "<p>x</p>" in html and "<p>y</p>" in html
    assert found.values("href") == ["data:,", "#content", "#one-two", "#one-two-2", "#section"]
    assert Reader(page("x", [])).all("nav") == []


def test_pieces_escape_what_is_not_html():
    assert escaped("<&\"'>") == "&lt;&amp;&quot;&#x27;&gt;"
    assert escaped(Html("<p>")) == "<p>" and name("<") == "<bdi>&lt;</bdi>"
    made = table('a "table"', ["<x>", Cell("n", note="<y>")], [["<z>", Cell(name("<w>"))]])
    assert Reader(made).text == 'a "table" <x> n<y> <z> <w>'
    assert "&lt;" in legend({"<": ("var(--few)", "dot")})
