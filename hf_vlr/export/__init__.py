"""Models for serving: ONNX of a tower with its folded head, int8, and what one image costs.

Letters: `B` images, `C` classes, `S` side of a picture in pixels, `D` width of the common space.
"""

from importlib import import_module
from typing import Any

_EXPORTS = {"ExportOptions": "options", "export_model": "exporting", "measure": "latency"}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
