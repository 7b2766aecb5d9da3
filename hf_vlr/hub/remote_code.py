"""The flat modeling files that load a model where this package is not installed."""

from pathlib import Path
from typing import Any

import hf_vlr.modeling


def remote_code(model: str) -> tuple[dict[str, str], dict[str, Path]]:
    """`auto_map` of a model class of this package, and the files that it needs, by their names in the repository.

    The files are this package's own, whatever lies beside the weights. model: the name of the class.
    """
    from transformers.dynamic_module_utils import get_relative_import_files

    kind = getattr(hf_vlr.modeling, model)
    auto_map, folder = dict(kind._auto_map), Path(hf_vlr.modeling.__file__).parent
    files: dict[str, Path] = {}
    for module in sorted({value.partition(".")[0] for value in auto_map.values()}):
        path = folder / f"{module}.py"
        found = [path, *map(Path, get_relative_import_files(path))]
        files |= {one.name: one for one in found}
    return auto_map, dict(sorted(files.items()))


def with_auto_map(config: dict[str, Any], auto_map: dict[str, str]) -> dict[str, Any]:
    """A configuration that names these classes; other entries of its `auto_map` (a tower's, a processor's) stay."""
    before = config.get("auto_map") or {}
    return config | {"auto_map": before | auto_map}
