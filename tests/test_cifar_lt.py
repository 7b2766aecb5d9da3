"""CIFAR-LT from an archive in the real layout, through the registry, to a dataset that trains."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_vlr.data.cifar_layouts import LAYOUTS
from hf_vlr.data.corpus import build_corpus
from hf_vlr.data.loading import cache_key, load_dataset
from hf_vlr.data.longtail import published_cifar_subset
from hf_vlr.data.registry import build_dataset
from hf_vlr.data.source import load_source
from hf_vlr.errors import UserError

PYTHON10, _ = LAYOUTS["cifar10"]
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """CIFAR-10's python archive with 20 training and 2 test images a class."""
    folder = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(0)
    with tarfile.open(folder / PYTHON10.archive, "w:gz") as file:
        for member in PYTHON10.files:
            if member == PYTHON10.meta:
                content = {PYTHON10.key: NAMES}
            else:
                count = 40 if member in PYTHON10.train else 20
                labels = np.arange(count) % 10
                pixels = rng.integers(0, 60, (count, 3072), dtype=np.uint8) + (labels * 19).astype(np.uint8)[:, None]
                content = {"data": pixels, "labels": labels.tolist()}
            data = pickle.dumps(content, protocol=2)
            info = tarfile.TarInfo(f"{PYTHON10.folder}/{member}")
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return folder


def test_the_subset_is_the_published_one(archive, tmp_path):
    options = {"variant": "cifar10", "imbalance_factor": 10}
    out = build_dataset("cifar-lt", archive, tmp_path / "out", num_proc=1, **options)
    whole = datasets.load_dataset(str(out))
    kept = published_cifar_subset(np.arange(200) % 10, 10, "exp")
    assert whole["train"]["file"][:] == [f"train/{row:05d}.png" for row in kept]
    assert whole["train"]["label"][:] == (kept % 10).tolist()
    assert np.bincount(whole["train"]["label"]).tolist() == [20, 15, 11, 9, 7, 5, 4, 3, 2, 2]
    assert (whole["train"].features["label"].names, len(whole["test"])) == (NAMES, 20)
    assert whole["train"][0]["image"].size == (32, 32)
    assert set(whole["train"]["shot"]) == {"medium", "few"}
    report = json.loads((out / "build_report.json").read_text())
    assert report["told"]["total differs from the published one"] == [
        "test 20 instead of 10,000", "train 78 instead of 20,431",
    ]  # fmt: skip
    card = (out / "README.md").read_text()
    assert "imbalance factor 10" in card and "$" not in card
    texts = load_dataset(str(out), "texts", split="train")
    assert set(texts["label"]) == set(range(10))


def test_by_name_it_is_built_once(archive, tmp_path):
    options = {"data_dir": archive, "variant": "cifar10", "imbalance_factor": 10, "num_proc": 1}
    rows = load_dataset("cifar-lt", split="train", cache_dir=tmp_path / "built", **options)
    assert len(rows) == 78
    (folder,) = (tmp_path / "built").iterdir()
    written = (folder / "README.md").stat().st_mtime_ns
    stream = load_dataset("cifar-lt", split="test", streaming=True, cache_dir=tmp_path / "built", **options)
    assert next(iter(stream))["label"] == 0
    assert (folder / "README.md").stat().st_mtime_ns == written
    load_dataset("cifar-lt", "texts", cache_dir=tmp_path / "built", **{**options, "imbalance_factor": 2})
    assert len(list((tmp_path / "built").iterdir())) == 2


def test_it_trains_from_its_parquet(archive, tmp_path, trained):
    out = build_dataset("cifar-lt", archive, tmp_path / "out", variant="cifar10", imbalance_factor=2, num_proc=1)
    folder = trained(out)
    assert json.loads((folder / "metrics.json").read_text())["protocol"]["split"] == "test"
    spoken = [json.loads(line)["text"] for line in (folder / "texts.jsonl").read_text().splitlines()]
    assert sorted(spoken) == sorted(load_dataset(str(out), "texts", split="train")["text"])


def test_own_texts_are_asked_for_where_there_are_none(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "train" / name / "0.png")
    with pytest.raises(UserError, match=r"imagefolder:.* has no class texts of its own; take 'own' out of data\.texts"):
        build_corpus("own", load_source(f"imagefolder:{tmp_path / 'photos'}", "train"))


def test_options_of_the_builder_and_of_the_core_are_one_list(archive, tmp_path):
    with pytest.raises(UserError, match=r"has no option 'imbalance', did you mean 'imbalance_factor'; there are: vari"):
        build_dataset("cifar-lt", archive, tmp_path / "out", imbalance=3)
    with pytest.raises(UserError, match="cifar-lt needs --source-dir"):
        build_dataset("cifar-lt", None, tmp_path / "out")
    with pytest.raises(UserError, match="cifar-lt needs data_dir="):
        load_dataset("cifar-lt")


def test_a_changed_list_makes_another_cache(tmp_path):
    before = cache_key("imagenet-lt", tmp_path, {})
    assert before == cache_key("imagenet-lt", tmp_path, {})
    assert before != cache_key("imagenet-lt", tmp_path, {"size": 64})
    assert before != cache_key("places-lt", tmp_path, {})
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text("a 0\n")
    listed = cache_key("imagenet-lt", tmp_path, {})
    assert listed != before
    (tmp_path / "lists" / "train.txt").write_text("a 0\nb 1\n")
    assert cache_key("imagenet-lt", tmp_path, {}) != listed
    names = tmp_path.parent / "names.csv"
    names.write_text("x")
    first = cache_key("imagenet-lt", tmp_path, {"name_source": str(names)})
    names.write_text("xy")
    assert cache_key("imagenet-lt", tmp_path, {"name_source": str(names)}) != first
