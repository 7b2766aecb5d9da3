"""The metric as an `evaluate` module, in the package and as a Space, offline."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from hf_vlr.errors import UserError
from hf_vlr.evaluation.metrics import evaluate_predictions

SPACE = Path(__file__).parent.parent / "spaces" / "long_tail_accuracy"
COUNTS = np.array([300, 150, 101, 100, 60, 20, 19, 10, 5, 1])
RIGHT = {"predictions": [0], "references": [0], "train_counts": [3, 3]}
SCORED = {"top5", "nll", "brier", "ece", "mce"}

needs_evaluate = pytest.mark.skipif(importlib.util.find_spec("evaluate") is None, reason="evaluate is not installed")


def drawn(seed=0, rows=120):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, rows)
    scores = generator.normal(size=(rows, 10)) + 2 * np.eye(10)[labels]
    return scores.astype(np.float32), labels


@pytest.fixture
def metric(tmp_path):
    """Makes the package's metric; its tables stay in memory."""
    from hf_vlr.metrics import LongTailAccuracy

    return lambda: LongTailAccuracy(keep_in_memory=True, cache_dir=str(tmp_path))


@needs_evaluate
def test_class_ids_give_the_numbers_of_the_core(metric):
    scores, labels = drawn()
    found = metric().compute(predictions=scores.argmax(axis=1), references=labels, train_counts=COUNTS, rule="vl-ltr")
    expected = evaluate_predictions(scores.argmax(axis=1), labels, COUNTS, "vl-ltr")
    groups = {f"{name}_accuracy": group["accuracy"] for name, group in expected["groups"].items()}
    assert list(groups) == ["many_accuracy", "medium_accuracy", "few_accuracy", "10-shot_accuracy", "5-shot_accuracy"]
    names = ("macro_f1", "harmonic_mean", "geometric_mean", "worst_class", "worst_tenth")
    means = {name: expected[name] for name in ("accuracy", "balanced_accuracy", *names)}
    assert found == groups | means


@needs_evaluate
def test_scores_give_the_rest(metric):
    scores, labels = drawn()
    found = metric().compute(predictions=scores, references=labels, train_counts=COUNTS)
    expected = evaluate_predictions(scores, labels, COUNTS)
    for name in SCORED | {"accuracy"}:
        assert found[name] == expected[name]
    assert metric().compute(predictions=scores.tolist(), references=labels.tolist(), train_counts=[*COUNTS]) == found


@needs_evaluate
@pytest.mark.parametrize("kind", ["ids", "scores"])
def test_batches_and_single_images_add_up(metric, kind):
    scores, labels = drawn()
    predictions = scores if kind == "scores" else scores.argmax(axis=1)
    module = metric()
    for start in range(0, 119, 50):
        batch = slice(start, min(start + 50, 119))
        module.add_batch(predictions=predictions[batch], references=labels[batch])
    module.add(prediction=predictions[119], reference=labels[119])
    whole = metric().compute(predictions=predictions, references=labels, train_counts=COUNTS)
    assert module.compute(train_counts=COUNTS) == whole
    assert module.compute(predictions=predictions, references=labels, train_counts=COUNTS) == whole


@needs_evaluate
def test_it_combines_with_other_metrics(metric):
    import datasets
    import evaluate

    class Errors(evaluate.Metric):
        def _info(self):
            number = datasets.Value("int64")
            features = datasets.Features({"predictions": number, "references": number})
            return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

        def _compute(self, predictions, references, **_):
            return {"errors": sum(a != b for a, b in zip(predictions, references))}

    scores, labels = drawn()
    predictions = scores.argmax(axis=1)
    both = evaluate.combine([metric(), Errors(keep_in_memory=True)])
    found = both.compute(predictions=predictions, references=labels, train_counts=COUNTS)
    assert found["errors"] == (predictions != labels).sum()
    assert found["accuracy"] == pytest.approx(1 - found["errors"] / 120)


@needs_evaluate
def test_what_was_not_measured_is_left_out_and_what_is_wrong_is_named(metric):
    found = metric().compute(predictions=[0, 0], references=[0, 0], train_counts=[500, 3])
    assert "many_accuracy" in found and not {"few_accuracy", "medium_accuracy"} & found.keys()
    with pytest.raises(UserError, match="train_counts is missing"):
        metric().compute(predictions=[0], references=[0])
    with pytest.raises(UserError, match="predictions must be class ids"):
        metric().compute(predictions=[0.7], references=[0], train_counts=[3, 3])
    with pytest.raises(UserError, match="prediction 2 of image 0"):
        metric().compute(predictions=[2], references=[0], train_counts=[3, 3])
    with pytest.raises(UserError, match="unknown shot rule"):
        metric().compute(predictions=[0], references=[0], train_counts=[3, 3], rule="ours")


@needs_evaluate
@pytest.mark.parametrize("empty", [[], np.zeros(0), np.zeros((0, 3))])
def test_no_images_are_told(metric, empty):
    with pytest.raises(UserError, match="no images: predictions are empty"):
        metric().compute(predictions=empty, references=[], train_counts=[3, 3])
    with pytest.raises(UserError, match="no images: references are empty"):
        metric().compute(predictions=[0], references=empty, train_counts=[3, 3])
    with pytest.raises(UserError, match="no images: predictions are empty"):
        metric().add_batch(predictions=empty, references=[])
    with pytest.raises(UserError, match="no images: give compute"):
        metric().compute(train_counts=[3, 3])


@needs_evaluate
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_scores_of_different_lengths_and_numbers_that_are_none_are_told(metric):
    with pytest.raises(UserError, match=r"predictions must be .* scores for each image"):
        metric().compute(predictions=[[0.1, 0.2], [0.3]], references=[0, 1], train_counts=[3, 3])
    with pytest.raises(UserError, match="predictions must be class ids"):
        metric().compute(predictions=[np.nan], references=[0], train_counts=[3, 3])


def test_without_evaluate_the_extra_is_named_and_the_core_works():
    code = """
import sys
sys.modules["evaluate"] = None
from hf_vlr.evaluation.metrics import evaluate_predictions
assert evaluate_predictions([0, 1], [0, 1], [3, 3])["accuracy"] == 1
try:
    import hf_vlr.metrics
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "hf_vlr[eval]"' in done.stdout
    assert len(done.stdout.splitlines()) == 1


@pytest.fixture
def space(tmp_path, monkeypatch):
    """The Space's module as `evaluate.load` gives it, with caches of its own."""
    import evaluate

    return evaluate.load(str(SPACE), keep_in_memory=True, cache_dir=str(tmp_path), experiment_id=tmp_path.name)


@needs_evaluate
@pytest.mark.parametrize("rule", ["oltr", "vl-ltr", "custom:150,10", "custom:5,5"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_space_gives_the_numbers_of_the_package(space, metric, rule, seed):
    scores, labels = drawn(seed)
    kept = labels != 3
    arguments = {"predictions": scores.argmax(axis=1)[kept], "references": labels[kept]}
    found = space.compute(**arguments, train_counts=COUNTS, rule=rule)
    expected = metric().compute(**arguments, train_counts=COUNTS, rule=rule)
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-12)


@needs_evaluate
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predictions": [0], "references": [0]}, "train_counts is missing"),
        ({"predictions": [2], "references": [0], "train_counts": [3, 3]}, r"class ids in 0\.\.1"),
        ({"predictions": [0], "references": [0.5], "train_counts": [3, 3]}, "references must be a list of whole"),
        ({"predictions": [0], "references": [0], "train_counts": [3, 3], "rule": "ours"}, "unknown rule 'ours'"),
        ({**RIGHT, "rule": "custom:5,10"}, "'custom:5,10' needs 0 <= LO <= HI"),
        ({**RIGHT, "rule": "custom:5,-1"}, "'custom:5,-1' needs 0 <= LO <= HI"),
        ({**RIGHT, "rule": "custom:abc"}, "'custom:abc' needs two integers: custom:HI,LO"),
        ({**RIGHT, "rule": "custom:5"}, "'custom:5' needs two integers"),
        ({**RIGHT, "train_counts": [3, -1]}, "class 1 has a negative train count"),
        ({**RIGHT, "train_counts": []}, "train_counts must be a list of whole numbers, at least one"),
        ({**RIGHT, "train_counts": [3, float("nan")]}, "train_counts must be a list of whole numbers"),
        ({**RIGHT, "predictions": [], "references": []}, "predictions must be class ids in 0..1, at least one"),
    ],
)
def test_the_space_names_what_is_wrong(space, arguments, message):
    with pytest.raises(ValueError, match=message):
        space.compute(**arguments)


def test_the_space_says_what_it_is():
    text = (SPACE / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL).group(1))
    assert {"evaluate", "metric"} <= set(front["tags"])
    assert (front["sdk"], front["app_file"], front["license"]) == ("gradio", "app.py", "mit")
    assert re.fullmatch(r"6\.\d+\.\d+", front["sdk_version"])
    assert len(front["short_description"]) <= 60
    assert (SPACE / front["app_file"]).is_file() and (SPACE / f"{SPACE.name}.py").is_file()
    sources = "".join(path.read_text(encoding="utf-8") for path in SPACE.glob("*.py"))
    imported = set(re.findall(r"^(?:import|from) (\w+)", sources, re.MULTILINE)) - {SPACE.name, "gradio"}
    required = set(re.findall(r"^\w+", (SPACE / "requirements.txt").read_text(), re.MULTILINE))
    # datasets comes with evaluate
    assert imported - {"datasets"} == required


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")
def test_the_app_starts_and_answers(tmp_path):
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    code = "import app; app.demo.launch(server_name='127.0.0.1', prevent_thread_lock=True); input()"
    settings = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    app = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=SPACE,
        env=os.environ | settings | {"PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = next(found[0] for line in app.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        client = Client(address, verbose=False)
        answer = client.predict("0, 0, 1, 1, 2, 0", "0 0 1 1 2 2", "500, 60, 4", "oltr", api_name="/measure")
        numbers = dict(answer["data"])
        assert (numbers["accuracy"], numbers["few accuracy"]) == ("83.3", "50.0")
        with pytest.raises(AppError, match="class ids"):
            client.predict("7", "0", "500, 60, 4", "oltr", api_name="/measure")
        with pytest.raises(AppError, match="write whole numbers"):
            client.predict("cat", "0", "500, 60, 4", "oltr", api_name="/measure")
        with pytest.raises(AppError, match="custom:HI,LO"):
            client.predict("0", "0", "500, 60, 4", "custom:abc", api_name="/measure")
    finally:
        app.communicate("\n", timeout=60)
    assert app.returncode == 0
