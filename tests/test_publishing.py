"""Publishing a built dataset: what a reader finds on the Hub, what a second push changes, what each refusal says.

A client runs in a process of its own, because huggingface_hub reads its environment when it is imported.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCardData
from PIL import Image

from hf_vlr.cli.data_build import next_steps, summary
from hf_vlr.cli.main import main
from hf_vlr.data.building import build_longtail
from hf_vlr.data.corpus import TextRow
from hf_vlr.data.manifest import Entry, Manifest
from hf_vlr.data.publishing import images_without_bytes, push_dataset
from hf_vlr.errors import UserError

NAMES, MARKS = ("missile", "missile", "kit fox"), ("n03773504", "n04008634", "n02119789")
# Lines `repository folder token` on stdin become lines on stdout: the commit's URL or what went wrong.
PUSH = """
import sys
from hf_vlr.data.publishing import push_dataset
from hf_vlr.errors import UserError
from hf_vlr.hub import connection
connection.WAITS = (0.05, 0.05, 0.05)
for line in sys.stdin:
    repository, folder, token, private = line.split()
    try:
        print(push_dataset(folder, repository, private=private == "private", token=None if token == "-" else token))
    except UserError as error:
        print("UserError:", error)
"""
READ = """
import json, sys
import datasets, hf_vlr
name = sys.argv[1]
whole = datasets.load_dataset(name)
texts = datasets.load_dataset(name, "texts", split="train")
stream = datasets.load_dataset(name, split="train", streaming=True)
texts_stream = datasets.load_dataset(name, "texts", split="train", streaming=True)
ours = hf_vlr.load_dataset(name, "texts", split="train")
print(json.dumps({
    "rows": {split: len(rows) for split, rows in whole.items()},
    "columns": whole["test"].column_names,
    "names": whole["test"].features["label"].names,
    "pixel": whole["test"][0]["image"].getpixel((0, 0)),
    "texts": texts["text"][:],
    "stream": [[row["label"], row["image"].size] for row in stream],
    "same": ours[:] == texts[:] and list(texts_stream) == list(texts)
    and list(hf_vlr.load_dataset(name, "texts", split="train", streaming=True)) == list(texts),
    "licenses": texts["license"][:],
}))
"""


def load_local_hub() -> ModuleType:
    spec = importlib.util.spec_from_file_location("local_hub", Path(__file__).with_name("local_hub.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LocalHub = load_local_hub().LocalHub


@pytest.fixture
def hub(tmp_path):
    with LocalHub(tmp_path / "hub", {"hf_good": ("ann", "org"), "hf_other": ("bob",)}) as running:
        yield running


def make_manifest(folder: Path, counts: tuple[int, ...] = (6, 4, 2), texts: int = 2) -> Manifest:
    """Training images of three classes, one test image each, and some sentences."""
    entries: dict[str, list[Entry]] = {"train": [], "test": []}
    for split, numbers in (("train", counts), ("test", (1, 1, 1))):
        for label, number in enumerate(numbers):
            for index in range(number):
                file = f"{split}/{MARKS[label]}/{index}.png"
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                color = (40 * label, 10 * index, 90 if split == "train" else 160)
                Image.new("RGB", (40, 30), color).save(folder / file)
                entries[split].append(Entry(folder / file, label, "", file))
    sentences = [TextRow(label, f"Sentence {label}.", "a book", "CC0-1.0") for label in range(texts)]
    return Manifest("toy", NAMES, MARKS, entries, DatasetCardData(license="cc0-1.0"), "# Toy", sentences)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    return build_longtail(make_manifest(folder / "source"), folder / "out", num_proc=1)


def client(hub, home: Path, *command: str, given: str = "", **changes: str) -> subprocess.CompletedProcess:
    """A python process that takes `hub` for the Hub; it must end well."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= hub.environment(home) | changes
    command = [sys.executable, *command]
    return subprocess.run(command, env=environment, input=given, capture_output=True, text=True, timeout=120)


def push(hub, home: Path, *lines: str, **changes: str) -> list[str]:
    done = client(hub, home, "-c", PUSH, given="\n".join(lines), **changes)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def read(hub, home: Path, name: str) -> dict:
    done = client(hub, home, "-c", READ, name)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def uploads(hub) -> int:
    return sum(method == "PUT" for method, _ in hub.requests)


@pytest.mark.slow
def test_both_configs_come_back_and_a_second_push_replaces_the_first(hub, built, tmp_path):
    (url,) = push(hub, tmp_path / "home", f"org/toy {built} - public")
    repo = hub.repos["datasets", "org/toy"]
    assert url == f"{hub.endpoint}/datasets/org/toy/commit/{repo.commits[-1].sha}"
    assert len(repo.commits) == 2  # the Hub's own first one, and ours
    assert sorted(repo.commits[-1].files) == [
        ".gitattributes", "README.md", "build_report.json", "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet", "texts/train-00000-of-00001.parquet",
    ]  # fmt: skip
    assert uploads(hub) == 3
    found = read(hub, tmp_path / "home", "org/toy")
    assert found["rows"] == {"train": 12, "test": 3}
    assert found["columns"] == ["image", "label", "class_name", "shot", "text", "file"]
    assert found["names"] == ["missile (n03773504)", "missile (n04008634)", "kit fox"]
    assert found["pixel"] == [0, 0, 160]
    assert found["texts"] == ["Sentence 0.", "Sentence 1."]
    assert found["stream"] == [[label, [40, 30]] for label in [0] * 6 + [1] * 4 + [2] * 2]
    assert found["same"]
    assert found["licenses"] == ["CC0-1.0"] * 2

    changed = build_longtail(make_manifest(tmp_path / "source", (3, 2, 1), 3), tmp_path / "new", num_proc=1)
    train = changed / "data" / "train-00000-of-00001.parquet"
    rows = pq.read_table(train)
    for index, part in enumerate((rows.slice(0, 4), rows.slice(4))):
        pq.write_table(part, changed / "data" / f"train-{index:05d}-of-00002.parquet")
    train.unlink()
    (changed / "notes.txt").write_text("not for the world")
    push(hub, tmp_path / "home", f"org/toy {changed} - public")
    assert len(repo.commits) == 3
    assert sorted(path for path in repo.commits[-1].files if "train" in path) == [
        "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "texts/train-00000-of-00001.parquet",
    ]  # fmt: skip
    assert "notes.txt" not in repo.commits[-1].files
    assert uploads(hub) == 3 + 3  # the test split has not changed
    again = read(hub, tmp_path / "home", "org/toy")
    assert again["rows"] == {"train": 6, "test": 3}
    assert again["texts"] == [f"Sentence {label}." for label in range(3)]
    assert [label for label, _ in again["stream"]] == [0, 0, 0, 1, 1, 2]


@pytest.mark.slow
def test_a_hub_in_trouble_is_asked_again_and_nothing_is_uploaded_twice(hub, built, tmp_path):
    hub.fail("POST /api/datasets/org/toy/preupload", 503, times=2)
    hub.fail("POST /api/datasets/org/toy/commit", 503, times=4)
    first, second = push(hub, tmp_path / "home", *[f"org/toy {built} - public"] * 2)
    again = "start again later: what is uploaded is not uploaded twice"
    assert first == f"UserError: org/toy: the Hub is in trouble (503); {again}"
    assert second.startswith(f"{hub.endpoint}/datasets/org/toy/commit/")
    assert uploads(hub) == 3
    # two failures, four attempts, and the second push
    assert sum("/preupload/" in path for _, path in hub.requests) == 2 + 4 + 1
    assert len(hub.repos["datasets", "org/toy"].commits) == 2


@pytest.mark.slow
def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(hub, built, tmp_path):
    hub.fail("PUT /objects/", 403)
    said = push(
        hub, tmp_path / "home",
        f"org/toy {built} hf_expired public",
        f"ann/toy {built} hf_other public",
        f"org/toy {built} - public",
        f"org/toy {built} - private",
        f"org/toy {built} hf_other public",
        f"org/mine {built} - private",
        f"org/mine {built} hf_other private",
    )  # fmt: skip
    expired = (
        "the Hub refuses the token, it is wrong or has expired; unset HF_TOKEN, which wins over a login, or mend it"
    )
    forbidden = (
        "this token may not write there; choose a name of your own or your organisation's, or a token that may write"
    )
    assert said[0] == f"UserError: {expired}: hf auth login --force"
    assert said[1] == f"UserError: ann/toy: {forbidden}"
    assert said[2] == f"UserError: org/toy: {forbidden}"  # a single file was refused
    public = "exists and is public; make it private in its settings, or choose another name"
    assert said[3] == f"UserError: org/toy: {public}"
    assert said[4] == f"UserError: org/toy: {forbidden}"
    assert said[5].startswith(f"{hub.endpoint}/datasets/org/mine/commit/")
    assert said[6] == f"UserError: org/mine: {forbidden}"
    assert hub.repos["datasets", "org/mine"].private
    assert len(hub.repos["datasets", "org/toy"].commits) == 1


@pytest.mark.slow
def test_other_refusals(hub, built, tmp_path):
    hub.fail("create", 409, message="a model has this name")
    hub.fail("create", 429)
    hub.fail("validate-yaml", 400, message="license is none we know")
    hub.fail("/commit/", 418, message="I am a teapot")
    said = push(hub, tmp_path / "home", *[f"org/toy {built} - public"] * 4)
    assert said[0] == "UserError: org/toy: this name is taken; choose another"
    assert said[1].startswith("UserError: org/toy: too many requests; start again in some minutes")
    assert said[2].startswith("UserError: org/toy: the Hub refuses the card: Invalid metadata in README.md.")
    assert said[3].startswith("UserError: org/toy: the Hub refuses (418): I am a teapot")


def command_line(*words: str) -> list[str]:
    return ["-m", "hf_vlr", "data", "build", "openclipart-lt", *words]


@pytest.mark.slow
def test_a_build_is_pushed_by_one_command(hub, tmp_path):
    rng = np.random.default_rng(0)
    for subject in ("animals/birds", "tools/saws"):
        folder = tmp_path / "clips" / "png" / subject
        folder.mkdir(parents=True)
        for index in range(8):
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    out, words = str(tmp_path / "out"), ["--source-dir", str(tmp_path / "clips"), "size=16", "num_proc=1"]
    hub.fail("/commit/", 413)
    words = command_line(*words, "--out", out, "--push-to-hub", "org/clips", "--private")
    broken = client(hub, tmp_path / "home", *words)
    assert broken.returncode == 2
    assert broken.stdout.startswith(f"written to {out}\nsplit train  16 images\n")
    assert broken.stderr.splitlines()[-1] == (
        "error: org/clips: the upload is larger than the Hub takes; build it with size=, or in more shards"
    )
    done = client(hub, tmp_path / "home", *words)
    assert done.returncode == 0, done.stderr
    repo = hub.repos["datasets", "org/clips"]
    lines = done.stdout.splitlines()
    assert lines[0] == f"{out} exists already and is pushed as it is; remove it to build anew"
    assert f"pushed: {hub.endpoint}/datasets/org/clips/commit/{repo.commits[-1].sha}" in lines
    assert lines[-1] == 'from the Hub  datasets.load_dataset("org/clips")'
    assert repo.private


@pytest.mark.slow
def test_without_network_nothing_is_built(hub, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    words = command_line("--source-dir", str(tmp_path), "--out", str(tmp_path / "out"), "--push-to-hub", "org/toy")
    done = client(hub, tmp_path / "home", *words, HF_ENDPOINT=closed)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: cannot reach {closed} (")
    assert done.stderr.endswith("); check the network and start again: what is uploaded is not uploaded twice\n")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def no_token(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)


def test_what_is_no_built_dataset_is_refused_before_the_hub_is_asked(built, tmp_path, no_token):
    with pytest.raises(UserError, match=r"none: no built dataset \(README.md and data/\*.parquet\)"):
        push_dataset(tmp_path / "none", "org/toy")
    paths = build_longtail(make_manifest(tmp_path / "source"), tmp_path / "out", images="paths", num_proc=1)
    with pytest.raises(UserError, match=r"parquet: 3 images are paths on this machine, .*; build .* images=embed$"):
        push_dataset(paths, "org/toy")
    broken = shutil.copytree(built, tmp_path / "broken")
    (broken / "data" / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a readable Parquet file; build the dataset again"):
        push_dataset(broken, "org/toy")
    for name in ("toy", "a/b/c", "org/na me"):
        with pytest.raises(UserError, match="write ORG/NAME"):
            push_dataset(built, name)
    with pytest.raises(UserError, match="no token for the Hub; log in first: hf auth login"):
        push_dataset(built, "org/toy")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE=1 forbids the network; unset it to push"):
        push_dataset(built, "org/toy", token="hf_good")


def test_paths_are_found_with_and_without_statistics(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": b"x", "path": "a"}, {"bytes": None, "path": "/b"}, {"bytes": None, "path": "/c"}]
    table = pa.table({"image": pa.array(images, kind), "bytes": pa.array([None, None, b"x"], pa.binary())})
    for statistics in (True, False):
        pq.write_table(table, tmp_path / "one.parquet", write_statistics=statistics, row_group_size=2)
        assert images_without_bytes(tmp_path / "one.parquet") == 2
        pq.write_table(table.slice(0, 1), tmp_path / "one.parquet", write_statistics=statistics)
        assert images_without_bytes(tmp_path / "one.parquet") == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["openclipart-lt", "--strict"], "openclipart-lt has no option 'strict'; there are: size, "),
        (["cifar-lt", "--source-dir", ".", "--texts", "templates"], "cifar-lt has no option 'texts'; there are: "),
        (["cifar-lt", "--private"], "--private is for --push-to-hub ORG/NAME"),
        (
            ["cifar-lt", "--push-to-hub", "org/toy", "images=paths"],
            "images=paths makes a dataset for this machine alone",
        ),
        (["cifar-lt", "--push-to-hub", "org/toy"], "no token for the Hub; log in first: hf auth login"),
    ],
)
def test_the_command_line_refuses_before_it_builds(words, said, tmp_path, capsys, no_token):
    with pytest.raises(SystemExit) as caught:
        main(["data", "build", *words, "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert not (tmp_path / "out").exists()


def test_after_a_build_one_reads_what_was_found_and_what_to_do_next(built):
    report = built / "build_report.json"
    assert summary(built) == [
        ("split train", "12 images"),
        ("split test", "3 images"),
        ("class texts", "2 sentences"),
        ("found", "class name that repeats: 1: missile (2 classes)"),
        ("every case", str(report)),
    ]
    lines = dict(next_steps("data/toy", "org/toy"))
    assert lines["train"] == "hf-vlr train RECIPE --data data/toy"
    assert lines["from the Hub"] == 'datasets.load_dataset("org/toy")'
