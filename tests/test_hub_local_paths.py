"""No path of this machine survives: in values, in texts of any kind, in their escaped forms."""

import os
from pathlib import Path

import pytest

from hf_vlr.hub.local_paths import LocalPaths, is_local, last_name, paths_in


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a data set in `data/own`, and a run."""
    (tmp_path / "work" / "data" / "own").mkdir(parents=True)
    (tmp_path / "runs" / "stage 2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize(
    ("value", "clean"),
    [
        ("/srv/models/stage1", "stage1"),
        ("imagefolder:/srv/my photos/birds", "imagefolder:birds"),
        ("stream:webdataset:/srv/shards/train-*.tar", "stream:webdataset:train-*.tar"),
        ("wiki:/srv/wiki+clip-templates", "wiki:wiki+clip-templates"),
        ("templates+/srv/c d/texts.jsonl", "templates+texts.jsonl"),
        ("timm:resnet50 + hf:/srv/clip", "timm:resnet50 + hf:clip"),
        ("~/photos", "photos"),
        ("../elsewhere/photos", "photos"),
        (r"C:\Users\ann\photos", "photos"),
        ("data/own", "own"),
        ("could not read /srv/models/stage1/config.json, sorry", "could not read config.json, sorry"),
        # what is none
        ("org/name", "org/name"),
        ("shapes-lt", "shapes-lt"),
        ("stream:hf://datasets/org/name/*.tar", "stream:hf://datasets/org/name/*.tar"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("and/or, 3/4, AC/DC, km/h", "and/or, 3/4, AC/DC, km/h"),
        ("CC-BY-SA-4.0", "CC-BY-SA-4.0"),
    ],
)
def test_values_keep_the_last_name_alone(here, value, clean):
    assert LocalPaths(here / "runs" / "stage 2", [{"a": [value]}]).clean({"key": [value, 1, None]}) == {
        "key": [clean, 1, None]
    }


def test_texts_of_any_kind_lose_them(here):
    run = here / "runs" / "stage 2"
    paths = LocalPaths(run, [{"source": f'imagefolder:{here}/R&D "x"/photos'}])
    page = f'<p title=\'{run}\'>{here}/R&amp;D &quot;x&quot;/photos</p> {{"a": "{here}/R&D \\"x\\"/photos"}}'
    page += f" {run}/eval/test/report.html {Path.home()}/.cache/huggingface {os.getcwd()}/notes.txt </p>"
    clean = paths.clean_text(page)
    assert (
        clean
        == '<p title=\'stage 2\'>photos</p> {"a": "photos"} stage 2/eval/test/report.html huggingface notes.txt </p>'
    )


def test_a_picture_in_a_page_is_left_alone(here):
    paths = LocalPaths(here / "runs" / "stage 2", [])
    picture = '<img src="data:image/jpeg;base64,/9j/4AAQSkZJRgABAQ/2wBD/tmpX/root2/q/tmp/abc">'
    assert paths.clean_text(picture) == picture


def test_what_is_a_path(here):
    assert list(paths_in("templates+/a/b+own")) == ["/a/b"]
    assert list(paths_in("data/own")) == ["data/own"]
    assert not is_local("data/none")
    assert not is_local("org/name")
    assert last_name(r"D:\data\x.csv") == "x.csv"
