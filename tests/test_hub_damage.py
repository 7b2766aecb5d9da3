"""A push of damaged files is one line that names the file, whatever it holds."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

from hf_vlr.errors import UserError
from hf_vlr.hub import push_run

SPEC = importlib.util.spec_from_file_location("hub_runs", Path(__file__).with_name("hub_runs.py"))
runs = sys.modules[SPEC.name] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(runs)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    return runs.make_run(tiny, tmp_path_factory.mktemp("machine") / "run")


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return shutil.copytree(run, tmp_path / "copy")


def refused(folder: Path, said: str) -> None:
    with pytest.raises(UserError) as caught:
        push_run(folder, "org/fox", dry_run=True, say=lambda line: None)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


EMPTY, GARBAGE, LIST = b"", b"\xff\xfe{[[[not", b"[1, 2]\n"
SETTINGS = (
    "config.json", "metrics.json", "recipe.yaml", "tokenizer.json", "processor_config.json", "tokenizer_config.json",
)  # fmt: skip
DAMAGES = [
    *((name, content) for name in SETTINGS for content in (EMPTY, GARBAGE, LIST)),
    # no lines are lines too, and any text is a page
    *((name, content) for name in ("texts.jsonl", "log.jsonl") for content in (GARBAGE, LIST)),
    ("per_class.csv", GARBAGE),
    ("report.html", GARBAGE),
]


@pytest.mark.parametrize(("name", "content"), DAMAGES)
def test_a_file_that_holds_something_else_is_named(copy, name, content):
    (copy / name).write_bytes(content)
    refused(copy, f"{name} is damaged (")


def test_a_run_without_a_processor_is_refused(copy):
    (copy / "processor_config.json").unlink()
    refused(copy, "no processor (processor_config.json)")


@pytest.mark.parametrize("content", [{}, {"image_processor": {"image_processor_type": "Nobody"}}])
def test_a_processor_that_does_not_load_is_refused(copy, content):
    (copy / "processor_config.json").write_text(json.dumps(content))
    refused(copy, "processor_config.json is damaged (")


def test_a_tokenizer_without_a_vocabulary_is_refused(copy):
    (copy / "tokenizer.json").write_text("{}")
    refused(copy, "tokenizer.json is damaged (no model of a tokenizer)")


@pytest.mark.parametrize(
    "change",
    [{"accuracy": "high"}, {"accuracy": float("nan")}, {"accuracy": None}, {"groups": None}, {"groups": {"few": 1}},
     {"num_images": "many"}, {"top5": "high"}],
)  # fmt: skip
def test_numbers_that_are_none_are_refused(copy, change):
    document = json.loads((copy / "metrics.json").read_text())
    document["predictors"]["fused"] |= change
    (copy / "metrics.json").write_text(json.dumps(document))
    refused(copy, "metrics.json is no metrics file; measure again with hf-vlr eval")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("log.jsonl", {"step": 6, "loss": "low"}),
        ("log.jsonl", {"step": "six", "loss": 1.0}),
        ("texts.jsonl", {"label": [1], "text": "x", "source": "s", "license": "MIT"}),
        ("texts.jsonl", {"label": 1, "text": "x", "source": ["s"], "license": "MIT"}),
    ],
)
def test_a_line_with_a_value_of_another_kind_is_refused(copy, name, line):
    runs.write_lines(copy / name, [line])
    refused(copy, f"{name} is damaged (")


def test_a_recipe_whose_data_are_no_name_is_refused(copy):
    (copy / "recipe.yaml").write_text("data: {source: [1, 2]}")
    refused(copy, "recipe.yaml is damaged (data.source: [1, 2])")


def test_a_configuration_of_another_model_is_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    refused(copy, "a VLLTRForImageClassification of model_type bert")
