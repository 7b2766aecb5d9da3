"""The list of datasets that a downstream table goes through: a YAML file, maybe over a packaged one."""

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from hf_vlr.errors import UserError

METRICS = ("accuracy", "mean-per-class", "roc-auc", "11-point-map")


@dataclass
class Entry:
    """One dataset: its source and texts as `data.source` and `data.texts` take them, its metric and number of classes.

    source: None where it is not at hand. classes: checked against the source; None = not checked. options: as
    `data.options`.
    """

    name: str = ""
    source: str | None = None
    texts: str | None = None
    metric: str = "accuracy"
    classes: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Listing:
    """A list file: its entries, and the list that lies under it, entry by entry of one name."""

    base: str | None = None
    datasets: list[Entry] = field(default_factory=list)


def packaged_lists() -> list[str]:
    """Names of the lists that come with the package."""
    entries = files("hf_vlr.protocols").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def read_listing(name_or_path: str, root: str | None = None) -> list[Entry]:
    """The entries of a packaged list or a YAML file; those without a source get `root/NAME` where that is a folder.

    A file's `base` (a packaged name) lies under it: an entry of the same name takes the file's values in place of the
    base's. Raises `UserError` for an unknown list, an unknown key, a metric that there is not, and names that are
    missing, occur twice or cannot name a file.
    """
    merged: dict[str, dict[str, Any]] = {}
    for own in _chain(name_or_path):
        values = own["datasets"]
        names = [entry.get("name") for entry in values]
        if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
            raise UserError(f"list {name_or_path}: every dataset needs a name of its own, a text")
        for name in names:
            _require_file_name(name, name_or_path)
        for entry in values:
            merged[entry["name"]] = merged.get(entry["name"], {}) | entry
    try:
        structure = OmegaConf.merge(OmegaConf.structured(Listing), {"datasets": list(merged.values())})
        entries = OmegaConf.to_object(structure).datasets
    except OmegaConfBaseException as error:
        raise UserError(f"list {name_or_path}: {str(error).splitlines()[0]}") from error
    for entry in entries:
        if entry.metric not in METRICS:
            raise UserError(f"list {name_or_path}: {entry.name} has metric={entry.metric}; use {', '.join(METRICS)}")
        entry.source = entry.source or _in_root(root, entry.name)
    return entries


def _chain(name_or_path: str) -> list[dict[str, Any]]:
    """The base, then the file itself, as they are written."""
    packaged = files("hf_vlr.protocols").joinpath(f"{name_or_path}.yaml")
    path = packaged if name_or_path in packaged_lists() else Path(name_or_path).expanduser()
    if not path.is_file():
        raise UserError(f"unknown list {name_or_path}; name a YAML file or one of {', '.join(packaged_lists())}")
    try:
        values = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")))
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"list {name_or_path} is not YAML: {str(error).splitlines()[0]}") from error
    entries = values.get("datasets") if isinstance(values, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"list {name_or_path} holds no `datasets:`, a list of {{name, source, texts, metric}}")
    base = values.get("base")
    if base is None:
        return [values]
    if base not in packaged_lists():
        raise UserError(
            f"list {name_or_path}: base={base} is no packaged list; there are {', '.join(packaged_lists())}"
        )
    return [*_chain(base), values]


def _require_file_name(name: str, name_or_path: str) -> None:
    """A dataset's name is also that of its file among the results, which must stay in their folder."""
    if name in (".", "..") or any(letter in "/\\:" or not letter.isprintable() for letter in name):
        raise UserError(f"list {name_or_path}: {name!r} is no name of a dataset; leave out / \\ : and ..")


def _in_root(root: str | None, name: str) -> str | None:
    """A dataset in a folder of datasets: Parquet, or folders of images."""
    folder = Path(root).expanduser() / name if root else None
    if folder is None or not folder.is_dir():
        return None
    return str(folder) if any(folder.rglob("*.parquet")) else f"imagefolder:{folder}"
