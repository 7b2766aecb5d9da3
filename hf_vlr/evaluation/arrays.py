"""Anybody's scores, labels and training counts, read from files as `Predictions`."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_vlr.errors import UserError
from hf_vlr.evaluation.document import PROTOCOL_FIELDS
from hf_vlr.evaluation.predictions import Predictions, check_predictor, numbered

SUFFIXES = (".npy", ".npz", ".csv", ".txt")
Place = str | os.PathLike[str]


def read_arrays(
    logits: Place, labels: Place, train_counts: Place, class_names: Place | None = None, predictor: str = "logits"
) -> Predictions:
    """Predictions from files: `logits` [N, C] (or predicted classes [N]), `labels` [N], `train_counts` [C].

    `.npy` logits are mapped, not read, so that they may be larger than the memory; nothing is unpickled. Numbers also
    come as `.npz` of one array, `.csv` or `.txt`; `class_names` is a text file with a name a line. Every field of the
    protocol is None, because arrays do not say where they come from. Raises `UserError` for a file that cannot be read,
    for sizes that do not fit each other and for a `predictor` that cannot be called so.
    """
    check_predictor(predictor)
    scores = read_array(logits, "logits")
    known, counts = whole_numbers(labels, "labels"), whole_numbers(train_counts, "train counts")
    names = numbered(len(counts)) if class_names is None else read_names(class_names)
    check_sizes(logits, scores, known, counts, names)
    return Predictions({predictor: scores}, known, counts, tuple(names), dict.fromkeys(PROTOCOL_FIELDS))


def check_sizes(
    place: Place, scores: npt.NDArray[Any], labels: npt.NDArray[Any], counts: npt.NDArray[Any], names: Sequence[str]
) -> None:
    """Raise `UserError` naming the two files whose sizes differ."""
    if scores.ndim not in (1, 2):
        raise UserError(f"{place}: logits are [images, classes] or predicted classes [images], not {scores.shape}")
    if scores.ndim == 1 and scores.dtype.kind not in "iu":
        raise UserError(f"{place}: an array of {scores.dtype} per image is neither logits nor predicted classes")
    if len(scores) != len(labels):
        raise UserError(f"{place} has {len(scores)} images, the labels have {len(labels)}")
    if scores.ndim == 2 and scores.shape[1] != len(counts):
        raise UserError(f"{place} has {scores.shape[1]} classes, the train counts have {len(counts)}")
    if len(names) != len(counts):
        raise UserError(
            f"there are {len(names)} class names and {len(counts)} train counts; give one of each per class"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(counts):
        raise UserError(
            f"labels run from {labels.min()} to {labels.max()}; with {len(counts)} train counts they are "
            f"0 … {len(counts) - 1}"
        )
    if len(counts) and counts.min() < 0:
        raise UserError(f"train counts hold {counts.min()}; a class has 0 or more training images")


def read_array(place: Place, noun: str) -> npt.NDArray[Any]:
    """The numbers in a file, those of a `.npy` mapped read-only; raises `UserError` where there are none."""
    path = Path(place).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{place}: {noun} come as {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{place}: there is no such file of {noun}")
    try:
        if path.suffix.lower() in (".csv", ".txt"):
            return _text_array(path)
        stored = np.load(path, mmap_mode="r" if path.suffix.lower() == ".npy" else None, allow_pickle=False)
        if isinstance(stored, np.lib.npyio.NpzFile):
            with stored:
                stored = _only_array(stored, place, noun)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{place} cannot be read as {noun}: {str(error).splitlines()[0]}") from error
    if stored.dtype.kind not in "iuf":
        raise UserError(f"{place}: {noun} are numbers, not {stored.dtype}")
    return stored


def whole_numbers(place: Place, noun: str) -> npt.NDArray[np.int64]:
    """Whole numbers, one for each row, int64."""
    values = np.asarray(read_array(place, noun)).squeeze()
    values = values[None] if values.ndim == 0 else values
    if values.ndim != 1:
        raise UserError(f"{place}: {noun} are one column of numbers, not {values.shape}")
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.floor(values)).all()):
        raise UserError(f"{place}: {noun} are whole numbers")
    return values.astype(np.int64)


def read_names(place: Place) -> list[str]:
    """The lines of a text file."""
    try:
        return Path(place).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{place} cannot be read as class names, one a line: {error}") from error


def _text_array(path: Path) -> npt.NDArray[Any]:
    """Numbers separated by commas or spaces; a first line of words is a heading."""
    lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    separator = "," if lines and "," in lines[0] else None
    skipped = 1 if lines and not _is_number(lines[0].split(separator)[0]) else 0
    if not lines[skipped:]:
        raise ValueError("it holds no numbers")
    whole = all(cell.strip().lstrip("+-").isdigit() for line in lines[skipped:] for cell in line.split(separator))
    return np.loadtxt(lines[skipped:], delimiter=separator, dtype=np.int64 if whole else np.float64)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _only_array(stored: np.lib.npyio.NpzFile, place: Place, noun: str) -> npt.NDArray[Any]:
    """The one array of an archive, or the one that is called as it should be."""
    name = noun.replace(" ", "_")
    if name in stored.files:
        return stored[name]
    if len(stored.files) == 1:
        return stored[stored.files[0]]
    raise UserError(f"{place} holds {', '.join(stored.files)}; call the {noun} '{name}', or keep them alone in a file")
