"""From a run to the Hub: a model, the code that loads it and a card written from the run, in one commit."""

from importlib import import_module
from typing import Any

_EXPORTS = {"push_run": "push"}

__all__ = [*sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
