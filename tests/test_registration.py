"""transformers knows our models whatever is imported first, and `import hf_vlr` stays light."""

import subprocess
import sys
import time

import pytest

import hf_vlr

CHECK = """
import sys
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from transformers import AutoModelForZeroShotImageClassification, AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
for name, model, classifier in [
    ("unicl", "UniCLModel", None), ("vlltr", "VLLTRModel", "VLLTRForImageClassification")
]:
    config = type(AutoConfig.for_model(name))
    assert config.model_type == name
    assert AutoModel._model_mapping[config].__name__ == model
    assert AutoModelForZeroShotImageClassification._model_mapping[config].__name__ == model
    assert (config in AutoModelForImageClassification._model_mapping) == (classifier is not None)
    if classifier:
        assert AutoModelForImageClassification._model_mapping[config].__name__ == classifier
    assert PROCESSOR_MAPPING[config].__name__ == "CLIPProcessor"
assert not any(type(finder).__name__ == "_Watcher" for finder in sys.meta_path)
print("registered")
"""


def python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    "imports",
    [
        "import hf_vlr\nfrom transformers import AutoModel",
        "from transformers import AutoModel\nimport hf_vlr",
        # Our own file imports the Auto classes in the middle of its own import.
        "import hf_vlr.modeling.configuration_unicl",
    ],
    ids=["ours-first", "transformers-first", "our-model-files-first"],
)
def test_registered_in_any_order(imports):
    assert python(imports + CHECK).strip() == "registered"


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import hf_vlr, transformers\nfrom transformers import pipeline",
        "import transformers, hf_vlr\nimport transformers.models.clip.modeling_clip",
        "import hf_vlr.modeling.modeling_vlltr",
        "from hf_vlr import VLLTRModel",
    ],
)
def test_registered_when_the_auto_classes_are_imported_on_the_way(imports):
    assert python(imports + CHECK).strip() == "registered"


def test_importing_us_loads_neither_torch_nor_transformers_nor_the_models():
    script = """
import sys, hf_vlr
first = set(sys.modules)
import transformers
print([name for name in ("torch", "transformers", "numpy", "hf_vlr.modeling") if name in first])
print([name for name in ("torch", "hf_vlr.modeling") if name in sys.modules])
"""
    assert python(script).split("\n")[:2] == ["[]", "[]"]


@pytest.mark.slow
def test_a_failing_registration_is_reported_and_tried_again():
    script = """
import sys, hf_vlr
sys.modules["hf_vlr.modeling"] = None
for attempt in range(2):
    try:
        import transformers.models.auto.configuration_auto
    except ImportError as error:
        print("failed", "hf_vlr.modeling" in str(error))
del sys.modules["hf_vlr.modeling"]
from transformers import AutoConfig
print(AutoConfig.for_model("vlltr").model_type)
"""
    assert python(script).split() == ["failed", "True", "failed", "True", "vlltr"]


def test_import_takes_under_300_ms():
    script = "import time; start = time.perf_counter(); import hf_vlr; print(time.perf_counter() - start)"
    assert min(float(python(script)) for _ in range(3)) < 0.3


def test_help_takes_under_a_second():
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "hf_vlr", "--help"], capture_output=True, check=True, timeout=60)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 1.0


def test_every_public_name_is_there():
    for name in hf_vlr.__all__:
        assert getattr(hf_vlr, name) is not None
    assert dir(hf_vlr) == sorted(hf_vlr.__all__)
    with pytest.raises(AttributeError, match="UniCLModle"):
        _ = hf_vlr.UniCLModle
