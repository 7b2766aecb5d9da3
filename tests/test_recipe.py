"""Recipes: YAML and `key=value` words become a checked `Recipe`, or one line that says what to mend."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hf_vlr.errors import UserError
from hf_vlr.training.options import DataOptions, ModelOptions, Recipe, describe_keys
from hf_vlr.training.recipe import (
    changed_values,
    load_recipe,
    override_recipe,
    packaged_recipes,
    recipe_files,
    recipe_to_yaml,
    spell_value,
)


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path) -> Path:
    return write(tmp_path, "# A first line.\ntask: recognition\noptim:\n  lr: 3e-4\n  lr_scales: {head.query: 2}\n")


def error(recipe: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_those_of_the_dataclasses(tmp_path):
    path = write(tmp_path, "task: cvlp\n")
    assert load_recipe(path) == Recipe(task="cvlp", output="runs/mine")


def test_a_file_with_overrides(recipe):
    words = ["train.steps=7", "model.language=false", "model.fusion_weight=null", "seed=3", "optim.lr=1e-2"]
    got = load_recipe(recipe, words)
    assert (got.train.steps, got.model.language, got.model.fusion_weight, got.seed) == (7, False, None, 3)
    assert got.optim.lr == 0.01
    assert load_recipe(recipe).optim.lr == 3e-4


def test_the_last_word_wins(recipe):
    assert load_recipe(recipe, ["seed=1", "seed=2"]).seed == 2
    assert load_recipe(recipe, ["data.options.a=1", "data.options={}"]).data.options == {}
    assert load_recipe(recipe, ["data.options={a: 1}", "data.options.b=2"]).data.options == {"a": 1, "b": 2}


def test_short_names(recipe):
    got = load_recipe(recipe, ["vision=timm:resnet18", "text=hf:org/name", "data=imagefolder:x", "out=runs/y"])
    assert (got.model.vision, got.model.text) == ("timm:resnet18", "hf:org/name")
    assert (got.data.source, got.output) == ("imagefolder:x", "runs/y")


@pytest.mark.parametrize("text", ["imagefolder:a b: c", "[odd]", "{x}", "12", "yes", "a=b", "# no comment", "'"])
def test_a_text_is_taken_as_it_stands(recipe, text):
    assert load_recipe(recipe, [f"data={text}"]).data.source == text


def test_names_in_a_dictionary_may_hold_dots(recipe):
    got = load_recipe(recipe, ["optim.lr_scales.vlltr.text_model=0.1", "data.options.classes=12"])
    assert got.optim.lr_scales == {"head.query": 2.0, "vlltr.text_model": 0.1}
    assert got.data.options == {"classes": 12}


def test_values_of_a_source_are_numbers_words_or_lists(recipe):
    words = [f"data.options.{word}" for word in ("a=0.5", "b=word", "c=[1, 2]", "d=true", "e=null")]
    assert load_recipe(recipe, words).data.options == {
        "a": 0.5,
        "b": "word",
        "c": [1, 2],
        "d": True,
        "e": None,
    }


@pytest.mark.parametrize("text", ["vision_model,text_model", "[vision_model, text_model]"])
def test_lists(recipe, text):
    assert load_recipe(recipe, [f"model.freeze={text}"]).model.freeze == ["vision_model", "text_model"]
    assert load_recipe(recipe, [f"model.freeze={text}", "model.freeze="]).model.freeze == []


def test_full_precision_may_be_written_bare(tmp_path):
    # YAML 1.1 reads `no` as false.
    path = write(tmp_path, "task: cvlp\ntrain: {mixed_precision: no}\n")
    assert load_recipe(path).train.mixed_precision == "no"


def test_yaml_round_trip(tmp_path, recipe):
    words = ["train.steps=7", "data.options.n=[1, 2]", "data.texts=Straße.csv", "model.fusion_weight=null"]
    first = load_recipe(recipe, words)
    assert load_recipe(write(tmp_path, recipe_to_yaml(first), "again.yaml")) == first


def test_override_recipe_copies_and_checks():
    first = Recipe(task="cvlp", data=DataOptions(options={"a": 1}))
    second = override_recipe(first, ["data.options.b=2", "seed=5"])
    assert second == replace(first, seed=5, data=DataOptions(options={"a": 1, "b": 2}))
    assert (first.seed, first.data.options) == (0, {"a": 1})
    with pytest.raises(UserError, match=r"optim\.lr"):
        override_recipe(first, ["optim.lr=-1"])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model.visoin=x", "unknown key model.visoin; did you mean model.vision?"),
        ("lr=1", "unknown key lr; did you mean optim.lr?"),
        ("batch_size=1", "unknown key batch_size; did you mean train.batch_size or eval.batch_size?"),
        ("train.btach_size=1", "unknown key train.btach_size; did you mean train.batch_size?"),
        ("qqqq=1", "unknown key qqqq; `hf-vlr recipes --keys` lists all keys"),
        ("optim=1", "optim is a section; name one of its keys, such as optim.lr"),
        ("data.options.=1", "unknown key data.options.; did you mean data.options?"),
        ("train.steps", "'train.steps' is not key=value; write for example optim.lr=3e-4"),
        ("=3", "'=3' is not key=value; write for example optim.lr=3e-4"),
        ("train.steps=many", "train.steps=many: expected a whole number or null"),
        ("train.epochs=1.5", "train.epochs=1.5: expected a whole number"),
        ("train.epochs=", "train.epochs=None: expected a whole number"),
        ("optim.lr=fast", "optim.lr=fast: expected a number"),
        ("model.language=perhaps", "model.language=perhaps: expected true or false"),
        ("optim.betas=a,b", "optim.betas=['a', 'b']: expected a list of numbers"),
        ("optim.lr_scales.head=x", "optim.lr_scales.head=x: expected names with numbers"),
        ("data.options=3", "data.options=3: expected names with values"),
        ("optim.lr=0", "optim.lr=0.0 is out of range: it must be above 0"),
        ("optim.lr=nan", "optim.lr=nan is out of range: it must be above 0"),
        ("optim.clip_norm=inf", "optim.clip_norm=inf is out of range: it must be at least 0"),
        (
            "model.fusion_weight=1.5",
            "model.fusion_weight=1.5 is out of range: it must be at least 0 and at most 1",
        ),
        ("optim.lr_scales.head=-1", "optim.lr_scales=-1.0 is out of range: it must be at least 0"),
        (
            "data.sampler=sqr",
            "data.sampler=sqr is not one of instance, class-balanced, sqrt, progressive, under, over, source-balanced; "
            "did you mean sqrt?",
        ),
        ("data.source=", "data.source is empty; "),
        ("data.folds=4", "data.folds=4 needs data.fold, the fold that is tested (0 … 3)"),
        ("train.accumulation=3", "train.batch_size=128 must be a multiple of train.accumulation=3"),
        ("data.cache_views=2", "data.cache_views needs a frozen vision tower: add model.freeze=vision_model"),
        ("optim.betas=0.9", "optim.betas=[0.9] must be two numbers below 1"),
        ("eval.rule=top", "unknown shot rule 'top': "),
        ("optim.lr=${nothing}", "recipe: "),
    ],
)
def test_what_is_wrong_is_named(recipe, word, said):
    assert error(recipe, word).startswith(said)


def test_a_fold_below_the_folds(recipe):
    assert error(recipe, "data.folds=4", "data.fold=4") == "data.fold=4 must be below data.folds=4"
    assert load_recipe(recipe, ["data.folds=4", "data.fold=3"]).data.fold == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\n", "has no task"),
        ("", "has no task"),
        ("task: sing\n", "task=sing is not one of unicl, cvlp, recognition"),
        ("task: cvlp\nmodel: {visoin: x}\n", "unknown key model.visoin; did you mean model.vision?"),
        ("task: cvlp\nmodle: {vision: x}\n", "unknown key modle"),
        ("task: cvlp\ndata: shapes-lt\n", "data holds keys of its own, not a value"),
        ("task: cvlp\noptim: {lr: quick}\n", "optim.lr=quick: expected a number"),
        ("task: cvlp\nseed: 1\nseed: 2\n", "is not YAML: "),
        ("task: [cvlp\n", "is not YAML: "),
        ("- task\n", "a recipe holds keys of its own"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, text, said):
    assert said in error(write(tmp_path, text))


def test_a_recipe_that_is_not_there(tmp_path):
    assert "is a folder" in error(tmp_path)
    assert "does not exist" in error(tmp_path / "gone.yaml")
    assert error(Path("no-such-recipe")).startswith("unknown recipe no-such-recipe; ")
    (tmp_path / "latin.yaml").write_bytes(b"task: \xe9")
    assert "not UTF-8" in error(tmp_path / "latin.yaml")


def test_a_base_lies_under_its_recipe(tmp_path):
    write(tmp_path, "# The base.\ntask: cvlp\noptim: {lr: 0.5, eps: 1e-6}\nmodel: {freeze: [text_model]}\n", "low.yaml")
    write(tmp_path, "base: low.yaml\noptim: {lr: 0.25}\ntrain: {steps: 7}\n", "middle.yaml")
    top = write(tmp_path, "# The top.\nbase: ./middle.yaml\nmodel: {freeze: [logit_scale]}\n", "top.yaml")
    got = load_recipe(top, ["train.steps=9"])
    assert (got.task, got.optim.lr, got.optim.eps, got.train.steps) == ("cvlp", 0.25, 1e-6, 9)
    # a list is replaced, not joined
    assert got.model.freeze == ["logit_scale"]
    assert got.output == "runs/top"
    assert [file.name for file in recipe_files(top)] == ["top", "middle", "low"]
    assert [file.comment for file in recipe_files(top)] == ["The top.", "", "The base."]


def test_a_dictionary_of_a_base_is_replaced(tmp_path):
    write(tmp_path, "task: cvlp\ndata: {options: {a: 1, b: 2}}\n", "low.yaml")
    top = write(tmp_path, "base: low.yaml\ndata: {options: {c: 3}}\n")
    assert load_recipe(top).data.options == {"c": 3}
    assert load_recipe(top, ["data.options.d=4"]).data.options == {"c": 3, "d": 4}
    assert load_recipe(write(tmp_path, "base: low.yaml\n")).data.options == {"a": 1, "b": 2}


def test_a_packaged_recipe_may_be_a_base(tmp_path):
    got = load_recipe(write(tmp_path, "base: shapes-stage1\nseed: 5\n"))
    assert got == replace(load_recipe("shapes-stage1"), seed=5, output="runs/mine")


def test_a_base_is_found_beside_its_recipe(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    write(tmp_path, "task: cvlp\nseed: 4\n", "low.yaml")
    write(tmp_path / "deep", "base: ../low.yaml\n", "middle.yaml")
    write(tmp_path, "base: deep/middle.yaml\n", "top.yaml")
    assert load_recipe(tmp_path / "top.yaml").seed == 4
    monkeypatch.chdir(tmp_path / "deep")
    assert load_recipe("../top.yaml").seed == 4


def test_a_base_s_output_is_its_own(tmp_path):
    low = write(tmp_path, "task: cvlp\noutput: runs/elsewhere\n", "low.yaml")
    assert load_recipe(low).output == "runs/elsewhere"
    assert load_recipe(write(tmp_path, "base: low.yaml\n")).output == "runs/mine"
    assert load_recipe(write(tmp_path, "base: low.yaml\noutput: runs/here\n")).output == "runs/here"


def test_a_written_recipe_has_no_base(tmp_path):
    first = load_recipe(write(tmp_path, "base: shapes-stage2\nseed: 3\n"))
    text = recipe_to_yaml(first)
    assert "base:" not in text
    assert load_recipe(write(tmp_path, text, "again.yaml")) == first


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: mine.yaml\n", "recipe mine: its bases go in a circle (mine → mine); remove one `base:`"),
        ("base: other.yaml\n", "recipe mine: its bases go in a circle (mine → other → mine); remove one `base:`"),
        ("base: gone.yaml\n", "recipe file "),
        ("base: shapes-stag1\n", "unknown recipe shapes-stag1; did you mean shapes-stage1? "),
        ("base: [shapes-stage1]\n", "recipe mine: base=['shapes-stage1'] must be the name of one recipe"),
        ("base: shapes-stage1\ntrian: {steps: 3}\n", "unknown key trian"),
        ("base: shapes-stage1\ntrain: {steps: many}\n", "train.steps=many: expected a whole number or null"),
    ],
)
def test_what_is_wrong_with_a_base_is_named(tmp_path, text, said):
    write(tmp_path, "base: mine.yaml\ntask: cvlp\n", "other.yaml")
    assert error(write(tmp_path, text)).startswith(said)


def test_an_empty_base_is_none(tmp_path):
    assert load_recipe(write(tmp_path, "base:\ntask: cvlp\n")) == Recipe(task="cvlp", output="runs/mine")


def test_what_differs_from_the_defaults(recipe):
    changed = dict(changed_values(load_recipe(recipe, ["data.flip=true", "model.freeze=text_model"])))
    assert changed == {
        "task": "recognition",
        "output": "runs/mine",
        "model.freeze": ["text_model"],
        "optim.lr": 3e-4,
        "optim.lr_scales": {"head.query": 2.0},
    }


def test_a_spelled_value_may_be_written_again(recipe):
    words = ["optim.lr=3e-4", "model.fusion_weight=null", "data.flip=false", "model.freeze=[text_model, logit_scale]"]
    words += ["data.options={a: 1, b: [x, 0.5]}", "optim.betas=[0.8, 0.9]", "data.texts=templates"]
    first = load_recipe(recipe, words)
    again = [f"{key}={spell_value(value)}" for key, value in changed_values(first)]
    assert override_recipe(Recipe(task="cvlp"), again) == first


def test_the_nearest_packaged_recipe_is_named():
    for name in packaged_recipes():
        with pytest.raises(UserError, match=f"did you mean {name}"):
            load_recipe(f"{name}x")


def test_every_key_is_described():
    rows = describe_keys()
    assert len({key for key, *_ in rows}) == len(rows)
    assert all(kind and text for _, kind, _, text in rows)
    defaults = {key: default for key, _, default, _ in rows}
    assert defaults["task"] == "required"
    assert (defaults["train.accumulation"], defaults["data.workers"], defaults["data.flip"]) == (
        "1",
        "0",
        "true",
    )


def test_setting_every_key_to_its_default_changes_nothing(tmp_path):
    path = write(tmp_path, "task: cvlp\n")
    words = [f"{key}={default}" for key, _, default, _ in describe_keys() if default != "required"]
    assert load_recipe(path, words) == Recipe(task="cvlp")


def test_recipes_made_in_python_are_checked_too():
    with pytest.raises(UserError, match=r"model.freeze=vision is not one of .*; did you mean vision_model"):
        Recipe(task="cvlp", model=ModelOptions(freeze=["vision"])).check()


def test_reading_a_recipe_does_not_import_torch():
    script = "import sys, hf_vlr.training.recipe; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
