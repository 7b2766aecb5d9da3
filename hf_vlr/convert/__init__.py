"""Foreign checkpoints become models of this package, and back, bit for bit."""

from importlib import import_module
from typing import Any

_EXPORTS = {"convert": "conversion", "restore": "restoration"}

FORMATS = ("vl-ltr", "unicl", "openai-clip", "hf-clip", "open-clip")

__all__ = ["FORMATS", "convert", "restore"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
