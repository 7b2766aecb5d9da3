"""Shards on a Hub, over HTTP: every row once, few bytes, failures that pass and failures that stay.

A client runs in a process of its own, because huggingface_hub reads its environment when it is imported.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


def neighbour(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


data, local_hub = neighbour("streaming_data"), neighbour("local_hub")
ROWS = 240
# Lines of JSON {source, ranks, workers, options} on stdin become lines of JSON on stdout.
CLIENT = """
import json, sys
import numpy as np
import torch
from torch.utils.data import DataLoader
from hf_vlr.data.batches import EpochBatches, TrainingSet
from hf_vlr.data.source import load_source
from hf_vlr.data.streaming import files, images
from hf_vlr.errors import UserError

images.BLOCK_BYTES, files.WAITS = 25_000, (0.01, 0.01, 0.01)

def as_row(image):
    red, green, _ = image.getpixel((0, 0))
    return torch.tensor(red + 256 * green)

def read(source, ranks, workers, options):
    train = load_source(source, "train", validation_fraction=0, options=options)
    rows = []
    for rank in range(ranks):
        keys = EpochBatches(train.labels, 12, "instance", 0, rank=rank, world_size=ranks, blocks=train.blocks)
        dataset = TrainingSet(train, None, as_row, 0)
        loader = DataLoader(dataset, batch_sampler=keys, collate_fn=list, num_workers=workers)
        rows += [int(it["image"]) for samples in loader for it in samples]
    return {"rows": sorted(rows), "names": train.class_names, "caption": train.captions[1], "name": train.name}

for line in sys.stdin:
    try:
        print(json.dumps(read(**json.loads(line))), flush=True)
    except UserError as error:
        print(json.dumps({"error": str(error)}), flush=True)
"""


class Counted:
    """A Hub with `org/parquet`, `org/tars`, and the bytes that it has sent of shards."""

    def __init__(self, hub, monkeypatch) -> None:
        self.hub, self.sent = hub, 0
        send = local_hub.Handler.send

        def counting(handler, status, body=b"", headers=None):
            # the file of class names is read anew every time
            if handler.command == "GET" and status == 206 and len(body) > 100:
                self.sent += len(body)
            send(handler, status, body, headers)

        monkeypatch.setattr(local_hub.Handler, "send", counting)

    def publish(self, name: str, folder: Path) -> int:
        """The folder as a data set; bytes of its shards."""
        repo = self.hub.repos["datasets", name] = local_hub.Repo("datasets", name, False, None)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        blobs = {
            path.relative_to(folder).as_posix(): self.hub.store(path.read_bytes(), path.suffix == ".parquet")
            for path in paths
        }
        self.hub.append(repo, "all", blobs)
        return sum(path.stat().st_size for path in paths)


class Client:
    """The reading process: asked one question after the other."""

    def __init__(self, hub, home: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= hub.environment(home, token=None)
        self.errors = home / "errors.txt"
        with self.errors.open("w") as errors:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                [sys.executable, "-c", CLIENT], env=environment, stdin=pipe, stdout=pipe, stderr=errors, text=True
            )

    def read(self, source: str, ranks: int = 1, workers: int = 0, **options: object) -> dict:
        question = {"source": source, "ranks": ranks, "workers": workers, "options": options}
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, self.errors.read_text()
        return json.loads(answer)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    for part in range(3):
        rows = range(80 * part, 80 * (part + 1))
        data.write_parquet(root / "parquet" / "data" / f"train-{part:05d}-of-00003.parquet", rows)
        data.write_tar(root / "tars" / "deep" / f"train-{part}.tar", data.samples(rows, "cls", "txt"))
    data.write_tar(root / "tars" / "deep" / "test-0.tar", data.samples([500], "cls", "txt"))
    (root / "tars" / "deep" / "classnames.txt").write_text("\n".join(data.NAMES))
    return root


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with local_hub.LocalHub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    started = Client(hub, tmp_path_factory.mktemp("home"))
    yield started
    started.process.stdin.close()
    started.process.wait(60)


TARS = "stream:webdataset:hf://datasets/org/tars/deep/train-*.tar"
SOURCES = {
    "parquet by name": ("stream:org/parquet", "parquet"),
    "parquet by pattern": ("stream:hf://datasets/org/parquet/data/train-*.parquet", "parquet"),
    "tars": (TARS, "tars"),
    "tars of a folder": ("stream:webdataset:hf://datasets/org/tars@main", "tars"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_every_row_comes_once_and_every_byte_about_once(name, shards, hub, client, tmp_path, monkeypatch):
    source, kind = SOURCES[name]
    counted = Counted(hub, monkeypatch)
    size = counted.publish(f"org/{kind}", shards / kind)
    first = client.read(source, ranks=2, workers=2, cache_dir=str(tmp_path / "cache"))
    assert first.get("error") is None
    assert first["rows"] == list(range(ROWS))
    assert (first["names"], first["caption"]) == (data.NAMES, "a caption of 1")
    # a remote tar is read once for its index
    assert counted.sent <= (1.3 if kind == "parquet" else 2.0) * size
    before = counted.sent
    assert client.read(source, ranks=3, cache_dir=str(tmp_path / "cache"))["rows"] == first["rows"]
    assert counted.sent == before
    if kind == "parquet":
        # labels and texts alone, then the images of a second machine
        assert client.read(source, workers=1, cache_dir=str(tmp_path / "another"))["rows"] == first["rows"]
        assert before < counted.sent <= 2.6 * size


@pytest.mark.slow
def test_failures_that_pass_are_outlived_and_others_named(shards, hub, client, tmp_path, monkeypatch):
    Counted(hub, monkeypatch).publish("org/tars", shards / "tars")
    hub.fail("GET /datasets/org/tars/resolve", 503, times=3)
    assert client.read(TARS, cache_dir=str(tmp_path / "a"))["rows"] == list(range(ROWS))
    hub.fail("GET /datasets/org/tars/resolve", 503, times=100)
    error = client.read(TARS, cache_dir=str(tmp_path / "b"))["error"]
    assert "hf://datasets/org/tars/deep/train-0.tar: bytes 0 to" in error
    assert "could not be read, attempt 4 of 4 (" in error
    assert "503" in error
    hub._failures.clear()
    hub.fail("GET /datasets/org/tars/resolve", 403, times=100)
    error = client.read(TARS, cache_dir=str(tmp_path / "c"))["error"]
    assert "attempt 1 of 4" in error
    hub._failures.clear()
    assert client.read(TARS, cache_dir=str(tmp_path / "c"))["rows"] == list(range(ROWS))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("stream:org/none", "org/none: the dataset could not be loaded"),
        ("stream:hf://datasets/org/none/*.tar", "hf://datasets/org/none/*.tar: cannot be listed ("),
        ("stream:hf://datasets/org/tars/none-*.tar", "no .parquet or .tar file is found there"),
        ("stream:hf://buckets/org/tars/*.tar", "hf://buckets/org/tars/*.tar: "),
    ],
)
def test_what_is_not_on_the_hub_is_named(source, message, shards, hub, client, monkeypatch):
    Counted(hub, monkeypatch).publish("org/tars", shards / "tars")
    assert message in client.read(source)["error"]
