"""Vision-language recognition on long-tailed data.

Importing this package teaches transformers' Auto classes the model types `unicl` and `vlltr`, without
importing them itself. The names below are loaded when they are first used.
"""

from importlib import import_module
from typing import Any

from hf_vlr.registration import install

__version__ = "0.1.0"

_EXPORTS = {
    "ClassTextCorpus": "data.corpus",
    "ImageSource": "data.source",
    "Recipe": "training.options",
    "UniCLConfig": "modeling",
    "UniCLModel": "modeling",
    "UserError": "errors",
    "VLLTRConfig": "modeling",
    "VLLTRForImageClassification": "modeling",
    "VLLTRModel": "modeling",
    "build_corpus": "data.corpus",
    "evaluate_checkpoint": "evaluate",
    "load_dataset": "data.loading",
    "load_recipe": "training.recipe",
    "load_source": "data.source",
    "train_recipe": "training.run",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__


install()
