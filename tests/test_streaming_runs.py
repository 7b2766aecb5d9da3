"""Training on streamed sources: the same weights whoever reads, and after an interruption anywhere."""

import importlib.util
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_vlr.data.streaming import images
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import override_recipe
from hf_vlr.training.run import run

SPEC = importlib.util.spec_from_file_location("streaming_data", Path(__file__).with_name("streaming_data.py"))
data = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(data)
TINY = (
    "data.texts=templates",
    "data.image_size=16",
    "data.max_text_length=24",
    "vision=scratch:resnet",
    "model.projection_dim=16",
    "model.num_anchors=4",
    "train.batch_size=12",
    "train.steps=8",
    "train.save_every=3",
)


pytestmark = pytest.mark.slow


class Interrupted(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture(autouse=True)
def small_blocks(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(images, "BLOCK_BYTES", 25_000)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> tuple[str, str]:
    """A streamed Parquet folder, and image-text pairs in streamed tar shards."""
    root = tmp_path_factory.mktemp("sources")
    for part in range(2):
        data.write_parquet(root / "parquet" / f"train-{part}.parquet", range(30 * part, 30 * (part + 1)))
        data.write_tar(root / "pairs" / f"{part}.tar", data.samples(range(30 * part, 30 * (part + 1)), "txt"))
    data.write_parquet(root / "parquet" / "test-0.parquet", range(60, 69))
    return f"stream:{root / 'parquet'}", f"stream:webdataset:{root / 'pairs'}"


def recipe(output: Path, sources: tuple[str, str], *words: str) -> Recipe:
    where = (f"data.source={sources[0]}", f"data.mix=[pairs:{sources[1]}]")
    return override_recipe(Recipe(task="unicl"), [*TINY, *where, *words, f"output={output}"])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def differing(one: Path, other: Path) -> list[str]:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return [key for key in first if not torch.equal(first[key], second[key])]


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache of the whole"))
        patch.setattr(images, "BLOCK_BYTES", 25_000)
        return run(recipe(tmp_path_factory.mktemp("whole") / "run", sources))


def test_worker_counts_change_no_weight(whole, sources, tmp_path):
    assert differing(whole, run(recipe(tmp_path / "run", sources, "data.workers=2"))) == []
    assert json.loads((whole / "metrics.json").read_text())["protocol"]["source"] == sources[0]
    assert np.load(whole / "predictions.npz")["labels"].tolist() == [row % 3 for row in range(60, 69)]


def test_an_interrupted_run_goes_on_to_the_same_weights(whole, sources, tmp_path, monkeypatch):
    read, left = images.StreamedImages._found, iter(range(70))

    def dying(self, index):
        if next(left, None) is None:
            raise Interrupted
        return read(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(images.StreamedImages, "_found", dying)
        with pytest.raises(Interrupted):
            run(recipe(tmp_path / "run", sources))
    assert not (tmp_path / "run" / "config.json").exists()
    # a fresh cache: what was fetched is no part of the state
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "another cache")
    assert differing(whole, run(recipe(tmp_path / "run", sources), resume=True)) == []


def test_cached_states_are_those_of_the_plain_source(sources, tmp_path):
    """With frozen towers the images are read once, in their own order, and the run is that of the plain folder."""
    words = ("data.mix=[]", "model.freeze=vision_model,text_model", "data.cache_views=2")
    plain = (sources[0].removeprefix("stream:"), sources[1])
    runs = [run(recipe(tmp_path / name, one, *words)) for name, one in (("stream", sources), ("plain", plain))]
    assert differing(*runs) == []


def test_folds_of_a_streamed_source(sources, tmp_path):
    folder = run(recipe(tmp_path / "run", sources, "data.mix=[]", "data.folds=3", "data.fold=1", "train.steps=2"))
    assert len(np.load(folder / "predictions.npz")["labels"]) == 20
