"""What was pushed is loaded from a Hub by its name: with the package, and in a process that lacks it."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from transformers import pipeline

from hf_vlr import VLLTRForImageClassification, VLLTRModel

LABELS = ["a fox", "a wolf"]
# with the package: everything that a name gives, as JSON; the names are arguments
OWN = """
import json, sys
import hf_vlr, torch
from transformers import AutoModel, AutoModelForImageClassification, AutoProcessor, pipeline

LABELS = ["a fox", "a wolf"]
recogniser, dual = sys.argv[1:]
model = AutoModelForImageClassification.from_pretrained(recogniser)
print(json.dumps({
    "module": type(model).__module__,
    "model": type(model).__name__,
    "encoder": type(AutoModel.from_pretrained(recogniser)).__name__,
    "dual": type(AutoModel.from_pretrained(dual)).__name__,
    "processors": [type(AutoProcessor.from_pretrained(name)).__name__ for name in (recogniser, dual)],
    "weights": float(sum(tensor.double().sum() for tensor in model.state_dict().values())),
    "predict": model.predict("photo.png"),
    "classify": pipeline("image-classification", model=recogniser)("photo.png"),
    "zero_shot": [pipeline("zero-shot-image-classification", model=name)("photo.png", candidate_labels=LABELS)
                  for name in (recogniser, dual)],
}))
"""
STRANGER = """
import json, sys

class NoPackage:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_vlr":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoPackage())
"""
TRUSTING = OWN.replace("import hf_vlr, torch", "import torch").replace("model=name)", "model=name, **trust)")
TRUSTING = re.sub(r"(from_pretrained\(\w+|model=recogniser)\)", r"\1, **trust)", TRUSTING)
TRUSTING = STRANGER + TRUSTING.replace("LABELS = [", 'trust = {"trust_remote_code": True}\nLABELS = [', 1)


def neighbour(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runs, local_hub = neighbour("hub_runs"), neighbour("local_hub")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with local_hub.LocalHub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture(scope="module")
def pushed(hub, tiny, tmp_path_factory) -> Path:
    """A folder with a recogniser, a dual encoder and a picture, both models pushed."""
    folder = tmp_path_factory.mktemp("pushed")
    runs.make_run(tiny, folder / "stage2")
    runs.make_run(tiny, folder / "stage1", "task=cvlp", model=tiny.model(VLLTRModel))
    # code that a push must not take over
    (folder / "stage2" / "towers.py").write_text("raise SystemExit('stale')")
    tiny.picture().save(folder / "photo.png")
    requests = [{"folder": f"{folder}/{name}", "repo_id": f"org/{name}"} for name in ("stage2", "stage1")]
    done = runs.push(hub, folder / "home", *requests)
    assert all("url" in one for one in done), done
    (folder / "stage2" / "towers.py").unlink()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("script", [OWN, TRUSTING], ids=["with the package", "without it"])
def test_a_name_gives_models_processors_and_pipelines(hub, pushed, tmp_path, script):
    out = runs.client(hub, tmp_path / "home", "-c", script, "org/stage2", "org/stage1", cwd=pushed, HF_TOKEN="")
    found = json.loads(out.splitlines()[-1])
    assert found["module"].startswith("hf_vlr." if script is OWN else "transformers_modules.")
    assert (found["model"], found["encoder"], found["dual"]) == (
        "VLLTRForImageClassification", "VLLTRModel", "VLLTRModel"
    )  # fmt: skip
    assert found["processors"] == ["CLIPProcessor", "CLIPProcessor"]
    model = VLLTRForImageClassification.from_pretrained(pushed / "stage2")
    assert found["weights"] == float(sum(tensor.double().sum() for tensor in model.state_dict().values()))
    photo = str(pushed / "photo.png")
    assert found["predict"] == model.predict(photo)
    assert found["classify"] == pipeline("image-classification", model=str(pushed / "stage2"))(photo)
    for name, zero_shot in zip(("stage2", "stage1"), found["zero_shot"]):
        local = pipeline("zero-shot-image-classification", model=str(pushed / name))
        assert zero_shot == local(photo, candidate_labels=LABELS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stage2", "stage1"])
def test_the_code_on_the_card_runs(hub, pushed, tmp_path, name):
    card = hub.read(f"org/{name}", "README.md").decode()
    own, trusting = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(own.strip().splitlines()) <= 6
    assert "hf_vlr" not in trusting
    home = tmp_path / "home"
    said = runs.client(hub, home, "-c", own, cwd=pushed, HF_TOKEN="")
    assert "'label': " in said
    again = runs.client(hub, home, "-c", STRANGER + trusting, cwd=pushed, HF_TOKEN="")
    assert "'label': " in again


@pytest.mark.slow
def test_a_trained_run_goes_the_whole_way(hub, trained, tmp_path):
    """Trained here on a built data set, pushed, loaded: nothing by hand in between."""
    publishing = neighbour("test_publishing")
    built = publishing.build_longtail(
        publishing.make_manifest(tmp_path / "source", texts=3), tmp_path / "built", num_proc=1
    )
    stage1 = trained(built)
    words = ["task=recognition", f"model.init={stage1}", f"output={tmp_path / 'second'}", "model.fusion_weight=0.5"]
    stage2 = trained(built, *words)
    requests = [{"folder": str(folder), "repo_id": f"org/{folder.name}"} for folder in (stage1, stage2)]
    done = runs.push(hub, tmp_path / "home", *requests)
    assert all("url" in one for one in done), done
    for folder in (stage1, stage2):
        files = hub.repos["models", f"org/{folder.name}"].commits[-1].files
        leaks = [path for path in files if str(tmp_path).encode() in hub.read(f"org/{folder.name}", path)]
        assert leaks == []
        card = hub.read(f"org/{folder.name}", "README.md").decode()
        assert "Before you use" not in card
        assert "Training images: built, license cc0-1.0." in card
        assert "| a book | CC0-1.0 | 3 |" in card
    said = runs.client(
        hub, tmp_path / "home", "-c",
        "from transformers import pipeline; import hf_vlr, sys;"
        "print([one['label'] for one in pipeline('image-classification', model='org/second')(sys.argv[1])])",
        str(next((tmp_path / "source" / "test").rglob("*.png"))), HF_TOKEN="",
    )  # fmt: skip
    assert "kit fox" in said
