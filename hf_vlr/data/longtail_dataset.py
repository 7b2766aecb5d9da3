"""A long-tailed copy of any labelled dataset, as a Parquet folder with a card that says how it was cut."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Features, Image, Value
from huggingface_hub import DatasetCardData

from hf_vlr.data.longtail import assign_sizes, class_sizes, subset_by_sizes
from hf_vlr.data.parquet import free_folder, write_dataset
from hf_vlr.data.shots import SHOT_NAMES, shot_names
from hf_vlr.data.stored import Rows, stored_splits
from hf_vlr.data.streaming.splits import STREAM
from hf_vlr.data.texts.own import has_own_texts, own_rows
from hf_vlr.errors import UserError

COLUMNS = ("image", "label", "text")


@dataclass(frozen=True)
class LongTail:
    """How a dataset is cut; see `class_sizes` and `assign_sizes`.

    largest: images of the largest class, by default as many as the source's largest has. seed: of the choice.
    """

    imbalance_factor: float = 100.0
    type: str = "exp"
    seed: int = 0
    order: str = "size"
    largest: int | None = None
    alpha: float = 6.0

    @classmethod
    def from_mapping(cls, options: dict[str, Any]) -> "LongTail":
        """Options by name; `UserError` for an unknown name or a wrong type."""
        kinds = {
            "imbalance_factor": (int, float),
            "type": (str,),
            "seed": (int,),
            "order": (str,),
            "largest": (int,),
            "alpha": (int, float),
        }
        known = [entry.name for entry in fields(cls)]
        for name, value in options.items():
            if name not in known:
                match = get_close_matches(name, [*known, *COLUMNS], n=1)
                hint = f", did you mean {match[0]!r}" if match else ""
                raise UserError(f"unknown option {name!r}{hint}; there are: {', '.join([*known, *COLUMNS])}")
            if isinstance(value, bool) or not isinstance(value, kinds[name]):
                wanted = "a word" if kinds[name] == (str,) else " or ".join(kind.__name__ for kind in kinds[name])
                raise UserError(f"{name}={value} must be {wanted}")
        return cls(**options)


@dataclass(frozen=True)
class Cut:
    """What was kept of the training split.

    class_names: C names. available, wanted, kept: images per class in the source, by the profile and in the copy, int64
    `[C]`. unlabelled: training rows without a class, which were left out. others: rows of the splits left as they are.
    """

    class_names: list[str]
    available: np.ndarray
    wanted: np.ndarray
    kept: np.ndarray
    unlabelled: int
    others: dict[str, int]

    def short(self) -> list[str]:
        """A line for each class that has fewer images than its size."""
        return [
            f"{name}: {has} instead of {size}"
            for name, has, size in zip(self.class_names, self.kept.tolist(), self.wanted.tolist())
            if has < size
        ]


def make_longtail(
    source: str, out: str | Path, profile: LongTail | None = None, columns: dict[str, str] | None = None
) -> Cut:
    """Write a long-tailed copy of a labelled dataset into the folder `out` and tell what was kept.

    Rows of the split `train` are chosen by class; all other splits stay whole. Image files are taken over byte for
    byte. Columns: `image, label, class_name, shot, text, source_row` and, where the source has one, `group`;
    `shot` is many, medium or few by the new training counts (rule `oltr`), `source_row` the row in the source's
    split. The source's config `texts`, where it has one, goes along. The same source and options give the same files.

    source: `imagefolder:DIR`, a folder of Parquet or `ORG/NAME`. columns: the source's `image`, `label` and `text`
    column, where they are not found by themselves. Raises `UserError`.
    """
    free_folder(out)
    profile = profile or LongTail()
    if source == "shapes-lt":
        raise UserError("shapes-lt is drawn with a tail of its own; set data.options.imbalance where it is used")
    splits = stored_splits(source, columns or {})
    if "train" not in splits:
        raise UserError(f"{source} has no train split to cut; it has: {', '.join(splits)}")
    others = {split: len(rows.labels) for split, rows in splits.items() if split != "train"}
    cut, chosen = _choose(source, splits["train"], profile, others)
    grouped = all(rows.groups is not None for rows in splits.values())
    shots = shot_names(cut.kept)
    kept = {split: np.arange(count) for split, count in others.items()} | {"train": chosen}
    rows = {split: _rows(part, kept[split], shots, grouped) for split, part in splits.items()}
    card = DatasetCardData(
        pretty_name=f"{_public_name(source)}, long-tailed",
        task_categories=["image-classification"],
        tags=["long-tailed"],
    )
    features = _features(splits["train"], grouped)
    place = source.removeprefix(STREAM)
    texts = own_rows(place) if has_own_texts(place) else None
    write_dataset(rows, features, out, card, partial(describe, source, profile, cut), texts)
    return cut


def _choose(source: str, train: Rows, profile: LongTail, others: dict[str, int]) -> tuple[Cut, np.ndarray]:
    """What is kept of the training rows, and which rows these are."""
    labelled = train.labels >= 0
    if not labelled.any():
        raise UserError(f"{source}: no training row has a label; name its column with label=COLUMN")
    classes = len(train.class_names)
    available = np.bincount(train.labels[labelled], minlength=classes).astype(np.int64)
    largest = int(available.max()) if profile.largest is None else profile.largest
    sizes = class_sizes(classes, largest, profile.imbalance_factor, profile.type, profile.alpha)
    wanted = assign_sizes(sizes, available, profile.order)
    kept = np.minimum(available, wanted)
    cut = Cut(train.class_names, available, wanted, kept, int((~labelled).sum()), others)
    return cut, subset_by_sizes(train.labels, wanted, profile.seed)


def describe(source: str, profile: LongTail, cut: Cut) -> str:
    """The card's text: source, profile, counts, and what could not be had."""
    name = _cell(_public_name(source))
    power = f", power {profile.alpha:g}" if profile.type == "pareto" else ""
    shots = shot_names(cut.kept)
    groups = ", ".join(f"{shots.count(group)} {group}" for group in SHOT_NAMES)
    others = [f"The split `{split}` is the source's, {count:,} images." for split, count in cut.others.items()]
    notes = [f"- {line}" for line in map(_cell, cut.short())]
    if cut.unlabelled:
        notes.append(f"- {cut.unlabelled:,} training rows without a class were left out")
    counts = zip(cut.class_names, cut.available.tolist(), cut.wanted.tolist(), cut.kept.tolist())
    ranked = sorted(counts, key=lambda row: -row[3])
    lines = [
        f"# {name}, long-tailed",
        f"{cut.kept.sum():,} of the {cut.available.sum():,} labelled training images of `{name}`, chosen so that the "
        f"classes make a long tail: type `{profile.type}`{power}, imbalance factor {profile.imbalance_factor:g}, "
        f"largest class {cut.wanted.max():,}, classes in the order `{profile.order}`, seed {profile.seed}.",
        f"{len(cut.kept):,} classes of {cut.kept.max():,} … {cut.kept.min():,} training images ({groups}; more than "
        "100, 20 to 100, fewer than 20 images).",
        " ".join(others) or "The source has no other split.",
        "`source_row` is a row's number in the source's split. Images are the source's files, unchanged; their license "
        "is that of the source.",
        "## Classes with fewer images than their size, and what was left out",
        "\n".join(notes) or "None.",
        "## Training images per class",
        "| class | source | size | kept |\n|---|---:|---:|---:|\n"
        + "\n".join(f"| {_cell(name)} | {has} | {size} | {kept} |" for name, has, size, kept in ranked),
    ]
    return "\n\n".join(lines)


def _features(train: Rows, grouped: bool) -> Features:
    strings = {column: Value("string") for column in ("class_name", "shot", "text")}
    features = {"image": Image(), "label": ClassLabel(names=train.class_names), **strings}
    features["source_row"] = Value("int64")
    if grouped:
        features["group"] = Value("int64" if train.groups.dtype.kind in "iu" else "string")
    return Features(features)


def _rows(rows: Rows, chosen: np.ndarray, shots: list[str], grouped: bool) -> Iterator[dict[str, Any]]:
    for row in chosen.tolist():
        label = int(rows.labels[row])
        entry = {"image": rows.images.encoded(row), "text": rows.captions[row] or "", "source_row": row}
        if label >= 0:
            entry |= {"label": label, "class_name": rows.class_names[label], "shot": shots[label]}
        if grouped:
            entry["group"] = rows.groups[row].item()
        yield entry


def _public_name(source: str) -> str:
    """The source without the folders above it, which are nobody's business in a published card."""
    source = source.removeprefix(STREAM)
    kind, _, rest = source.partition(":")
    if kind not in ("imagefolder", "webdataset"):
        rest = source
    path = Path(rest).expanduser()
    if kind == "imagefolder" or path.is_dir():
        return path.resolve().name
    # a pattern of shards
    return source if "://" in rest or not path.is_absolute() else path.name


def _cell(text: str) -> str:
    """A name of the source in one line of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
