"""The environment of every test, set before anything is imported: no network, one thread, own caches."""

import importlib.util
import os
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

_CACHE = tempfile.TemporaryDirectory(prefix="hf_vlr-tests-")

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HOME": _CACHE.name,
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "COLUMNS": "110",
}
os.environ.pop("HF_VLR_DEBUG", None)


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Builders of tiny models, processors and inputs (`tests/tiny.py`), loaded when a test first asks for them."""
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
