"""From a manifest to a Parquet dataset of two configs: in shards, by several processes, resumable."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Image, Value
from PIL import Image as Pillow
from tqdm.auto import tqdm

from hf_vlr.data.images import decode_image
from hf_vlr.data.manifest import Entry, Findings, Manifest, inspect
from hf_vlr.data.parquet import ROWS_PER_GROUP, free_folder, write_card, write_texts
from hf_vlr.data.shots import shot_names
from hf_vlr.errors import UserError

IMAGES = ("embed", "paths")
ROWS_PER_SHARD = 2000
PLAN_FILE = "plan.json"
REPORT_FILE = "build_report.json"


@dataclass(frozen=True)
class Shard:
    """Some rows of one split that become one file."""

    file: str
    split: str
    entries: Sequence[Entry]


@dataclass
class Written:
    """What became of a shard: rows in the file, the digests of their images' bytes, and what could not be decoded."""

    file: str
    rows: int = 0
    digests: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def build_longtail(
    manifest: Manifest,
    out: str | Path,
    *,
    images: str = "embed",
    size: int | None = None,
    verify: bool = True,
    num_proc: int = 2,
    strict: bool = False,
) -> Path:
    """Write a dataset that `datasets.load_dataset(out)` reads and streams; returns `out`.

    Config `default`: `image, label, class_name, shot, text, file`, a split for each of the manifest's. `shot` is
    many, medium or few by the training counts (rule `oltr`), in every split. Config `texts`: `label, class_name, text,
    source, license`. Beside them a card and `build_report.json`, which lists every fault that was found.

    images: `embed` stores the files' bytes, `paths` where they lie. size: resize the shorter side to so many pixels
    (JPEG, quality 92). verify: decode every image, so that a broken one is found now. num_proc: processes. strict:
    any fault fails the build; otherwise it is reported and the row left out. An interrupted build goes on where it
    stopped when it is started again, unless a source file has changed. Raises `UserError`.
    """
    folder = free_folder(out)
    if images not in IMAGES:
        raise UserError(f"images={images} is none of {', '.join(IMAGES)}")
    if images == "paths" and size is not None:
        raise UserError("images=paths stores no pictures, so size= has nothing to resize; leave one out")
    manifest, findings = inspect(manifest)
    if strict:
        findings.require_none(manifest.name)
    if not any(manifest.splits.values()):
        raise UserError(f"{manifest.name}: no image of the lists is there; check the source folder")
    beginning = open_beginning(folder, [manifest.fingerprint(), images, size, verify])
    shards = cut_shards(manifest)
    write = partial(
        write_shard, folder=beginning, names=manifest.unique_names(), plain=list(manifest.class_names),
        shots=shot_names(manifest.counts()), images=images, size=size, verify=verify,
    )  # fmt: skip
    written = list(run_shards(write, beginning, shards, num_proc))
    report_pictures(written, shards, findings)
    if strict and (findings.dropped or findings.told):
        shutil.rmtree(beginning)
        findings.require_none(manifest.name)
    write_texts(manifest.texts, manifest.unique_names(), beginning, manifest.class_names)
    finish(manifest, beginning, written, shards, findings)
    beginning.chmod(0o755)
    if folder.exists():
        folder.rmdir()
    beginning.rename(folder)
    return folder


def features(names: list[str]) -> Features:
    """Columns of the config `default`."""
    return Features(
        {
            "image": Image(),
            "label": ClassLabel(names=names),
            "class_name": Value("string"),
            "shot": Value("string"),
            "text": Value("string"),
            "file": Value("string"),
        }
    )


def open_beginning(folder: Path, plan: list[Any]) -> Path:
    """The folder beside `folder` in which shards collect; one of another plan is thrown away."""
    beginning = folder.parent / f".{folder.name}.partial"
    digest = hashlib.blake2b(json.dumps(plan).encode(), digest_size=16).hexdigest()
    plan_file = beginning / PLAN_FILE
    if not plan_file.is_file() or plan_file.read_text(encoding="utf-8") != digest:
        shutil.rmtree(beginning, ignore_errors=True)
        (beginning / "data").mkdir(parents=True)
        (beginning / "done").mkdir()
        plan_file.write_text(digest, encoding="utf-8")
    return beginning


def cut_shards(manifest: Manifest) -> list[Shard]:
    """Every split in shards of about equal size."""
    shards = []
    for split, entries in manifest.splits.items():
        number = max(1, -(-len(entries) // ROWS_PER_SHARD))
        for index, rows in enumerate(np.array_split(np.arange(len(entries)), number)):
            part = [entries[row] for row in rows]
            shards.append(Shard(f"data/{split}-{index:05d}-of-{number:05d}.parquet", split, part))
    return shards


def run_shards(write: Any, folder: Path, shards: list[Shard], num_proc: int) -> Iterator[Written]:
    """Write the shards that are not there yet, with a progress bar; yields all of them in order."""
    total = sum(len(shard.entries) for shard in shards)
    pool = ProcessPoolExecutor(num_proc) if num_proc > 1 else None
    try:
        with tqdm(total=total, desc="images", unit="img") as bar:
            for shard, written in zip(shards, (pool.map if pool else map)(write, shards)):
                bar.update(len(shard.entries))
                yield written
    except BrokenProcessPool as error:
        raise UserError("a process ran out of memory; lower num_proc, then start again: it goes on") from error
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def write_shard(
    shard: Shard,
    *,
    folder: Path,
    names: list[str],
    plain: list[str],
    shots: list[str],
    images: str,
    size: int | None,
    verify: bool,
) -> Written:
    """One shard's file; a shard that an earlier run has finished is only looked up."""
    done = folder / "done" / f"{Path(shard.file).stem}.json"
    if done.is_file():
        return Written(**json.loads(done.read_text(encoding="utf-8")))
    written = Written(shard.file)
    schema = features(names).arrow_schema
    part = folder / f"{shard.file}.part"
    with pq.ParquetWriter(part, schema) as writer:
        for start in range(0, len(shard.entries), ROWS_PER_GROUP):
            rows = []
            for entry in shard.entries[start : start + ROWS_PER_GROUP]:
                try:
                    encoded = encode(entry, size, verify)
                except UserError as error:
                    written.broken.append(f"{shard.split} {entry.file}: {error}")
                    continue
                written.digests.append(hashlib.blake2b(encoded, digest_size=12).hexdigest())
                written.files.append(entry.file)
                rows.append(row_of(entry, encoded, plain, shots, images))
            written.rows += len(rows)
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    part.rename(folder / shard.file)
    done.write_text(json.dumps(asdict(written)), encoding="utf-8")
    return written


def row_of(entry: Entry, encoded: bytes, plain: list[str], shots: list[str], images: str) -> dict[str, Any]:
    """A row of the config `default`."""
    stored = {"bytes": encoded, "path": Path(entry.file).name or None}
    if images == "paths" and isinstance(entry.image, Path):
        stored = {"bytes": None, "path": str(entry.image.resolve())}
    name = plain[entry.label]
    return {
        "image": stored,
        "label": entry.label,
        "class_name": name,
        "shot": shots[entry.label],
        "text": entry.text or f"a photo of a {name}.",
        "file": entry.file,
    }


def encode(entry: Entry, size: int | None, verify: bool) -> bytes:
    """The bytes of an image file as it is or resized; pixels become PNG. Raises `UserError` for a broken image."""
    buffer = BytesIO()
    if isinstance(entry.image, np.ndarray):
        Pillow.fromarray(entry.image).save(buffer, "PNG")
        return buffer.getvalue()
    try:
        data = entry.image.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})") from error
    if not verify and size is None:
        return data
    picture = decode_image(data, Path(entry.file).name)
    if size is None or min(picture.size) <= size:
        return data
    scale = size / min(picture.size)
    picture = picture.resize([max(size, round(side * scale)) for side in picture.size], Pillow.Resampling.BICUBIC)
    picture.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def report_pictures(written: Sequence[Written], shards: Sequence[Shard], findings: Findings) -> None:
    """Note broken images, and equal bytes in two splits."""
    split_of: dict[str, tuple[str, str]] = {}
    for shard, one in zip(shards, written):
        for case in one.broken:
            findings.drop("image that cannot be decoded", case)
        for digest, file in zip(one.digests, one.files):
            split, first = split_of.setdefault(digest, (shard.split, file))
            if split != shard.split:
                findings.tell("same picture in two splits", f"{split} {first} = {shard.split} {file}")


def finish(
    manifest: Manifest, folder: Path, written: Sequence[Written], shards: Sequence[Shard], findings: Findings
) -> None:
    """Report and card, and no more traces of the shards' making."""
    rows: dict[str, int] = {}
    for shard, one in zip(shards, written):
        rows[shard.split] = rows.get(shard.split, 0) + one.rows
    report = {"name": manifest.name, "rows": rows, "dropped": findings.dropped, "told": findings.told}
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    counts = manifest.counts()
    shots = shot_names(counts)
    groups = ", ".join(f"{shots.count(name)} {name}" for name in ("many", "medium", "few"))
    lines = [
        manifest.about,
        "## Statistics",
        "| split | images |\n|---|---:|\n" + "\n".join(f"| {split} | {number:,} |" for split, number in rows.items()),
        f"{len(counts):,} classes of {counts.max():,} … {counts.min():,} training images ({groups}; more than 100, "
        f"20 to 100, fewer than 20). {len(manifest.texts):,} class texts.",
        "## Found while building",
        "\n".join(f"- {line}" for line in findings.lines()) or "Nothing.",
    ]
    write_card(folder, manifest.card, features(manifest.unique_names()), list(rows), "\n\n".join(lines))
    shutil.rmtree(folder / "done")
    (folder / PLAN_FILE).unlink()
