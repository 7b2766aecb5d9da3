"""Packaged recipes on a miniature: each trains two steps and is measured, stages and re-balancing in their order."""

from functools import cache
from pathlib import Path

import pytest

from hf_vlr import UniCLModel
from hf_vlr.training.recipe import load_recipe, packaged_recipes
from hf_vlr.training.run import run

MINIATURE = [
    "data=shapes-lt",
    "data.options={classes: 8, max_count: 12, imbalance: 4, validation: 4, test: 2, unseen: 2}",
    "data.image_size=32",
    "data.workers=0",
    "train.steps=2",
    "train.batch_size=8",
    "train.mixed_precision=no",
    "train.save_every=0",
    "eval.batch_size=16",
    "eval.splits=[test]",
]
SETTINGS = {name: load_recipe(name) for name in packaged_recipes()}
# full-size towers from scratch take long even for two steps
SMALL = [
    name
    for name in SETTINGS
    if name.startswith(("cifar100-lt-", "vlltr-")) and not name.startswith("vlltr-ablation-no-clip-")
]


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The folder of a recipe's miniature run, after the runs that it starts from."""
    root: Path = tmp_path_factory.mktemp("runs")
    tiny.model(UniCLModel).save_pretrained(root / "clip")
    tiny.processor().save_pretrained(root / "clip")

    @cache
    def finish(name: str) -> Path:
        settings = SETTINGS[name]
        words = [*MINIATURE, f"output={root / name}"] + (["data.texts=shapes"] if settings.model.language else [])
        init = settings.model.init
        if init is not None:
            before = finish(init.removeprefix("runs/")) if init.startswith("runs/") else root / "clip"
            words.append(f"model.init={before}")
        return run(load_recipe(name, words))

    return finish


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_runs(finished, name):
    folder = finished(name)
    assert (folder / "model.safetensors").is_file() and (folder / "metrics.json").is_file()
    assert "base:" not in (folder / "recipe.yaml").read_text()
