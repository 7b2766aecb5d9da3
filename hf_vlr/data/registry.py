"""Finds a dataset builder by its name, without importing any other."""

from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

from hf_vlr.errors import UserError

BUILDERS = {
    "cifar-lt": "cifar_lt",
    "imagenet-lt": "imagenet_lt",
    "inaturalist2018": "inaturalist2018",
    "openclipart-lt": "openclipart_lt",
    "places-lt": "places_lt",
}


def builder(name: str) -> ModuleType:
    """The module of a dataset: `manifest(source_dir, **options)`, or `build(source_dir, out, **options)`.

    Raises `UserError` for an unknown name.
    """
    if name not in BUILDERS:
        match = get_close_matches(name, BUILDERS, n=1)
        hint = f", did you mean {match[0]!r}" if match else ""
        raise UserError(f"no builder for a dataset {name!r}{hint}; there are: {', '.join(sorted(BUILDERS))}")
    return import_module(f"hf_vlr.datasets_scripts.{BUILDERS[name]}")


def build_dataset(name: str, source_dir: str | Path | None, out: str | Path, **options: Any) -> Path:
    """Build a dataset from its published files into the folder `out` and return it.

    `source_dir=None` takes the builder's usual place, where it has one. Options are those of the builder and, for one
    with a manifest, those of `build_longtail`. The result is read by `datasets.load_dataset(out)` and by
    `load_source(str(out), split)`. Raises `UserError`.
    """
    module = builder(name)
    where = {} if source_dir is None else {"source_dir": source_dir}
    whole = getattr(module, "build", None)
    if whole is not None:
        return whole(out=out, **where, **known(name, options, whole, ("source_dir", "out")))
    from hf_vlr.data.building import build_longtail

    if source_dir is None:
        raise UserError(f"{name} needs --source-dir, the folder of its published files")
    shared = [option for option in signature(build_longtail).parameters if option not in ("manifest", "out")]
    own = {option: value for option, value in options.items() if option not in shared}
    known(name, own, module.manifest, ("source_dir",), shared)
    manifest = module.manifest(source_dir, **own)
    return build_longtail(manifest, out, **{key: value for key, value in options.items() if key in shared})


def known(
    name: str, options: dict[str, Any], function: Any, hidden: tuple[str, ...], shared: list[str] | None = None
) -> dict[str, Any]:
    """`options`, if `function` takes all of them; else `UserError` naming what there is."""
    there = [option for option in signature(function).parameters if option not in hidden] + (shared or [])
    for option in options:
        if option not in there:
            near = get_close_matches(option, there, n=1)
            hint = f", did you mean {near[0]!r}" if near else ""
            raise UserError(f"{name} has no option {option!r}{hint}; there are: {', '.join(there)}")
    return options
