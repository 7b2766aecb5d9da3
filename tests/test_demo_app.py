"""The page as programs see it: endpoints, errors in words, and what one visitor's session keeps from another's."""

import base64
import importlib.util
import io
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_vlr.demo.app import build, launch_options

gradio_client = pytest.importorskip("gradio_client", reason="gradio is not installed")
SPEC = importlib.util.spec_from_file_location("demo_models", Path(__file__).with_name("demo_models.py"))
models = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(models)

pytestmark = pytest.mark.slow
RECOGNISER = {"/recognise", "/recognise_batch", "/sentences", "/ask", "/teach", "/about"}


def launched(folder: Path) -> Iterator[str]:
    page = build(str(folder))
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **launch_options())
    yield url
    page.close()


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    return models.recogniser(tiny, tmp_path_factory.mktemp("demo") / "model")


@pytest.fixture(scope="module")
def url(folder):
    yield from launched(folder)


@pytest.fixture(scope="module")
def pictures(tiny, tmp_path_factory):
    home = tmp_path_factory.mktemp("pictures")
    paths = [home / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        tiny.picture(number).save(path)
    return paths


@pytest.fixture
def client(url):
    return gradio_client.Client(url, verbose=False)


def file(path):
    return gradio_client.handle_file(str(path))


def test_the_endpoints_are_told_with_their_words(client):
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert named.keys() == RECOGNISER
    described = {name: one["description"] for name, one in named.items()}
    assert all(len(text) > 40 for text in described.values()), described
    parameters = {name: [one["parameter_name"] for one in named[name]["parameters"]] for name in RECOGNISER}
    assert parameters["/recognise"] == ["image", "fusion_weight", "tau", "top_k"]
    assert parameters["/recognise_batch"] == ["images", "fusion_weight", "tau", "top_k"]
    assert parameters["/sentences"] == ["image", "label", "count"] and parameters["/about"] == []
    assert parameters["/ask"] == ["image", "labels", "template"]
    assert parameters["/teach"] == ["image", "classes", "advantage", "top_k"]


def test_recognise_is_predict(client, tiny, pictures):
    model = tiny.recogniser()
    found = client.predict(file(pictures[0]), model.config.fusion_weight, 0, 3, api_name="/recognise")
    wanted = model.predict([tiny.picture(0)], top_k=3, processor=tiny.processor().image_processor)[0]
    assert [row["label"] for row in found["classes"]] == [row["label"] for row in wanted["classes"]]
    for key in ("score", "visual_score", "language_score"):
        mine, theirs = ([row[key] for row in one["classes"]] for one in (found, wanted))
        np.testing.assert_allclose(mine, theirs, rtol=1e-4)
    given = client.predict(file(pictures[0]), found["label"], 3, api_name="/sentences")
    assert [one["text"] for one in given] == [one["text"] for one in wanted["classes"][0]["sentences"]]


def test_a_batch_is_its_pictures_one_by_one(client, pictures, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    settings = (0.5, 1.0, 2)
    together = client.predict(
        [file(path) for path in (pictures[0], broken, *pictures[1:])], *settings, api_name="/recognise_batch"
    )
    assert "Picture 1 cannot be read" in together.pop(1)["error"]
    alone = [client.predict(file(path), *settings, api_name="/recognise") for path in pictures]
    for one, wanted in zip(together, alone, strict=True):
        assert [row["label"] for row in one["classes"]] == [row["label"] for row in wanted["classes"]]
        assert one["score"] == pytest.approx(wanted["score"], rel=1e-4)


def test_questions_and_taught_classes(client, pictures):
    rows = client.predict(file(pictures[0]), "a fox\na wolf\n\na fox", "a {}.", api_name="/ask")
    assert {row["label"] for row in rows} == {"a fox", "a wolf"}
    assert sum(row["score"] for row in rows) == pytest.approx(1)
    classes = {"owl": ["a bird of the night.", "large eyes"], "hawk": []}
    plain, raised = (
        client.predict(file(pictures[0]), classes, advantage, 5, api_name="/teach") for advantage in (0, 6)
    )
    assert {row["label"] for row in plain if row["group"] == "taught"} == {"owl", "hawk"}
    scores = [{row["label"]: row["score"] for row in rows} for rows in (plain, raised)]
    assert all(scores[1][name] > scores[0][name] for name in classes)
    about = client.predict(api_name="/about")
    assert about["train_images"] == [120, 60, 25, 7, 1] and "owl" not in about["classes"]


@pytest.mark.parametrize(
    ("endpoint", "values", "said"),
    [
        ("/recognise", (None, 0.5, 0, 5), "There is no picture"),
        ("/recognise", ("broken", 0.5, 0, 5), "cannot be read"),
        ("/recognise", ("bomb", 0.5, 0, 5), "pixels"),
        ("/recognise_batch", ([], 0.5, 0, 5), "send at least one"),
        ("/ask", ("good", " ", "{}"), "There is no label"),
        ("/ask", ("good", "\n".join(map(str, range(300))), "{}"), "300 labels are too many"),
        ("/ask", ("good", "a", "{} {}"), "once"),
        ("/sentences", ("good", "unicorn", 3), "no class of that label"),
        ("/teach", ("good", {"lynx": ["x"]}, 0, 5), "of that name already"),
        ("/teach", ("good", {}, 0, 5), "Describe 1 to 20 classes"),
    ],
)
def test_errors_are_said_in_words(client, pictures, tmp_path, endpoint, values, said):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("1", (8000, 7000)).save(tmp_path / "bomb.png")
    named = {"good": pictures[0], "broken": tmp_path / "broken.png", "bomb": tmp_path / "bomb.png"}
    values = [file(named[one]) if isinstance(one, str) and one in named else one for one in values]
    with pytest.raises(gradio_client.exceptions.AppError, match=said):
        client.predict(*values, api_name=endpoint)


def raw(url, endpoint, *values):
    """What the server answers to a request as it stands, which a client of gradio would mend."""
    body = json.dumps({"data": values}).encode()
    request = urllib.request.Request(f"{url}gradio_api/call{endpoint}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}gradio_api/call{endpoint}/{event}", timeout=60) as answer:
        return answer.read().decode()


def test_what_a_client_would_mend_is_said_in_words(url, tiny):
    stream = io.BytesIO()
    tiny.picture().save(stream, "PNG")
    picture = {"url": "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()}
    number, upload = "give a number from", "This is no file that was uploaded"
    for endpoint, values, said in (
        ("/recognise", (picture, None, 0, 5), number),
        ("/recognise", (picture, 0.5, "word", 5), number),
        ("/sentences", (picture, "lynx", None), number),
        ("/teach", (picture, {"owl": []}, "word", 5), number),
        ("/teach", (picture, {"owl": []}, 0, None), number),
        ("/recognise", ({"path": None}, 0.5, 0, 5), upload),
        ("/recognise", ({"path": "a\x00"}, 0.5, 0, 5), upload),
    ):
        answer = raw(url, endpoint, *values)
        assert "event: error" in answer and said in answer, answer
    assert "event: complete" in raw(url, "/recognise", picture, 0.5, 0, 5)


def test_no_path_of_the_server_is_opened(url, tiny, tmp_path):
    # what lies there can be read, so that an answer would be one
    tiny.picture().save(tmp_path / "secret.png")
    secret, meta = str(tmp_path / "secret.png"), {"_type": "gradio.FileData"}
    for payload in (
        {"path": secret, "meta": meta},
        {"path": secret},
        {"path": f"file://{secret}", "meta": meta},
        {"path": secret, "url": f"file://{secret}", "orig_name": "a.svg", "meta": meta},
        secret,
    ):
        assert "event: error" in raw(url, "/recognise", payload, 0.5, 0, 5), payload
        assert "event: error" in raw(url, "/recognise_batch", [payload], 0.5, 0, 5), payload


def test_one_visitor_does_not_see_anothers_classes(url, pictures):
    mine, yours = (gradio_client.Client(url, verbose=False) for _ in range(2))
    for visitor in (mine, yours):
        visitor.predict(file(pictures[0]), api_name="/look")
    ticked, shown = mine.predict([], 0, "a secret owl", "a bird of the night.", api_name="/show_taught")
    assert "a secret owl" in shown and "a secret owl" in json.dumps(ticked)
    assert "a secret owl" in mine.predict(["a secret owl"], 0, api_name="/weigh_taught")
    assert "a secret owl" not in yours.predict([], 0, api_name="/weigh_taught")
    # the name is free in the other session
    assert "a secret owl" in yours.predict([], 0, "a secret owl", "another one.", api_name="/show_taught")[1]
    assert "a secret owl" not in mine.predict(api_name="/forget")[1]
    assert "a secret owl" in yours.predict(["a secret owl"], 0, api_name="/weigh_taught")


def test_a_picture_is_seen_once_and_scored_often(client, pictures):
    client.predict(file(pictures[0]), api_name="/look")
    bars = [client.predict(weight, 0, 5, 0, api_name="/score_again") for weight in (0, 0.5, 1)]
    assert len(set(bars)) == 3 and all(one.count("<button") == 5 for one in bars)


@pytest.mark.parametrize("kind", ["visual_only", "dual_encoder"])
def test_lesser_models_offer_what_they_can(tiny, tmp_path, pictures, kind):
    pages = launched(getattr(models, kind)(tiny, tmp_path / "model"))
    client = gradio_client.Client(next(pages), verbose=False)
    names = client.view_api(return_format="dict")["named_endpoints"].keys()
    if kind == "dual_encoder":
        assert names == {"/ask", "/about"}
        assert len(client.predict(file(pictures[0]), "a\nb", "{}", api_name="/ask")) == 2
    else:
        assert names == RECOGNISER - {"/sentences"}
        found = client.predict(file(pictures[0]), 1, 0.5, 2, api_name="/recognise")
        assert [row["language_score"] for row in found["classes"]] == [None, None]
        for endpoint, values in (("/ask", ("a", "{}")), ("/teach", ({"a": []}, 0, 5))):
            with pytest.raises(gradio_client.exceptions.AppError, match="no text tower"):
                client.predict(file(pictures[0]), *values, api_name=endpoint)
    next(pages, None)


def test_what_the_spaces_readme_shows_runs(url, pictures):
    from hf_vlr.demo.space_files import space_texts

    readme = space_texts("ann/demo", "org/m")["README.md"]
    code = readme.split("```python\n")[1].split("```")[0]
    for shown, real in (("ann/demo", url), ("photo.jpg", str(pictures[0])), ('"a class"', '"red fox"')):
        assert shown in code
        code = code.replace(shown, real)
    calls = re.findall(r"api_name=\"(/\w+)\"", code)
    assert set(calls) == RECOGNISER
    exec(compile(code, "README.md", "exec"), {})
