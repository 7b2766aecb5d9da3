"""The environment of every test, set before anything is imported: no network, one thread, own caches."""

import os
import tempfile

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
