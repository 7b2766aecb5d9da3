"""The report in a real browser: silent, self-contained, no wider than its window, reachable by keyboard."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from hf_vlr.evaluation.document import metrics_document
from hf_vlr.report.examples import Example
from hf_vlr.report.page import report_html

SPEC = importlib.util.spec_from_file_location("report_pages", Path(__file__).with_name("report_pages.py"))
pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pages)

NAMES = ("cat", "<script>alert(1)</script>", "w" * 300, "🦜 " * 30, "שלום עולם", "an ordinary name / with parts")
# what nothing on a page may lack, after the rules that automatic checkers agree on
UNLABELLED = """() => [
    ...[...document.images].filter(one => !one.alt || !one.complete || !one.naturalWidth),
    ...[...document.querySelectorAll('svg')].filter(one => !one.ariaHidden && !one.ariaLabel),
    ...[...document.querySelectorAll('a, summary')].filter(one => !one.innerText.trim()),
    ...[...document.querySelectorAll('th')].filter(one => !one.scope),
    ...[...document.querySelectorAll('ul > :not(li), ol > :not(li), table:not(:has(th))')],
].map(one => one.outerHTML.slice(0, 200))"""
# a letter's contrast with the page behind it, as WCAG defines it, of everything that is written in its own colour
FAINT = """() => {
    const light = text => {
        const [r, g, b] = text.match(/[0-9.]+/g).map(Number).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const paper = light(getComputedStyle(document.body).backgroundColor);
    return [...document.querySelectorAll('body, p, li, a, small, figcaption, th, td, dt, dd, summary, svg text')]
        .filter(one => {
            const style = getComputedStyle(one);
            const ink = light(one.tagName == 'text' ? style.fill : style.color);
            return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05) < 4.5;
        }).map(one => one.outerHTML.slice(0, 200));
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = pages.predictions(names=NAMES)
    picture = Image.new("RGB", (60, 40), "teal")
    examples = [
        Example(picture, name, other, "few", 0.7, 0.2, ((0.9, "x" * 200), (0.1, name)))
        for name, other in zip(NAMES, (*NAMES[1:], NAMES[-1]))
    ]
    document = metrics_document(given, "vl-ltr", 200, mixed_convention=True)
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report_html(given, document, examples=examples, title="A report on " + "t" * 100), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_page_opens(browser, report, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    assert not said
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(UNLABELLED) == []
    assert page.evaluate(FAINT) == []
    # figures keep their letters legible: 9 pixels and more on a narrow screen
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg.plot')].map(one => 10.5 * one.clientWidth / one.viewBox.baseVal.width)"
    )
    assert len(sizes) == 10 and min(sizes) > 9
    page.close()


@pytest.mark.slow
def test_schemes_differ_and_paper_is_white(browser, report):
    colours = {}
    for media, scheme in (("screen", "light"), ("screen", "dark"), ("print", "dark")):
        page = browser.new_page(color_scheme=scheme)
        page.emulate_media(media=media, color_scheme=scheme)
        page.goto(report.as_uri())
        colours[media, scheme] = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, "
            "getComputedStyle(document.querySelector('svg.plot text')).fill]"
        )
        page.close()
    assert len(set(map(tuple, colours.values()))) == 3
    assert colours["print", "dark"][0] == "rgb(255, 255, 255)"


@pytest.mark.slow
def test_keyboard_goes_to_the_content_and_into_every_table(browser, report):
    page = browser.new_page(viewport={"width": 400, "height": 900})
    page.goto(report.as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    boxes, reached = page.evaluate("document.querySelectorAll('main .scroll, main summary').length"), set()
    for _ in range(3 * boxes):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
    hidden = page.evaluate("document.querySelectorAll('details:not([open]) .scroll').length")
    assert len(reached) >= boxes - hidden > 5
    page.keyboard.press("Shift+Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    page.close()
