"""What predictors said of a test set, as arrays: the one thing that metrics, reports and post-hoc tools read."""

import json
import os
import zipfile
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
    """Write the arrays as one `.npz` (without the protocol, which `metrics.json` holds); whole or not at all."""
    path = Path(path)
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
    without predictions and for a file that is none.
    """
    path = Path(folder)
    path = path / PREDICTIONS_FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{folder} holds no {PREDICTIONS_FILE}: name the folder of a run or of an evaluation")
    try:
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise UserError(f"{path} is one array; give it as --logits, with --labels and --train-counts")
        labels, counts = stored["labels"], stored["train_counts"]
        names = stored["class_names"].tolist() if "class_names" in stored else _numbered(len(counts))
        rows = stored.get("rows")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as predictions: {error}") from error
    return Predictions(LazyScores(stored), labels, counts, tuple(names), _protocol(path.parent), rows)


class LazyScores(Mapping[str, npt.NDArray[Any]]):
    """The predictors of an open `.npz`, each read when it is asked for: three of 24,426 x 8,142 are 2.4 GB."""

    def __init__(self, stored: np.lib.npyio.NpzFile) -> None:
        self.stored = stored
        self.names = [name for name in stored.files if name not in RESERVED]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self.names:
            raise KeyError(name)
        return self.stored[name]

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
        return json.loads(path.read_text(encoding="utf-8"))["protocol"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no metrics file: {error}") from error


def _numbered(count: int) -> list[str]:
    return [f"class {index}" for index in range(count)]
