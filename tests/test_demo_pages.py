"""What the demonstration draws and takes in: HTML of hostile names, pictures of strangers, examples, colours."""

import base64
import html
import importlib.util
import io
import re
import socket
import struct
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
from PIL import Image

from hf_vlr.cli.demo import command, free_port
from hf_vlr.data.shapes_lt import ShapesOptions, shapes_classes
from hf_vlr.demo import accelerator
from hf_vlr.demo.about import about
from hf_vlr.demo.ask_tab import Ask
from hf_vlr.demo.bars import bars, nothing_yet, ordinal, sentence_list, taught_verdict
from hf_vlr.demo.examples import example_pictures, lessons
from hf_vlr.demo.exhibit import open_exhibit
from hf_vlr.demo.pictures import MAX_SIDE, read_data_url, read_picture
from hf_vlr.demo.recognise_tab import Recognise
from hf_vlr.demo.recognition import Row
from hf_vlr.demo.session import Seen, look
from hf_vlr.demo.style import css, report_colours
from hf_vlr.demo.teach_tab import Teach
from hf_vlr.errors import UserError

SPEC = importlib.util.spec_from_file_location("demo_models", Path(__file__).with_name("demo_models.py"))
models = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(models)

HOSTILE = models.HOSTILE


class Outline(HTMLParser):
    """The tags, attributes and text of a piece of HTML."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append(dict(attrs))
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def rows():
    groups = ("many", "medium", "few", "taught", "")
    return [Row(i, name, 0.5 / (i + 1), 0.1, 0.2, group, i) for i, (name, group) in enumerate(zip(HOSTILE, groups))]


def test_names_stay_text():
    for piece in (
        bars(rows(), HOSTILE[0], "vl-ltr", chosen=1, buttons=True),
        sentence_list(HOSTILE[0], [(0.5, name) for name in HOSTILE], rows()[0]),
        taught_verdict([(1, HOSTILE[0])], np.array([0.4, 0.6])),
        nothing_yet(HOSTILE[0]),
    ):
        outline = Outline(piece)
        assert not {"script", "img"} & set(outline.tags)
        assert not [name for one in outline.attributes for name in one if name.startswith("on")]
        assert HOSTILE[0] in outline.text


def test_bars_say_their_numbers_and_are_buttons():
    outline = Outline(bars(rows(), "Classes", "vl-ltr", chosen=1, buttons=True))
    buttons = [one for tag, one in zip(outline.tags, outline.attributes) if tag == "button"]
    assert [one["data-label"] for one in buttons] == list("01234")
    assert [one["aria-pressed"] for one in buttons] == ["false", "true", "false", "false", "false"]
    assert {one["type"] for one in buttons} == {"button"}
    widths = [one["style"] for one in outline.attributes if "style" in one]
    assert widths[:3] == ["width:50.00%", "width:10.00%", "width:20.00%"]
    assert "50.0\u00a0%" in outline.text and "few, 2\u00a0training images" in outline.text
    assert "many: more than 99 training images" in outline.text and "taught here" in outline.text
    plain = Outline(bars([Row(0, "a", 1.5)], "Labels"))
    assert "button" not in plain.tags and "width:100.00%" in [one.get("style") for one in plain.attributes]


def test_ordinals():
    numbers = (1, 2, 3, 4, 11, 12, 13, 21, 102, 111, 1003)
    assert [ordinal(number) for number in numbers] == (
        ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th", "1,003rd"]
    )


def test_colours_are_the_reports():
    light, dark = report_colours()
    assert light.keys() >= {"many", "medium", "few"} and all(light[one] != dark[one] for one in ("many", "few"))
    sheet = css()
    for colours, selector in ((light, ":root"), (dark, ".dark")):
        block = re.search(rf"{re.escape(selector)} \{{(.*?)\}}", sheet)[1]
        assert all(f"--vlr-{name}: {colours[name]};" in block for name in ("many", "medium", "few"))
    assert "http" not in sheet and "@import" not in sheet and "url(" not in sheet


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of(width, height):
    """A PNG that says it is this large and has no pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_pictures_are_upright_rgb_and_bounded(tiny):
    exif = Image.Exif()
    exif[274] = 6
    turned = read_picture(encoded(tiny.picture(), "JPEG", exif=exif))
    assert turned.size == (40, 48) and turned.mode == "RGB"
    assert read_picture(encoded(Image.new("RGBA", (3, 2), (0, 0, 0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    assert read_picture(encoded(Image.new("L", (3000, 1500)))).size == (MAX_SIDE, MAX_SIDE // 2)
    url = "data:image/png;base64," + base64.b64encode(encoded(tiny.picture())).decode()
    assert read_data_url(url).tobytes() == tiny.picture().tobytes()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cannot be read"),
        (b"hello", "cannot be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read"),
        (png_of(10, 10), "is damaged"),
        (png_of(9000, 9000), "9,000 × 9,000 pixels"),
        (png_of(60000, 60000), "too large"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(data, said):
    with pytest.raises(UserError, match=said) as caught:
        read_picture(data, "Picture 3")
    assert str(caught.value).startswith("Picture 3") and "0x" not in str(caught.value)
    with pytest.raises(UserError):
        read_data_url("data:image/png;base64,é")


@pytest.fixture(scope="module")
def exhibit(tiny, tmp_path_factory):
    return open_exhibit(str(models.hostile(tiny, tmp_path_factory.mktemp("demo") / "model")))


def test_the_tabs_pass_hostile_names_as_text(exhibit, tiny):
    seen = look(exhibit, tiny.picture())
    tab, teaching = Recognise(exhibit), Teach(exhibit)
    shown, label, sentences = tab.first(seen, 0.5, 0.5, 5)
    _, names, bars_of = teaching.add(seen, (), [], 0.0, "<b>bold</b>", "<i>x</i>")
    for piece in (shown, sentences, bars_of, about(exhibit)):
        assert not {"script", "img", "b", "i"} & set(Outline(piece).tags)
    assert HOSTILE[label] in Outline(sentences).text and names == ["<b>bold</b>"]
    assert "<b>bold</b>" in Outline(bars_of).text


def test_about_tells_what_is_known(tiny, tmp_path):
    exhibit = open_exhibit(str(models.recogniser(tiny, tmp_path / "run" / "stage2")))
    exhibit.metrics = {
        "protocol": {"source": "<toy>", "split": "test", "rule": {"name": "oltr"}},
        "predictors": {
            "fused": {"accuracy": 0.5, "groups": {name: {"accuracy": 0.25} for name in ("many", "medium", "few")}},
            "visual": {
                "accuracy": 0.75,
                "groups": {"many": {"accuracy": 1.0}, "medium": {"accuracy": None}, "few": {"accuracy": 0.5}},
            },
        },
    }
    text = Outline(about(exhibit)).text
    for said in ("run/stage2", "213, from 1 to 120 a class", "50.0\u00a0%", "source: <toy>", "many: more than 100"):
        assert said in text
    for broken in (
        {"predictors": []},
        {"predictors": {"fused": {}}, "protocol": {}},
        {"predictors": {}, "protocol": 3},
    ):
        exhibit.metrics = broken
        assert "How it was measured" not in about(exhibit)


def test_state_is_handed_on_and_never_kept(exhibit, tiny):
    teaching, seen = Teach(exhibit), look(exhibit, tiny.picture())
    mine, names, _ = teaching.add(seen, (), [], 0.0, "owl", "a bird of the night.")
    assert [one.name for one in mine] == ["owl"]
    yours, _, _ = teaching.add(seen, (), [], 0.0, "owl", "another bird.")
    assert yours[0].sentences != mine[0].sentences
    with pytest.raises(UserError, match="already"):
        teaching.learn(mine, "Owl", "")
    # one that is not ticked takes no part
    assert "owl" not in teaching.show(seen, mine, [], 0.0) and "owl" in teaching.show(seen, mine, names, 0.0)
    assert "Upload a picture" in teaching.show(None, mine, names, 0.0)
    with pytest.raises(UserError, match="20 classes are taught already"):
        teaching.learn(mine * 20, "hawk", "")


def test_sliders_do_not_run_a_tower(exhibit, tiny, monkeypatch):
    tab, seen = Recognise(exhibit), look(exhibit, tiny.picture())
    question, first = Ask(exhibit).ask(seen, "a\nb", "{}")
    monkeypatch.setattr(exhibit, "_see", None)
    monkeypatch.setattr(exhibit, "_read", None)
    assert tab.bars(seen, 0.0, 0.0, 5, None) != tab.bars(seen, 1.0, 0.0, 5, None)
    assert tab.bars(seen, 0.5, 0.0, 5, None) != tab.bars(seen, 0.5, 2.0, 5, None)
    assert Ask(exhibit).again(seen, question) == first
    other = Seen(-seen.feature, seen.opinion)
    assert Ask(exhibit).again(other, question) != first


def test_without_a_picture_every_part_says_so(exhibit):
    tab = Recognise(exhibit)
    assert "Upload a picture" in tab.first(None, 0.5, 0.0, 5)[0] and "Upload" in tab.bars(None, 0.5, 0.0, 5, None)
    assert tab.sentences(None, 0) == "" and Ask(exhibit).again(None, None)
    for act in (lambda: look(exhibit, None), lambda: Ask(exhibit).ask(None, "a", "{}")):
        with pytest.raises(UserError, match="There is no picture"):
            act()
    for label in (-1, 5, "0", None, 1.0):
        with pytest.raises(UserError, match="no such class"):
            tab.require_label(label)


def test_examples_come_from_folders_or_are_drawn(exhibit, tiny, tmp_path):
    assert example_pictures(exhibit) == []
    folder = tmp_path / "pictures"
    folder.mkdir()
    with pytest.raises(UserError, match="no pictures"):
        example_pictures(exhibit, str(folder))
    for number in range(8):
        tiny.picture(number).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("x")
    assert len(example_pictures(exhibit, str(folder))) == 6
    (folder / "0.png").write_bytes(b"no")
    with pytest.raises(UserError, match="cannot be read"):
        example_pictures(exhibit, str(folder))


def shapes_exhibit(tiny, folder):
    names = shapes_classes(ShapesOptions(classes=12, unseen=0))[0]
    model = tiny.recogniser(id2label=dict(enumerate(names[:5])), label2id={name: i for i, name in enumerate(names[:5])})
    model.save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    return open_exhibit(str(folder))


def test_generated_shapes_are_drawn_and_unseen_ones_taught(tiny, tmp_path):
    exhibit = shapes_exhibit(tiny, tmp_path / "model")
    drawn = example_pictures(exhibit)
    assert len(drawn) == 5 and len({one.tobytes() for one in drawn}) == 5
    assert [one.tobytes() for one in drawn] == [one.tobytes() for one in example_pictures(exhibit)]
    found = lessons(exhibit)
    assert len(found) == len({one.name for one in found}) == 3
    words = {word for name in exhibit.classes.names for word in name.split()}
    for one in found:
        assert one.name not in exhibit.classes.names and set(one.name.split()) <= words
        assert len(one.description.splitlines()) == 11
    # beside the run of quickstart lie its own
    (tmp_path / "examples").mkdir()
    tiny.picture().save(tmp_path / "examples" / "a.png")
    assert len(example_pictures(exhibit)) == 1


def test_a_lent_gpu_is_asked_for_where_there_is_one(monkeypatch):
    def square(x):
        return x * x

    monkeypatch.setitem(sys.modules, "spaces", None)
    assert accelerator.lent(square) is square
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace())
    assert accelerator.lent(square) is square
    asked = []

    def gpu(duration):
        asked.append(duration)
        return lambda function: lambda *values: function(*values) + 1

    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=gpu))
    assert accelerator.lent(square)(3) == 10 and asked == [accelerator.DURATION]


def test_errors_reach_a_visitor_as_escaped_words():
    gradio = pytest.importorskip("gradio", reason="gradio is not installed")
    from hf_vlr.demo.session import in_words, received

    def refuse(value: int) -> int:
        """What it does."""
        raise UserError(f"{HOSTILE[0]} {value}")

    spoken = in_words(refuse)
    assert spoken.__name__ == "refuse" and spoken.__doc__ == "What it does."
    with pytest.raises(gradio.Error) as caught:
        spoken(3)
    assert caught.value.message == html.escape(f"{HOSTILE[0]} 3")
    assert received(None) is None


def test_a_slider_takes_numbers_in_its_range_alone():
    gradio = pytest.importorskip("gradio", reason="gradio is not installed")
    from hf_vlr.demo.session import numbers_only

    slider = numbers_only(gradio.Slider(0, 6, 0, step=0.5, label="advantage"))
    assert [slider.preprocess(value) for value in (0, 2.5, 6)] == [0, 2.5, 6]
    for value in (None, "2", True, [1], {}, float("nan"), float("inf"), -0.5, 6.5):
        with pytest.raises(gradio.Error) as caught:
            slider.preprocess(value)
        assert caught.value.message == "advantage: give a number from 0 to 6."


def test_what_is_no_upload_is_refused_in_words(tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="gradio is not installed")
    from hf_vlr.demo.session import uploaded

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "taken"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "a.png").write_bytes(b"a")
    assert uploaded(str(tmp_path / "taken" / "a.png")) == b"a"
    (tmp_path / "b.png").write_bytes(b"b")
    long = str(tmp_path / "taken" / ("a" * 5000))
    for path in (None, "", "a\x00", 3, long, str(tmp_path / "b.png"), str(tmp_path / "taken")):
        with pytest.raises(UserError, match="This is no file that was uploaded"):
            uploaded(path)


def test_where_nobody_can_listen_is_said_before_a_model_is_read(tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed")
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        for words, said in (
            (["--host", "256.1.1.1", "--port", "0"], "^--host 256.1.1.1: no such address; give one of this machine"),
            (["--host", "a" * 70], "no such address; give one of this machine"),
            (["--host", "192.0.2.1"], "^--host 192.0.2.1: not an address of this machine"),
            (["--port", str(port)], f"^port {port} on 127.0.0.1 is in use; choose another with --port, 0 for any$"),
        ):
            with pytest.raises(UserError, match=said):
                command.main([str(tmp_path / "no model"), *words], standalone_mode=False)
    assert free_port("127.0.0.1", port) == port
    assert free_port("127.0.0.1", 0) > 0


def test_command_line(tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="gradio is not installed")
    monkeypatch.chdir(tmp_path)
    for words, said in (
        ([], "name a MODEL, or run hf-vlr quickstart first, which makes runs/quickstart/stage2"),
        (["nothing/here", "--port", "0"], "model nothing/here cannot be read"),
        (["--port", "70000"], "70000 is not in the range"),
    ):
        with pytest.raises((UserError, click.ClickException), match=said):
            command.main(words, standalone_mode=False)


def test_numbers_of_a_batch_keep_their_order(tiny, tmp_path):
    from hf_vlr.demo.endpoints import Endpoints

    exhibit = open_exhibit(str(models.recogniser(tiny, tmp_path / "model")))
    offered = Endpoints(exhibit)
    files = [encoded(tiny.picture(seed)) for seed in range(3)]
    alone = [offered.recognise(read_picture(data), 0.2, 0.5, 3) for data in files]
    found = offered.recognise_batch([files[0], b"no", files[1], files[2]], 0.2, 0.5, 3)
    assert found.pop(1)["error"].startswith("Picture 1 cannot be read")
    for one, wanted in zip(found, alone, strict=True):
        assert [row["label"] for row in one["classes"]] == [row["label"] for row in wanted["classes"]]
        np.testing.assert_allclose(one["score"], wanted["score"], rtol=1e-4)
    for images, said in (([], "send at least one"), (None, "send at least one"), (files * 22, "66 pictures")):
        with pytest.raises(UserError, match=said):
            offered.recognise_batch(images, 0.2, 0.5, 3)
    assert offered.recognise_batch([b"no"], 0.2, 0.5, 3) == [{"error": found_error(b"no")}]
    for classes in ({}, [], {"a": "text"}, {"a": [3]}, {str(number): [] for number in range(21)}):
        with pytest.raises(UserError, match=r"\{name: \[sentence, ...\]\}"):
            offered.teach(tiny.picture(), classes, 0, 5)


def test_a_few_pictures_of_a_batch_are_decoded_at_a_time(tiny, tmp_path, monkeypatch):
    from hf_vlr.demo.endpoints import Endpoints

    offered = Endpoints(open_exhibit(str(models.recogniser(tiny, tmp_path / "model"))))
    features, sizes = offered.exhibit.image_features, []

    def counted(pictures):
        sizes.append(len(pictures))
        return features(pictures)

    monkeypatch.setattr(type(offered.exhibit), "image_features", lambda _, pictures: counted(pictures))
    files = [encoded(tiny.picture(seed)) for seed in range(3)] * 12
    files[17] = b"no"
    found = offered.recognise_batch(files, 0.2, 0.5, 1)
    assert sizes == [16, 15, 4] and len(found) == 36
    assert found[17]["error"].startswith("Picture 17 cannot be read")
    assert [one["label"] for one in found[18:36:3]] == [found[0]["label"]] * 6


def found_error(data):
    with pytest.raises(UserError) as caught:
        read_picture(data, "Picture 0")
    return str(caught.value)
