"""What was measured of a model: each `metrics.json` of its folder, with the classes of its main predictor."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from hf_vlr.errors import UserError
from hf_vlr.evaluation.main_predictor import main_of

METRICS_FILE, PER_CLASS_FILE, REPORT_FILE = "metrics.json", "per_class.csv", "report.html"
# numbers of a predictor that may be absent
FRACTIONS = ("balanced_accuracy", "top5", "macro_f1", "worst_tenth", "worst_class", "nll", "ece", "tail_to_head")
# what must agree before two measurements are one
SAME = ("split", "source", "resolution", "test_time_augmentation", "texts", "rule")


class ClassRow(NamedTuple):
    """A class as its row of `per_class.csv` has it; accuracy is a fraction, None without test images."""

    name: str
    train_count: int
    shot: str
    test_images: int
    accuracy: float | None


@dataclass(frozen=True)
class Measurement:
    """A `metrics.json` and the classes of its main predictor; `place` is its folder, relative to the model's."""

    place: str
    document: dict[str, Any]
    classes: tuple[ClassRow, ...]

    @property
    def main(self) -> str:
        """The predictor that stands for the model: the fusion of its branches where there is one."""
        return main_of(self.document["predictors"], self.document["protocol"])

    @property
    def entry(self) -> dict[str, Any]:
        """The numbers of that predictor."""
        return self.document["predictors"][self.main]

    @property
    def protocol(self) -> dict[str, Any]:
        return self.document["protocol"]

    def file(self, name: str) -> str:
        """The path of one of its files within the repository."""
        return f"{self.place}/{name}" if self.place else name


def measured(folder: Path) -> list[Path]:
    """The `metrics.json` of the run itself, of its further splits and of later evaluations."""
    patterns = (METRICS_FILE, f"*/{METRICS_FILE}", f"eval/*/{METRICS_FILE}")
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]


def read_measurements(folder: Path, documents: Mapping[Path, Any]) -> tuple[Measurement, ...]:
    """Documents by the folder that they lie in, test splits first; of those under the same conditions the last written.

    Raises `UserError` for a document that is none, and for a damaged table of classes.
    """
    latest: dict[str, tuple[float, Measurement]] = {}
    for where, document in documents.items():
        try:
            check_document(document)
            protocol, written = document["protocol"], (where / METRICS_FILE).stat().st_mtime
            conditions = json.dumps([protocol.get(name) for name in SAME], sort_keys=True)
            place = "" if where == folder else where.relative_to(folder).as_posix()
            classes = _classes(where / PER_CLASS_FILE, main_of(document["predictors"], protocol))
            found = Measurement(place, document, classes)
        except (KeyError, TypeError, AttributeError, StopIteration) as error:
            raise UserError(f"{where / METRICS_FILE} is no metrics file; measure again with hf-vlr eval") from error
        if conditions not in latest or written >= latest[conditions][0]:
            latest[conditions] = written, found
    found = [measurement for _, measurement in latest.values()]
    return tuple(sorted(found, key=lambda one: not str(one.protocol.get("split")).startswith("test")))


def check_document(document: Any) -> None:
    """KeyError, TypeError or AttributeError for a document without the numbers that a card prints."""
    protocol = document["protocol"]
    for name in ("rule", "versions", "training"):
        if not isinstance(protocol.get(name) or {}, dict):
            raise TypeError(name)
    for entry in document["predictors"].values():
        for name in ("num_images", "num_classes"):
            _check_number(entry[name])
        _check_number(entry["accuracy"])
        for name in FRACTIONS:
            _check_number(entry.get(name), optional=True)
        for group in entry["groups"].values():
            _check_number(group["classes"])
            _check_number(group["accuracy"], optional=True)
            _check_number(group.get("images"), optional=True)


def _check_number(value: Any, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        raise TypeError(f"{value!r} is no number")


def _classes(path: Path, predictor: str) -> tuple[ClassRow, ...]:
    if not path.is_file():
        return ()
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["predictor"] == predictor]
        return tuple(
            ClassRow(
                row["class_name"],
                int(row["train_count"]),
                row["shot"],
                int(row["test_images"]),
                float(row["accuracy"]) if row["accuracy"] else None,
            )
            for row in rows
        )
    except (KeyError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({error}); measure again with hf-vlr eval") from error
