"""The card and the files of a push: each statement comes from the run, none from this machine."""

import importlib.util
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from safetensors.torch import load_file, save_file

from hf_vlr import VLLTRForImageClassification, VLLTRModel, __version__
from hf_vlr.cli.push import command
from hf_vlr.errors import UserError
from hf_vlr.evaluation.predictions import read_predictions
from hf_vlr.hub import push_run
from hf_vlr.hub.bundle import make_bundle
from hf_vlr.hub.card import render_card
from hf_vlr.hub.doubts import doubts
from hf_vlr.hub.eval_results import eval_result_files
from hf_vlr.hub.run_facts import TextUse, read_run
from hf_vlr.training.recipe import load_recipe

SPEC = importlib.util.spec_from_file_location("hub_runs", Path(__file__).with_name("hub_runs.py"))
runs = sys.modules[SPEC.name] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(runs)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    return runs.make_run(tiny, tmp_path_factory.mktemp("machine") / "run")


@pytest.fixture(scope="module")
def card(run) -> str:
    return make_bundle(read_run(run), "org/fox").read("README.md").decode()


@pytest.fixture
def copy(run, tmp_path) -> Path:
    """The run to spoil, with the times of its files."""
    return shutil.copytree(run, tmp_path / "copy")


def card_of(folder: Path, **options) -> str:
    """The card alone, without the plots that take time."""
    return render_card(read_run(folder), "org/fox", [], **options)


def later(path: Path, seconds: float) -> None:
    found = path.stat().st_mtime + seconds
    os.utime(path, (found, found))


def test_the_files_are_those_of_a_model_and_its_run(run):
    bundle = make_bundle(read_run(run), "org/fox")
    assert set(bundle.files) == {
        "README.md", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json",
        "tokenizer_config.json", "recipe.yaml", "texts.jsonl", "metrics.json", "per_class.csv", "report.html",
        "plots/class_frequency.png", "plots/accuracy_along_the_tail.png", "plots/training_loss.png", "push.json",
        "configuration_unicl.py", "configuration_vlltr.py", "configuration_clip_resnet.py",
        "configuration_embedding.py", "modeling_unicl.py", "modeling_vlltr.py", "modeling_clip_resnet.py",
        "modeling_embedding.py", "towers.py", "contrastive.py",
        "log_sums.py", "recognition.py", "products.py", "backend.py",
        "derivatives.py",
    }  # fmt: skip
    assert json.loads(bundle.read("push.json")) == {"hf_vlr": __version__, "files": list(bundle.files)}
    assert "predictions.npz" in make_bundle(read_run(run), "org/fox", predictions=True).files
    assert bundle.read("model.safetensors") == (run / "model.safetensors").read_bytes()
    again = make_bundle(read_run(run), "org/fox")
    assert all(bundle.read(path) == again.read(path) for path in bundle.files)


def test_no_file_knows_the_machine_it_comes_from(run):
    bundle = make_bundle(read_run(run), "org/fox", predictions=True)
    machine = [str(run.parent), str(Path.home()) + "/", os.getcwd(), "my photos/", "books/"]
    for path in bundle.files:
        content = bundle.read(path)
        assert not [word for word in machine if word.encode() in content], path
    recipe = yaml.safe_load(bundle.read("recipe.yaml"))
    assert recipe["output"] == "run"
    assert recipe["model"]["init"] == "stage1"
    assert recipe["data"]["source"] == "imagefolder:my photos"
    assert recipe["data"]["texts"] == "templates+texts.jsonl"
    protocol = json.loads(bundle.read("metrics.json"))["protocol"]
    assert protocol["pretraining"] == "timm:resnet50 + hf:clip"
    assert "my photos" in bundle.read("report.html").decode()


def test_the_recipe_that_is_pushed_can_be_trained(run, tmp_path):
    bundle = make_bundle(read_run(run), "org/fox")
    (tmp_path / "recipe.yaml").write_bytes(bundle.read("recipe.yaml"))
    recipe, before = load_recipe(tmp_path / "recipe.yaml"), load_recipe(run / "recipe.yaml")
    assert recipe.optim == before.optim
    assert recipe.train == before.train


def test_the_card_says_what_the_run_says(run, card):
    document = json.loads((run / "metrics.json").read_text())
    for name, entry in document["predictors"].items():
        low, high = (100 * bound for bound in entry["intervals"]["accuracy"])
        assert f"| {name} | {100 * entry['accuracy']:.1f} [{low:.1f}, {high:.1f}] |" in card
    for stated in (
        "# fox\n",
        "A recogniser of 5 classes, trained on long-tailed data (my photos).",
        "VL-LTR, stage 2: language-guided recognition (Tian et al., ECCV 2022)",
        "many (1) | medium (2) | few (2)",
        "oltr: many above 100 training images, few below 20, averaged class by class",
        "visual branch 0.2, language branch 0.8",
        "32 × 32 pixels",
        "213 labelled training images in 5 classes, 1 to 120 of a class",
        "Class texts: 4 sentences, 1 to 2 of a class that has any.",
        "| a book | CC-BY-4.0 | 2 |",
        "| templates | CC0-1.0 | 2 |",
        "50 % of the class texts are templates",
        "2 of 5 classes are few-shot (fewer than 20 training images)",
        "6 steps in 90 seconds on CPU, 1 thread, at most 512 MiB of memory, last loss 0.500",
        "| `model.init` | `stage1` |",
        "Whether its pre-training has seen the test images is not known.",
        "[the report](report.html)",
        "the intervals hold for other test images, not for other seeds",
        "installed by `pip install -e .` in a copy of its repository (no index has it):",
    ):
        assert stated in card, stated


def test_parameters_are_counted_part_by_part(run, card):
    model = VLLTRForImageClassification.from_pretrained(run)
    parts = {
        "image tower": model.vlltr.vision_model,
        "text tower": model.vlltr.text_model,
        "recognition head": model.head,
    }
    for name, part in parts.items():
        count = sum(parameter.numel() for parameter in part.parameters())
        assert re.search(rf"\| {name} \| (`\w+`, )?{count:,} parameters \|", card), name
    assert f"| parameters in all | {model.num_parameters():,} |" in card


def test_the_hub_reads_the_metadata(run, card):
    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("hf_vlr", "image-classification", "unknown")
    assert set(data.tags) == {"long-tailed-recognition", "vision-language", "vlltr"}
    assert data.datasets is None
    assert data.model_name == "fox"
    fused = json.loads((run / "metrics.json").read_text())["predictors"]["fused"]
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    assert found["Top-1 accuracy (fused)"] == fused["accuracy"]
    assert found["Top-1 accuracy, few-shot classes (2) (fused)"] == fused["groups"]["few"]["accuracy"]
    assert {(one.dataset_type, one.dataset_split) for one in data.eval_results} == {("my-photos", "test")}


def test_both_papers_are_cited_by_what_the_citation_file_says(card):
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    entries = re.findall(r"@inproceedings\{.*?\n\}", card, re.DOTALL)
    assert len(entries) == len(references) == 2
    for paper, entry in zip(references, entries):
        authors = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"])
        fields = dict(re.findall(r"(\w+) = \{(.*)\}", entry))
        assert fields == {
            "title": paper["title"], "author": authors, "booktitle": paper["collection-title"],
            "year": str(paper["year"]),
        }  # fmt: skip


def test_a_license_is_stated_by_the_publisher_or_unknown(run, card):
    gaps = "Not known: the license of the training images; the license of timm:resnet50 + hf:clip, from whose weights"
    assert "License of these weights: unknown, their publisher has stated none." in card
    assert f"Stated of the images and texts: CC-BY-4.0, CC0-1.0. {gaps} training began." in card
    stated = card_of(run, license="CC-BY-4.0")
    assert ModelCard(stated).data.license == "cc-by-4.0"
    assert (
        f"as their publisher states it: `cc-by-4.0`. Stated of the images and texts: CC-BY-4.0, CC0-1.0. {gaps}"
        in stated
    )


@pytest.mark.parametrize("stated", ["", "my own license", "cc-by: [x", "mit\n", "-"])
def test_a_license_that_is_no_identifier_is_refused(run, stated):
    with pytest.raises(UserError, match="not an identifier; write one such as"):
        push_run(run, "org/fox", dry_run=True, license=stated)


def test_a_card_speaks_of_intervals_only_where_there_are_some(copy):
    document = json.loads((copy / "metrics.json").read_text())
    for entry in document["predictors"].values():
        del entry["intervals"]
    (copy / "metrics.json").write_text(json.dumps(document))
    card = card_of(copy)
    assert "interval" not in card
    assert "One run, seed 0: how far the numbers move with other seeds or images is not known." in card


def test_texts_without_a_license_stay_at_home(tiny, tmp_path):
    run = runs.make_run(tiny, tmp_path / "run", texts=(*runs.TEXTS, (3, "tufted ears", f"{tmp_path}/lynx.txt", "")))
    facts = read_run(run)
    assert facts.texts[-1] == TextUse("lynx.txt", "", 1)
    bundle = make_bundle(facts, "org/fox")
    assert "texts.jsonl" not in bundle.files
    card = bundle.read("README.md").decode()
    assert "They are not in this repository, because not every one of them states a license." in card
    assert "the license of 1 of 5 sentences" in card
    assert "| lynx.txt | not stated | 1 |" in card


def test_the_license_of_a_data_set_stands_in_its_own_card(tiny, tmp_path):
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / "README.md").write_text("---\nlicense: cc-by-sa-3.0\n---\n# Built\n")
    run = runs.make_run(tiny, tmp_path / "run", f"data.source={tmp_path}/built")
    card = card_of(run)
    assert "Training images: built, license cc-by-sa-3.0." in card
    assert "license of the training images" not in card


def test_results_go_to_the_leaderboard_of_a_data_set_on_the_hub(run, tiny, tmp_path):
    assert eval_result_files(read_run(run)) == {}
    facts = read_run(run, "org/foxes")
    ((path, content),) = eval_result_files(facts).items()
    assert path == ".eval_results/foxes-test.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(content))
    assert (entry.dataset_id, entry.task_id) == ("org/foxes", "default")
    assert entry.value == json.loads((run / "metrics.json").read_text())["predictors"]["fused"]["accuracy"]
    assert "32 px, one view of each image, shot groups oltr" in entry.notes
    data = ModelCard(render_card(facts, "org/fox", [])).data
    assert data.datasets == ["org/foxes"]
    assert {one.dataset_type for one in data.eval_results} == {"org/foxes"}
    named = runs.make_run(tiny, tmp_path / "named", "data.source=org/foxes")
    assert read_run(named).dataset_id == "org/foxes"


def test_of_two_measurements_under_one_protocol_the_later_counts(copy, tiny):
    recipe = load_recipe(copy / "recipe.yaml")
    runs.measure(tiny, copy / "eval" / "test", recipe, training={})
    later(copy / "eval" / "test" / "metrics.json", 5)
    runs.measure(tiny, copy / "eval" / "unseen", recipe, split="unseen")
    runs.measure(tiny, copy / "eval" / "crops", recipe, test_time_augmentation="ten crops, 10 times the cost")
    facts = read_run(copy)
    assert [one.place for one in facts.measurements] == ["eval/test", "eval/crops", "eval/unseen"]
    assert facts.training["seconds"] == 90.0
    bundle = make_bundle(facts, "org/fox")
    assert {"metrics.json", "eval/test/report.html", "eval/unseen/per_class.csv"} <= set(bundle.files)
    card = bundle.read("README.md").decode()
    assert "ten crops, 10 times the cost" in card
    assert "classes that were not trained on has not been measured" not in card


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: (run / "metrics.json").unlink(), "Nothing has been measured"),
        (lambda run: later(run / "checkpoints" / "step-00000006.pt", 900), "Training went on after this model"),
        (lambda run: later(run / "model.safetensors", 9000), "they were changed after the run wrote them"),
        (lambda run: later(run / "metrics.json", -9000), "The weights are newer than `metrics.json`"),
        (lambda run: runs.write_lines(run / "log.jsonl", [{"step": 4, "loss": 1.0}]), "the log ends at step 4 of 6"),
        (lambda run: runs.write_lines(run / "log.jsonl", [{"step": 6, "loss": None}]), "not a number"),
        (
            lambda run: (run / "metrics.json").write_text(
                (run / "metrics.json").read_text().replace(f'"hf_vlr": "{__version__}"', '"hf_vlr": "0.0.9"')
            ),
            f"Measured with hf_vlr 0.0.9, published with hf_vlr {__version__}.",
        ),
    ],
)
def test_what_a_reader_should_doubt_stands_at_the_top(copy, spoil, said):
    assert doubts(read_run(copy)) == []
    spoil(copy)
    top = card_of(copy).split("\nA recogniser")[0].split("# fox")[1]
    assert "> **Before you use this model:**" in top
    assert said in top


def test_code_beside_the_weights_is_made_anew(copy):
    (copy / "towers.py").write_text("raise SystemExit('stale')")
    (copy / "recognition.py").unlink()
    config = json.loads((copy / "config.json").read_text())
    expected = config.pop("auto_map")
    (copy / "config.json").write_text(json.dumps(config))
    bundle = make_bundle(read_run(copy), "org/fox")
    assert bundle.read("towers.py") == (ROOT / "modeling" / "towers.py").read_bytes()
    assert "recognition.py" in bundle.files
    assert json.loads(bundle.read("config.json"))["auto_map"] == expected


def test_a_dual_encoder_is_pushed_as_one(tiny, tmp_path):
    run = runs.make_run(tiny, tmp_path / "run", "task=cvlp", "model.init=null", model=tiny.model(VLLTRModel))
    card = card_of(run)
    assert ModelCard(card).data.pipeline_tag == "zero-shot-image-classification"
    assert "VL-LTR, stage 1: class-wise visual-linguistic pre-training" in card
    assert 'pipeline("zero-shot-image-classification", model="org/fox", trust_remote_code=True)' in card
    (run / "tokenizer.json").unlink()
    card = card_of(run)
    assert ModelCard(card).data.pipeline_tag == "image-feature-extraction"
    assert "candidate_labels" not in card


def test_a_baseline_speaks_of_no_language(tiny, tmp_path):
    model = tiny.recogniser(num_anchors=0, text=None)
    run = runs.make_run(tiny, tmp_path / "run", "model.language=false", model=model, texts=())
    (run / "texts.jsonl").unlink()
    card = card_of(run)
    assert "visual-only baseline" in card
    assert "Class texts: none were used." in card
    assert "fusion" not in card.split("## Results")[0]


def test_a_converted_model_keeps_what_its_conversion_said(tiny, tmp_path):
    folder = tmp_path / "converted"
    tiny.processor().save_pretrained(folder)
    tiny.recogniser().save_pretrained(folder)
    record = {"format": "vl-ltr", "sources": ["checkpoint.pth"], "moves": [{"source": "a"}] * 3, "dropped": {"b": ""}}
    (folder / "conversion.json").write_text(json.dumps(record | {"made": [], "interpolated": [["pos", 5, 17]]}))
    rows = [
        "| | |",
        "|---|---|",
        "| source | `checkpoint.pth` |",
        "| SHA-256 | 12ab |",
        f"| note | from {tmp_path}/x |",
    ]
    (folder / "README.md").write_text("\n".join(["# converted", "", *rows, ""]))
    bundle = make_bundle(read_run(folder), "org/fox")
    card = bundle.read("README.md").decode()
    for stated in (
        "> - Nothing has been measured",
        "converted from a VL-LTR checkpoint (Tian et al., ECCV 2022)",
        "3 tensors moved; 1 dropped; `pos` interpolated from 5 to 17 positions",
        "| SHA-256 | 12ab |",
        "| note | from x |",
        "Not known: the license that the converted weights, others' work, came with.",
    ):
        assert stated in card, stated
    assert "conversion.json" in bundle.files
    assert "recipe.yaml" not in bundle.files
    assert "converted" in ModelCard(card).data.tags


def test_names_cannot_break_the_card(tiny, tmp_path):
    names = ["a|b", "**c**", "<script>", "[d](e)", "`f`"]
    model = tiny.recogniser(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    run = runs.make_run(tiny, tmp_path / "run", model=model, texts=((0, "x", "a | b", "<script>|`"),))
    card = card_of(run)
    assert card.count("\\<script>\\|\\`") == 2
    assert "| a \\| b | \\<script>\\|\\` | 1 |" in card
    assert not re.search(r"(?<!\\)<script>", card)


def test_a_dry_run_shows_files_and_card_and_asks_nobody(run, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    command.main([str(run), "org/fox", "--dry-run"], standalone_mode=False)
    out = capsys.readouterr().out
    size = (run / "model.safetensors").stat().st_size
    assert re.search(rf"^model\.safetensors +{size:,} bytes$", out, re.MULTILINE)
    assert "30 files, " in out
    assert "\n# fox\n" in out
    assert "pushed" not in out


def test_folders_that_are_no_run_are_refused(copy, tmp_path):
    def refused(folder: Path, said: str) -> None:
        with pytest.raises(UserError, match=said):
            push_run(folder, "org/fox", dry_run=True)

    refused(tmp_path / "none", "no such folder; name the folder of a run")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"no model \(config.json and model.safetensors\)")
    (copy / "metrics.json").write_text("{}")
    refused(copy, "metrics.json is no metrics file; measure again with hf-vlr eval")
    (copy / "metrics.json").write_text("{")
    refused(copy, "metrics.json is damaged")
    (copy / "metrics.json").unlink()
    weights = load_file(copy / "model.safetensors")
    del weights["head.query.weight"]
    save_file(weights, copy / "model.safetensors")
    refused(copy, "the weights lack 1 tensors such as head.query.weight")
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    refused(copy, "model.safetensors is damaged")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"architectures": ["OtherModel"]}))
    refused(copy, "a OtherModel, no model of this package")
    (copy / "model.safetensors").unlink()
    refused(copy, "the run is not finished and has no model yet; go on with hf-vlr train … --resume")
    for name in ("fox", "a/b/c", "org/f x", ""):
        with pytest.raises(UserError, match="write ORG/NAME"):
            push_run(copy, name, dry_run=True)


def test_predictions_of_a_run_are_what_was_measured(run):
    # the folder that the other tests rely on is one as runs leave them
    assert set(read_predictions(run).scores) == {"fused", "visual", "language"}
