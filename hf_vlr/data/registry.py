"""Finds a dataset builder by its name, without importing any other."""

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from hf_vlr.errors import UserError

BUILDERS = {"openclipart-lt": "openclipart_lt"}


def builder(name: str) -> Callable[..., Path]:
    """The function `build(source_dir, out, **options)` of a dataset; `UserError` for an unknown name."""
    if name not in BUILDERS:
        match = get_close_matches(name, BUILDERS, n=1)
        hint = f", did you mean {match[0]!r}" if match else ""
        raise UserError(f"no builder for a dataset {name!r}{hint}; there are: {', '.join(sorted(BUILDERS))}")
    return import_module(f"hf_vlr.datasets_scripts.{BUILDERS[name]}").build


def build_dataset(name: str, source_dir: str | Path | None, out: str | Path, **options: Any) -> Path:
    """Build a dataset from its published files into the folder `out` and return it.

    `source_dir=None` takes the builder's usual place. The result is read by `load_source(str(out), split)`.
    """
    build = builder(name)
    known = [option for option in signature(build).parameters if option not in ("source_dir", "out")]
    for option in options:
        if option not in known:
            raise UserError(f"{name} has no option {option!r}; there are: {', '.join(known)}")
    where = {} if source_dir is None else {"source_dir": source_dir}
    return build(out=out, **where, **options)
