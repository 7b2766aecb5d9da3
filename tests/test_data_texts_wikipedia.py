"""Collecting from Wikipedia: a dump in Parquet, and the API as a local server speaks it."""

import json
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_vlr import __version__
from hf_vlr.cli.main import main
from hf_vlr.data.corpus import ClassTextCorpus
from hf_vlr.data.texts.mediawiki import MediaWiki
from hf_vlr.data.texts.page import Page
from hf_vlr.data.texts.row import TextRow
from hf_vlr.data.texts.wikipedia import candidate_titles, collect, wikipedia_endpoint
from hf_vlr.data.texts.wikipedia_dump import WikipediaDump
from hf_vlr.errors import UserError

CONTACT = "me@example.org"
TENCH = "The tench is a fish. It is green.\n\n\n== Ecology ==\nIt eats snails!\n\n\n== See also ==\nOther fish here."


def article(title: str, extract: str) -> dict:
    url = f"https://en.wikipedia.org/wiki/{title.replace(' ', '_')}"
    return {"pageid": 1, "ns": 0, "title": title, "extract": extract, "fullurl": url}


def answer(page: dict, **query: list) -> dict:
    return {"batchcomplete": True, "query": {**query, "pages": [page]}}


ANSWERS = {
    "tench": answer(article("Tench", TENCH), normalized=[{"from": "tench", "to": "Tench"}]),
    "doctor fish": answer(article("Tench", TENCH), redirects=[{"from": "Doctor fish", "to": "Tench"}]),
    "kit fox": answer(article("Kit fox", "The kit fox is a fox.")),
    "crane": answer(article("Crane", "Crane may be:\nA bird.") | {"pageprops": {"disambiguation": ""}}),
    "stub": answer(article("Stub", "")),
    "<bad>": answer({"title": "<bad>", "invalid": True, "invalidreason": "it is"}),
}
MISSING = answer({"ns": 0, "title": "None", "missing": True})


class Wiki(BaseHTTPRequestHandler):
    """Answers as MediaWiki does; before that, whatever `server.troubles` holds."""

    def do_GET(self) -> None:
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        self.server.requests.append((time.monotonic(), query, dict(self.headers)))
        status, headers, body = 200, {}, ANSWERS.get(query["titles"].lower(), MISSING)
        if self.server.troubles:
            status, headers, body = self.server.troubles.pop(0)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Wiki)
    server.requests, server.troubles = [], []
    server.address = f"http://127.0.0.1:{server.server_port}/w/api.php"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def wiki(server, tmp_path) -> MediaWiki:
    return MediaWiki(server.address, CONTACT, tmp_path / "cache", interval=0.0, backoff=0.02)


# the API


def test_a_request_says_who_asks_and_what_for(server, wiki):
    assert wiki.page("tench") == Page("Tench", "article", "https://en.wikipedia.org/wiki/Tench", TENCH)
    ((_, query, headers),) = server.requests
    assert headers["User-Agent"] == f"hf_vlr/{__version__} ({CONTACT})"
    assert query == {
        "action": "query", "format": "json", "formatversion": "2", "titles": "tench", "redirects": "1", "maxlag": "5",
        "prop": "extracts|info|pageprops", "explaintext": "1", "exsectionformat": "wiki", "inprop": "url",
        "ppprop": "disambiguation",
    }  # fmt: skip


def test_kinds_of_pages(wiki):
    assert wiki.page("doctor fish").title == "Tench"
    assert [wiki.page(title).kind for title in ("crane", "nothing", "<bad>")] == ["disambiguation", *["missing"] * 2]
    assert wiki.page("stub") == Page("Stub", "article", "https://en.wikipedia.org/wiki/Stub", "")


def test_an_answer_is_asked_for_once(server, wiki, tmp_path):
    titles = ["tench", "nothing", "tench", "crane"]
    first = [wiki.page(title) for title in titles]
    assert len(server.requests) == 3
    again = MediaWiki(server.address, CONTACT, tmp_path / "cache")
    assert [again.page(title) for title in titles] == first
    assert len(server.requests) == 3
    # a spoilt file is no answer
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text("{")
    assert wiki.page("tench") == first[0]
    assert len(server.requests) == 4
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_wait_that_the_server_asks_for_is_kept(server, wiki):
    server.troubles = [(429, {"Retry-After": "1"}, b"slow down")]
    assert wiki.page("tench").kind == "article"
    first, second = (when for when, *_ in server.requests)
    assert 1.0 <= second - first < 1.6


def test_a_wait_until_a_date(server, wiki):
    server.troubles = [(503, {"Retry-After": formatdate(time.time() + 2, usegmt=True)}, b"")]
    assert wiki.page("tench").kind == "article"
    first, second = (when for when, *_ in server.requests)
    assert 0.9 <= second - first < 2.6


def test_passing_failures_are_tried_again_and_waits_double(server, wiki):
    lag = {"error": {"code": "maxlag", "info": "Waiting for a host: 6 seconds lagged"}}
    server.troubles = [(500, {}, b"oops"), (200, {}, lag), (200, {}, b"<html>"), (200, {"Content-Length": "9"}, b"{}")]
    assert wiki.page("tench").kind == "article"
    times = [when for when, *_ in server.requests]
    assert len(times) == 5
    assert all(later - sooner >= 0.02 * 2**n for n, (sooner, later) in enumerate(pairwise(times)))


def test_lasting_failures_end_in_one_line_and_leave_nothing_in_the_cache(server, wiki):
    server.troubles = [(500, {}, b"oops")] * 6
    with pytest.raises(UserError, match=r"failed 6 times for 'tench' \(status 500\); run the same command again"):
        wiki.page("tench")
    assert len(server.requests) == 6
    assert wiki.page("tench").kind == "article"


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ((403, {}, b"no"), r"refuses the request \(status 403\)"),
        ((429, {"Retry-After": "3600"}, b""), "asks to wait 3600 s; run the same command again later"),
        ((200, {}, {"error": {"code": "badvalue", "info": "it is bad"}}), "reports badvalue: it is bad"),
        ((200, {}, {"hello": 1}), "answers, but not as MediaWiki does"),
        ((200, {}, b"[]"), "answers, but not as MediaWiki does"),
    ],
)
def test_other_failures_are_not_tried_again(server, wiki, trouble, message):
    server.troubles = [trouble]
    with pytest.raises(UserError, match=message):
        wiki.page("tench")
    assert len(server.requests) == 1


def test_requests_keep_their_distance(server, tmp_path):
    wiki = MediaWiki(server.address, CONTACT, tmp_path, interval=0.2)
    for title in ("tench", "kit fox", "tench", "crane"):
        wiki.page(title)
    times = [when for when, *_ in server.requests]
    assert len(times) == 3
    assert all(later - sooner >= 0.15 for sooner, later in pairwise(times))


def test_a_server_that_is_not_there(tmp_path):
    wiki = MediaWiki("http://127.0.0.1:9/w/api.php", CONTACT, tmp_path, attempts=2, backoff=0.01)
    with pytest.raises(UserError, match="failed 2 times for 'tench'"):
        wiki.page("tench")


@pytest.mark.parametrize("contact", ["", "me", "me@here", "a@b.org\r\nX: 1", "x) (a@b.org"])
def test_a_contact_must_be_one(tmp_path, contact):
    with pytest.raises(UserError, match="is neither a mail address nor a URL"):
        MediaWiki("https://en.wikipedia.org/w/api.php", contact, tmp_path)


def test_an_endpoint_must_be_one(tmp_path):
    with pytest.raises(UserError, match="is not the http address"):
        MediaWiki("file:///etc/hosts", CONTACT, tmp_path)
    assert wikipedia_endpoint("zh-yue") == "https://zh-yue.wikipedia.org/w/api.php"
    for language in ("", "EN", "en.evil.org/", "e"):
        with pytest.raises(UserError, match="is none of Wikipedia's"):
            wikipedia_endpoint(language)


# titles and collecting


def test_titles_are_names_and_lemmas_that_no_other_class_has(tmp_path):
    assert candidate_titles(["kit_fox", "Tinca tinca", "crane", "Crane"]) == [["kit fox"], ["Tinca tinca"], [], []]
    # crane the bird and crane the machine have a lemma in common
    bird, machine = candidate_titles(["crane (n02012849)", "crane (n03126707)"])
    assert (bird, machine) == ([], [])
    assert candidate_titles(["n01440764"]) == [["tench", "Tinca tinca"]]
    labels = tmp_path / "labels.txt"
    labels.write_text("n01440764 tench\n")
    assert candidate_titles(["doctor fish"], labels) == [["doctor fish", "tench", "Tinca tinca"]]


def test_collecting_takes_the_first_article_and_reports_the_rest(wiki):
    titles = [["nothing", "tench"], ["crane", "nothing"], ["nothing"], [], ["stub"], ["kit fox"]]
    collection = collect(titles, wiki.page)
    source = "https://en.wikipedia.org/wiki/"
    assert collection.rows == [
        TextRow(0, "The tench is a fish.", f"{source}Tench", "CC-BY-SA-4.0"),
        TextRow(0, "It is green.", f"{source}Tench", "CC-BY-SA-4.0"),
        TextRow(0, "It eats snails!", f"{source}Tench", "CC-BY-SA-4.0"),
        TextRow(5, "The kit fox is a fox.", f"{source}Kit_fox", "CC-BY-SA-4.0"),
    ]
    assert collection.pages == {0: f"{source}Tench", 5: f"{source}Kit_fox"}
    assert (collection.disambiguation, collection.missing, collection.unnamed) == ([1], [2], [3])
    assert (collection.empty, collection.shared) == ([4], [])


def test_a_page_of_two_classes_is_used_for_neither(wiki):
    collection = collect([["tench"], ["doctor fish"], ["kit fox"]], wiki.page)
    assert collection.shared == [0, 1]
    assert {row.label for row in collection.rows} == {2}


# the dump


def write_dump(folder: Path) -> Path:
    folder.mkdir()
    pages = [
        ("Tench", "The tench is a fish.\n\nSome heading\n\nIt is green.\n\nReferences\n\nA book is here."),
        ("Crane", "Crane may refer to:\n\nCrane (bird), a bird."),
        ("Kit fox", "The kit fox is a fox."),
        ("KIT FOX", "A film it is."),
        ("RED ADMIRAL", "A ship it was."),
        ("Red Admiral", "A butterfly it is."),
        ("Zebra", "A zebra is striped."),
        ("Mercury (disambiguation)", "Many things."),
    ]
    rows = [
        {"id": str(n), "url": f"https://w/{n}", "title": title, "text": text} for n, (title, text) in enumerate(pages)
    ]
    pq.write_table(pa.Table.from_pylist(rows[:6]), folder / "train-0.parquet", row_group_size=2)
    pq.write_table(pa.Table.from_pylist(rows[6:]), folder / "train-1.parquet")
    return folder


def test_pages_of_a_dump(tmp_path):
    titles = ["tench", "crane", "kit_fox", "red admiral", "ZEBRA", "mercury (disambiguation)", "nothing"]
    dump = WikipediaDump(write_dump(tmp_path / "dump"), titles)
    pages = {title: dump.page(title) for title in titles}
    assert pages["tench"].url == "https://w/0"
    assert pages["kit_fox"] == Page("Kit fox", "article", "https://w/2", "The kit fox is a fox.")
    assert pages["ZEBRA"].text == "A zebra is striped."
    assert [title for title in titles if pages[title].kind == "disambiguation"] == [
        "crane",
        "red admiral",
        "mercury (disambiguation)",
    ]
    assert pages["nothing"].kind == "missing"
    rows = collect([["tench"]], dump.page).rows
    assert [row.text for row in rows] == ["The tench is a fish.", "It is green."]


def test_wrong_dumps_are_named(tmp_path):
    with pytest.raises(UserError, match="no Parquet files of a Wikipedia dump"):
        WikipediaDump(tmp_path, ["tench"])
    pq.write_table(pa.table({"title": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column 'url'"):
        WikipediaDump(tmp_path, ["tench"])
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"a\.parquet: no readable Parquet file"):
        WikipediaDump(tmp_path, ["tench"])


# the command


@pytest.fixture
def photos(tmp_path) -> Iterator[str]:
    for name, number in {"crane": 1, "kit_fox": 2, "tench": 3}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(number):
            Image.new("RGB", (4, 4), (index, 0, 0)).save(tmp_path / "photos" / name / f"{index}.png")
    datasets.disable_progress_bars()
    yield f"imagefolder:{tmp_path / 'photos'}"
    datasets.enable_progress_bars()


@pytest.fixture
def data_texts(capsys, photos):
    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["data", "texts", photos, "data.validation_fraction=0", *words])
        return caught.value.code, *capsys.readouterr()

    return run


def test_the_command_counts_sources_groups_and_classes(data_texts, tmp_path):
    (tmp_path / "t.csv").write_text("label,text,license\n1,A small fox.,CC0\n1,It digs.,CC0\n2,A fish.,\n")
    out = tmp_path / "new" / "out.jsonl"
    code, said, error = data_texts(f"data.texts={tmp_path / 't.csv'}", "eval.rule=custom:2,2", "--out", str(out))
    assert (code, error) == (0, "")
    rows = [line.split() for line in said.splitlines()]
    assert ["t.csv", "2", "CC0"] in rows
    assert ["t.csv", "1", "not", "stated"] in rows
    assert ["all", "3", "1", "1.0"] in rows
    assert ["many", "(custom:2,2)", "1", "0", "1.0"] in rows
    assert ["few", "(custom:2,2)", "1", "1", "0.0"] in rows
    assert rows[-5:-2] == [["0", "0", "1", "crane"], ["2", "1", "3", "tench"], ["1", "2", "2", "kit_fox"]]
    assert ClassTextCorpus.from_file(out, ["crane", "kit_fox", "tench"]).coverage().tolist() == [0, 2, 1]


def test_the_command_collects_from_the_api_and_goes_on(data_texts, server, tmp_path):
    out = str(tmp_path / "wiki.jsonl")
    words = ("--collect", "wikipedia", "--contact", CONTACT, "--api", server.address, "--interval", "0", "--out", out)
    server.troubles = [(403, {}, b"")]
    code, said, error = data_texts(*words)
    assert (code, said) == (2, "")
    assert "refuses the request (status 403)" in error
    code, said, _ = data_texts(*words)
    assert code == 0
    assert "classes with a page" in said
    assert ["disambiguation", "page", "only", "1", "crane"] in [line.split() for line in said.splitlines()]
    asked = len(server.requests)
    assert asked == 1 + 3
    written = Path(out).read_text()
    Path(out).unlink()
    assert data_texts(*words)[0] == 0
    assert (Path(out).read_text(), len(server.requests)) == (written, asked)
    code, _, error = data_texts(*words)
    assert (code, error) == (2, f"error: {out}: exists already; remove it or choose another --out\n")


def test_the_command_collects_from_a_dump(data_texts, tmp_path):
    out = tmp_path / "wiki.jsonl"
    dump = write_dump(tmp_path / "dump")
    assert data_texts("--collect", f"wikipedia:{dump}", "--out", str(out))[0] == 0
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == [
        "The kit fox is a fox.",
        "The tench is a fish.",
        "It is green.",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--collect", "wikipedia"], "--collect needs --out FILE.jsonl"),
        (["--collect", "wikipedia", "--out", "x.jsonl"], "--collect wikipedia needs --contact MAIL"),
        (["--collect", "wiki", "--out", "x.jsonl"], "--collect wiki is unknown"),
        (["--collect", "wikipedia:", "--out", "x.jsonl"], "--collect wikipedia: is unknown"),
        (["--out", "x.txt"], "--out x.txt must end in .jsonl"),
        (["--contact", CONTACT], "--contact goes with --collect wikipedia only"),
        (["--collect", "wikipedia:d", "--out", "x.jsonl", "--language", "de"], "--language goes with --collect"),
        (["--labels", "x"], "--labels goes with --collect"),
        (
            ["--collect", "wikipedia", "--out", "x.jsonl", "--contact", CONTACT, "--language", "de", "--api", "http://x"],
            "--language and --api exclude each other",
        ),
        (["--collect", "wikipedia", "--out", "x.jsonl", "--contact", "me"], "contact 'me' is neither"),
        (["data.texts=wordnet"], "the class names hold no WordNet ids"),
    ],
)  # fmt: skip
def test_wrong_words_are_named(data_texts, words, message):
    code, said, error = data_texts(*words)
    assert (code, said) == (2, "")
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
