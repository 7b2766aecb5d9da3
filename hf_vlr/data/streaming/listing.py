"""Which files a spec means: folders and patterns, on this machine or on the Hub."""

import glob
import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi, HfFileSystem, hf_hub_url
from huggingface_hub.constants import REPO_TYPES_URL_PREFIXES
from huggingface_hub.errors import HTTPError

from hf_vlr.data.places import SPLIT_NAMES
from hf_vlr.data.streaming.files import ShardFile
from hf_vlr.errors import UserError

HUB = "hf://"
SUFFIXES = (".parquet", ".tar")
SPLITS = {**SPLIT_NAMES, "train": "train", "validation": "validation", "test": "test"}
WILD = re.compile(r"[*?\[{]")


def find_shards(pattern: str, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, list[ShardFile]]:
    """The shards of a folder (with all below it) or of a pattern, by split and in the order of their names.

    A split's name stands as a word in the part of the path that the pattern leaves open, or in the file's name
    (`test-0001.tar`, `val/0001.tar`); where none stands it is `train`. Raises `UserError` where nothing is found.
    """
    fixed, shards = _hub_shards(pattern) if pattern.startswith(HUB) else _local_shards(pattern)
    splits: dict[str, list[ShardFile]] = {}
    for shard in sorted(shards, key=lambda shard: shard.name):
        if shard.name.endswith(suffixes):
            splits.setdefault(split_of(shard.name.removeprefix(fixed)), []).append(shard)
    if not splits:
        raise UserError(f"{pattern}: no {' or '.join(suffixes)} file is found there; check the path in data.source")
    return splits


def fixed_part(pattern: str) -> str:
    """The folder above the first wildcard of a pattern, with its last slash; a folder or file keeps only what is
    above its own files."""
    wild = WILD.search(pattern)
    if wild:
        return pattern[: pattern.rfind("/", 0, wild.start()) + 1]
    return pattern[: pattern.rfind("/") + 1] if pattern.endswith(SUFFIXES) else pattern.rstrip("/") + "/"


def split_of(path: str) -> str:
    """The split whose name is the last such word in a path; `train` where there is none."""
    words = re.split(r"[^a-z]+", path.lower())
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), "train")


def named_shards(paths: Iterable[str]) -> list[ShardFile]:
    """Shards by their full paths, local or `hf://…@COMMIT/…`."""
    paths = list(paths)
    if not paths or not paths[0].startswith(HUB):
        return [_local(Path(path)) for path in paths]
    return _described(paths)


def read_text(folder: str, name: str) -> str | None:
    """A small text file that lies in a folder, None where there is none."""
    if not folder.startswith(HUB):
        file = Path(folder).expanduser() / name
        return file.read_text(encoding="utf-8") if file.is_file() else None
    found = _hub_shards(f"{folder.rstrip('/')}/{name}")[1]
    return found[0].read(0, found[0].size).decode() if found else None


def _local_shards(pattern: str) -> tuple[str, list[ShardFile]]:
    """The part of all paths that the pattern gives, and the files."""
    place = Path(pattern).expanduser()
    found = place.rglob("*") if place.is_dir() else map(Path, glob.glob(str(place), recursive=True))
    return fixed_part(str(place)), [_local(path) for path in found if path.is_file()]


def _local(path: Path) -> ShardFile:
    stat = path.stat()
    return ShardFile(str(path), stat.st_size, str(stat.st_mtime_ns))


def _hub_shards(pattern: str) -> tuple[str, list[ShardFile]]:
    """As `_local_shards`, on the Hub, at the commit that its branch has now."""
    hub = HfFileSystem()
    try:
        place = hub.resolve_path(pattern)
        if not hasattr(place, "repo_id"):
            raise UserError(f"{pattern}: only repositories of the Hub can be streamed; name a dataset repository")
        commit = HfApi().repo_info(place.repo_id, repo_type=place.repo_type, revision=place.revision).sha
        root = _root(place.repo_type, place.repo_id)
        inner = f"{root}@{commit}/{place.path_in_repo}".rstrip("/")
        paths = hub.glob(inner) if WILD.search(inner) else hub.find(inner)
        return fixed_part(f"{HUB}{root}/{place.path_in_repo}"), _described([HUB + path for path in paths])
    except (HTTPError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).split("\n")[0] or type(error).__name__
        raise UserError(f"{pattern}: cannot be listed ({reason}); check the name and your access to it") from error


def _root(kind: str, name: str) -> str:
    """A repository as paths name it, without a commit."""
    return REPO_TYPES_URL_PREFIXES.get(kind, "") + name


def _described(paths: list[str]) -> list[ShardFile]:
    """Files on the Hub with what its listing says of their contents."""
    hub = HfFileSystem()
    folders = {path.removeprefix(HUB).rpartition("/")[0] for path in paths}
    known = {about["name"]: about for folder in sorted(folders) for about in hub.ls(folder, detail=True)}
    shards = []
    for path in paths:
        about, place = known[path.removeprefix(HUB)], hub.resolve_path(path)
        url = hf_hub_url(place.repo_id, place.path_in_repo, repo_type=place.repo_type, revision=place.revision)
        stamp = about["lfs"]["sha256"] if about.get("lfs") else about["blob_id"]
        name = f"{HUB}{_root(place.repo_type, place.repo_id)}/{place.path_in_repo}"
        shards.append(ShardFile(name, about["size"], stamp, url))
    return shards
