"""What predictors said of a test set, as arrays: the one thing that metrics, reports and post-hoc tools read."""

import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_vlr.errors import UserError

PREDICTIONS_FILE = "predictions.npz"
METRICS_FILE = "metrics.json"
# beyond this the time to compress outweighs the bytes it saves
COMPRESSED_BYTES = 2**26
# entries of the file that are no predictor
RESERVED = ("labels", "train_counts", "class_names", "rows")
# parameters of the function that writes the file
UNWRITABLE = (*RESERVED, "file", "allow_pickle")
# what numpy raises on archives that are damaged, cut short, encrypted or made of objects
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Predictions:
    """Scores of N test images by one or several predictors, over C classes.

    scores: by predictor's name ("fused", "visual", "language" …) logits or log-probabilities `[N, C]`, or predicted
        classes, integers `[N]`. Read lazily from a file: an array exists while somebody holds it.
    labels: int64 `[N]`. train_counts: training images per class, int64 `[C]`. class_names: C names.
    protocol: what a reader must know before comparing (`hf_vlr.evaluation.document.PROTOCOL_FIELDS`).
    rows: identities of the test images, `[N]` strings, or None where they are not known; two runs are compared pair
        by pair only where they agree.
    """

    scores: Mapping[str, npt.NDArray[Any]]
    labels: npt.NDArray[np.int64]
    train_counts: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    protocol: Mapping[str, Any] = field(default_factory=dict)
    rows: npt.NDArray[np.str_] | None = None

    @property
    def num_classes(self) -> int:
        return len(self.train_counts)

    def with_scores(self, scores: Mapping[str, npt.NDArray[Any]]) -> "Predictions":
        """The same test set as other predictors saw it."""
        return Predictions(scores, self.labels, self.train_counts, self.class_names, self.protocol, self.rows)


def write_predictions(path: str | os.PathLike[str], predictions: Predictions) -> Path:
    """Write the arrays as one `.npz` (without the protocol, which `metrics.json` holds); whole or not at all.

    Raises `UserError` for a predictor called like one of the file's other entries.
    """
    path = Path(path)
    for name in predictions.scores:
        check_predictor(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        "labels": predictions.labels,
        "train_counts": predictions.train_counts,
        "class_names": np.asarray(predictions.class_names, dtype=np.str_),
        **({} if predictions.rows is None else {"rows": predictions.rows}),
        **predictions.scores,
    }
    small = sum(np.asarray(array).nbytes for array in arrays.values()) <= COMPRESSED_BYTES
    # ends in .npz, which numpy would otherwise append
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        (np.savez_compressed if small else np.savez)(partial, **arrays)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_predictions(folder: str | os.PathLike[str]) -> Predictions:
    """The predictions of a run or an evaluation, from its folder or its `predictions.npz`; nothing is unpickled.

    The protocol comes from `metrics.json` beside it, empty where there is none. Raises `UserError` for a folder
    without predictions, for a file that is none and for entries that do not fit each other; scores, which are read
    when they are asked for, raise it then.
    """
    path = Path(folder)
    path = path / PREDICTIONS_FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{folder} holds no {PREDICTIONS_FILE}: name the folder of a run or of an evaluation")
    try:
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise UserError(f"{path} is one array; give it as --logits, with --labels and --train-counts")
        labels, counts = (_whole(path, name, stored[name]) for name in ("labels", "train_counts"))
        names = stored["class_names"] if "class_names" in stored else np.array(numbered(len(counts)), dtype=np.str_)
        rows = stored.get("rows")
    except UNREADABLE as error:
        if isinstance(error, UserError):
            raise
        raise _unreadable(path, error) from error
    _check_entries(path, labels, counts, names, rows)
    scores = LazyScores(path, stored, (len(labels), len(counts)))
    return Predictions(scores, labels, counts, tuple(names.tolist()), _protocol(path.parent), rows)


def check_predictor(name: str) -> None:
    """Raise `UserError` for a predictor's name that the file has another use for."""
    if name in UNWRITABLE or not name:
        raise UserError(f"a predictor cannot be called '{name}', which {PREDICTIONS_FILE} has another use for")


def numbered(count: int) -> list[str]:
    """Names of classes that have none."""
    return [f"class {index}" for index in range(count)]


class LazyScores(Mapping[str, npt.NDArray[Any]]):
    """The predictors of an open `.npz`, each read when it is asked for: three of 24,426 x 8,142 are 2.4 GB.

    size: (N, C). Reading one raises `UserError` where it is damaged or of another size.
    """

    def __init__(self, path: Path, stored: np.lib.npyio.NpzFile, size: tuple[int, int]) -> None:
        self.path, self.stored, self.size = path, stored, size
        self.names = [name for name in stored.files if name not in RESERVED]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self.names:
            raise KeyError(name)
        try:
            values = self.stored[name]
        except UNREADABLE as error:
            raise _unreadable(self.path, error) from error
        scores = values.shape == self.size and values.dtype.kind in "iuf"
        if not scores and not (values.shape == self.size[:1] and values.dtype.kind in "iu"):
            raise UserError(
                f"{self.path}: predictor '{name}' is {values.dtype} {values.shape}, neither numbers {self.size} nor "
                f"predicted classes {self.size[:1]}"
            )
        return values

    def __contains__(self, name: object) -> bool:
        # a mapping's own would read the array
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _protocol(folder: Path) -> dict[str, Any]:
    path = folder / METRICS_FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["protocol"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no metrics file: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is no metrics file: its protocol is {found!r:.40}")
    return found


def _whole(path: Path, name: str, values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise UserError(f"{path}: {name} are {values.dtype} {values.shape}, not a column of whole numbers")
    return values.astype(np.int64, copy=False)


def _check_entries(
    path: Path,
    labels: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    names: npt.NDArray[Any],
    rows: npt.NDArray[Any] | None,
) -> None:
    """Raise `UserError` where the entries beside the scores do not fit each other."""
    if names.shape != counts.shape or names.dtype.kind != "U":
        raise UserError(f"{path}: class_names are {names.dtype} {names.shape}; there are {len(counts)} classes")
    if rows is not None and (rows.shape != labels.shape or rows.dtype.kind != "U"):
        raise UserError(f"{path}: rows are {rows.dtype} {rows.shape}; there are {len(labels)} images")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(counts):
        raise UserError(f"{path}: labels run from {labels.min()} to {labels.max()}; there are {len(counts)} classes")
    if len(counts) and counts.min() < 0:
        raise UserError(f"{path}: train_counts hold {counts.min()}; a class has 0 or more training images")


def _unreadable(path: Path, error: BaseException) -> UserError:
    said = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"{path} cannot be read as predictions: {said}")
