"""The page in a real browser: a visitor uploads, presses, slides and teaches; nothing is asked of another machine."""

import importlib.util
import re
from pathlib import Path

import pytest

from hf_vlr.data.shapes_lt import ShapesOptions, shapes_classes
from hf_vlr.demo.app import build, launch_options

SPEC = importlib.util.spec_from_file_location("demo_models", Path(__file__).with_name("demo_models.py"))
models = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(models)

pytestmark = pytest.mark.slow
UPLOAD = "#vlr-picture input[type=file]"
BARS = "#vlr-classes button[data-label]"
# fields and buttons that are seen and have no name that a screen reader could say
NAMELESS = """() => [...document.querySelectorAll('main input, main textarea, main button, main [role=slider]')]
    .filter(one => one.checkVisibility() && one.tabIndex >= 0 && one.type !== 'file')
    .filter(one => !(one.ariaLabel || one.title || one.innerText || (one.labels && one.labels.length)
        || one.getAttribute('aria-labelledby') || one.placeholder))
    .map(one => one.outerHTML.slice(0, 200))"""
# our own texts whose contrast with the page is below what WCAG asks for
FAINT = """() => {
    const light = text => {
        const [r, g, b] = text.match(/[0-9.]+/g).map(Number).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const paper = light(getComputedStyle(document.body).backgroundColor);
    const seen = [...document.querySelectorAll('.vlr, .vlr *, .vlr-lead *, .vlr-note')];
    return seen.filter(one => one.checkVisibility() && one.childElementCount == 0 && one.innerText).filter(one => {
        const ink = light(getComputedStyle(one).color);
        return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05) < 4.5;
    }).map(one => one.outerHTML.slice(0, 200));
}"""


def serve(folder):
    pytest.importorskip("gradio", reason="gradio is not installed")
    page = build(str(folder))
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **launch_options())
    yield url
    page.close()


@pytest.fixture(scope="module")
def shapes(tiny, tmp_path_factory):
    """A model of generated shapes: with pictures to choose from and classes to teach."""
    folder = tmp_path_factory.mktemp("demo") / "model"
    names = shapes_classes(ShapesOptions(classes=12, unseen=0))[0][:5]
    model = tiny.recogniser(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    model.save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    yield from serve(folder)


@pytest.fixture(scope="module")
def picture(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    tiny.picture(3).save(path)
    return str(path)


class Visit:
    """An open page, and what it said and asked for."""

    def __init__(self, browser, url, width=1280, scheme="light"):
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.set_default_timeout(20_000)
        self.said, self.asked, self.url = [], [], url
        self.page.on("console", lambda one: self.said.append(one.text) if one.type == "error" else None)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda one: (self.said.append(f"dialog {one.message}"), one.dismiss()))
        self.page.on("request", lambda one: self.asked.append(one.url))
        self.page.goto(f"{url}?__theme={scheme}")
        self.page.wait_for_selector("#vlr-picture, #vlr-ask")

    def upload(self, path):
        self.page.set_input_files(UPLOAD, path)
        self.page.wait_for_selector(BARS)
        self.page.wait_for_selector("#vlr-sentences li")

    def names(self, place="#vlr-classes"):
        return self.page.locator(f"{place} .vlr-name").all_inner_texts()

    def scores(self, place="#vlr-classes"):
        return self.page.locator(f"{place} .vlr-row > .vlr-score").all_inner_texts()

    def tab(self, name):
        self.page.get_by_role("tab", name=name).click()

    def ask(self):
        """Ask until there is an answer: there is none before the tower has seen the picture."""
        for _ in range(20):
            self.page.locator("#vlr-ask").click()
            self.page.wait_for_timeout(500)
            if self.names("#vlr-answer"):
                return
        raise AssertionError("no answer")

    def until_changed(self, read, before):
        for _ in range(100):
            if read() != before:
                return read()
            self.page.wait_for_timeout(100)
        raise AssertionError(f"it stays {before}")

    def leave(self):
        elsewhere = [url for url in self.asked if not url.startswith((self.url, "data:", "blob:"))]
        self.page.close()
        assert not self.said and not elsewhere


def test_a_visitor_recognises(browser, shapes, picture):
    visit = Visit(browser, shapes)
    page = visit.page
    assert "Upload a picture" in page.locator("#vlr-classes").inner_text()
    visit.upload(picture)
    assert len(visit.names()) == 5 and page.locator(f"{BARS}[aria-pressed=true]").count() == 1

    # a bar is pressed by mouse, and another by keyboard, which stays where it was
    first = page.locator("#vlr-sentences h3").inner_text()
    page.locator(BARS).nth(1).click()
    second = visit.until_changed(lambda: page.locator("#vlr-sentences h3").inner_text(), first)
    assert second == f"Sentences of {visit.names()[1]}"
    page.locator(BARS).nth(0).focus()
    page.keyboard.press("Enter")
    assert visit.until_changed(lambda: page.locator("#vlr-sentences h3").inner_text(), second) == first
    assert page.evaluate("document.activeElement.matches('button[data-label]')")

    before = visit.scores()
    page.get_by_role("button", name="Adjust").click()
    page.get_by_label("range slider for Fusion weight").focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    moved = visit.until_changed(visit.scores, before)
    page.get_by_label("number input for Prior correction").fill("2")
    page.keyboard.press("Tab")
    visit.until_changed(visit.scores, moved)
    page.get_by_label("number input for Classes shown").fill("2")
    page.keyboard.press("Tab")
    visit.until_changed(lambda: len(visit.names()), 5)
    visit.leave()


def test_a_visitor_asks_teaches_and_reads(browser, shapes):
    visit = Visit(browser, shapes)
    page = visit.page
    visit.tab("Ask")
    page.locator("#vlr-ask").click()
    page.get_by_text("There is no picture").wait_for()
    page.locator("#vlr-examples button").first.click()
    page.get_by_label("Labels").fill("a red thing\na blue thing")
    visit.ask()
    asked = dict(zip(visit.names("#vlr-answer"), visit.scores("#vlr-answer")))
    assert asked.keys() == {"a red thing", "a blue thing"}
    # the same question to another picture
    page.locator("#vlr-examples button").nth(2).click()
    visit.until_changed(lambda: dict(zip(visit.names("#vlr-answer"), visit.scores("#vlr-answer"))), asked)

    visit.tab("Teach")
    page.get_by_label("Name of the new class").fill("<b>glass</b> heart")
    page.get_by_label("Description").fill("a heart of glass.\nit is clear")
    page.locator("#vlr-teach").click()
    page.wait_for_selector("#vlr-taught .vlr-bars")
    assert "<b>glass</b> heart" in visit.names("#vlr-taught")
    before = visit.scores("#vlr-taught")
    page.get_by_label("range slider for Advantage").focus()
    for _ in range(8):
        page.keyboard.press("ArrowRight")
    visit.until_changed(lambda: visit.scores("#vlr-taught"), before)
    assert "<b>glass</b> heart comes" in page.locator("#vlr-taught .vlr-verdict").inner_text()
    page.locator("#vlr-forget").click()
    page.wait_for_selector("#vlr-taught .vlr-empty")

    visit.tab("About")
    assert "sentences\nat most 3 a class" in page.locator(".vlr-about").inner_text()
    visit.leave()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_tab_fits_and_can_be_read(browser, shapes, picture, width, scheme):
    visit = Visit(browser, shapes, width, scheme)
    page = visit.page
    visit.upload(picture)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 382) == (scheme == "dark")
    for name in ("Recognise", "Ask", "Teach", "About"):
        visit.tab(name)
        if name == "Ask":
            visit.ask()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert page.evaluate(NAMELESS) == [], name
        assert page.evaluate(FAINT) == [], name
    visit.leave()


def test_hostile_names_run_nothing(browser, tiny, tmp_path, picture):
    pages = serve(models.hostile(tiny, tmp_path / "model"))
    visit = Visit(browser, next(pages))
    visit.upload(picture)
    assert set(visit.names()) == set(models.HOSTILE)
    for number in range(5):
        visit.page.locator(BARS).nth(number).click()
        visit.page.wait_for_timeout(200)
    for name in ("Ask", "Teach", "About", "Recognise"):
        visit.tab(name)
    assert visit.page.locator("main img[onerror], main script").count() == 0
    visit.leave()
    next(pages, None)


def test_a_broken_picture_is_said_and_leaves_nothing_of_the_one_before(browser, shapes, picture, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    visit = Visit(browser, shapes)
    visit.upload(picture)
    visit.page.get_by_role("button", name="Remove Image").or_(visit.page.get_by_label("Clear")).first.click()
    visit.page.wait_for_selector("#vlr-classes .vlr-empty")
    visit.page.set_input_files(UPLOAD, str(broken))
    visit.page.get_by_text("The picture cannot be read").wait_for()
    assert visit.page.locator(BARS).count() == 0
    visit.page.close()


def test_a_dual_encoder_answers_questions_only(browser, tiny, tmp_path, picture):
    pages = serve(models.dual_encoder(tiny, tmp_path / "model"))
    visit = Visit(browser, next(pages), 390, "dark")
    assert visit.page.get_by_role("tab").all_inner_texts() == ["Ask", "About"]
    visit.page.set_input_files(UPLOAD, picture)
    visit.ask()
    assert len(visit.names("#vlr-answer")) == 3
    visit.leave()
    next(pages, None)
