"""Suites: several runs over folds and seeds, and the table that compares them.

Every row of the data is tested once per seed (over the folds), and every row of the table is one predictor.
Letters: `S` seeds, `N` images over all folds, `C` classes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hf_vlr.data.shots import shot_groups
from hf_vlr.errors import UserError
from hf_vlr.evaluation.bootstrap import paired_bootstrap
from hf_vlr.evaluation.metrics import evaluate_predictions, write_text
from hf_vlr.evaluation.predictions import METRICS_FILE, PREDICTIONS_FILE
from hf_vlr.training.recipe import load_recipe
from hf_vlr.training.run import run
from hf_vlr.training.run_folder import RECIPE_FILE, first_difference


@dataclass
class SuiteRun:
    """One training run: a recipe, `key=value` words over it, and the run whose model it starts from."""

    recipe: str = ""
    set: list[str] = field(default_factory=list)
    init: str | None = None


@dataclass
class Suite:
    """Runs, the rows they are shown in (`name: run/predictor`), and the row all others are compared with."""

    runs: dict[str, SuiteRun] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)
    against: str = ""
    seeds: list[int] = field(default_factory=lambda: [0])
    folds: int | None = None

    def check(self) -> None:
        """Raise `UserError` for a row, a start or a comparison that names nothing."""
        for name, entry in self.runs.items():
            if entry.init is not None and entry.init not in list(self.runs)[: list(self.runs).index(name)]:
                raise UserError(f"suite run {name} starts from {entry.init!r}, which is no run before it")
        for name, place in self.rows.items():
            if place.partition("/")[0] not in self.runs:
                raise UserError(f"suite row {name!r} shows {place!r}; write RUN/PREDICTOR with one of {[*self.runs]}")
        if self.against not in self.rows:
            raise UserError(f"suite compares with {self.against!r}, which is none of its rows")


def load_suite(name_or_path: str, words: Sequence[str] = ()) -> tuple[Suite, list[str]]:
    """A packaged suite or a YAML file; words `suite.seeds=[0]` change it, the others are returned for its recipes."""
    packaged = files("hf_vlr.suites").joinpath(f"{name_or_path}.yaml")
    path = packaged if packaged.is_file() else Path(name_or_path)
    if not path.is_file():
        raise UserError(f"unknown suite {name_or_path}; name a YAML file or one of {', '.join(packaged_suites())}")
    own = [word.removeprefix("suite.") for word in words if word.startswith("suite.")]
    try:
        read = OmegaConf.create(path.read_text(encoding="utf-8"))
        merged = OmegaConf.merge(OmegaConf.structured(Suite), read, OmegaConf.from_dotlist(own))
        suite = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"suite {name_or_path}: {str(error).splitlines()[0]}") from error
    suite.check()
    return suite, [word for word in words if not word.startswith("suite.")]


def packaged_suites() -> list[str]:
    """Names of the suites that come with the package."""
    entries = files("hf_vlr.suites").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def run_suite(name_or_path: str, words: Sequence[str], out: str) -> dict[str, Any]:
    """Train all runs of a suite below `out` (complete ones are kept), write `suite.json`, return its content."""
    suite, words = load_suite(name_or_path, words)
    root = Path(out)
    for seed in suite.seeds:
        for fold in range(suite.folds or 1):
            for name in suite.runs:
                _train(suite, name, seed, fold, root, list(words))
    document = compare(suite, root) | {"words": words}
    write_text(root / "suite.json", json.dumps(document, indent=2) + "\n")
    return document


def place_of(root: Path, name: str, seed: int, fold: int) -> Path:
    """The folder of one run."""
    return root / f"{name}-seed{seed}-fold{fold}"


def _train(suite: Suite, name: str, seed: int, fold: int, root: Path, words: list[str]) -> None:
    entry, folder = suite.runs[name], place_of(root, name, seed, fold)
    # a suite's tables are its report; a page for every fold and seed would take longer than some runs
    own = ["eval.report=false", *words, *entry.set, f"seed={seed}", f"output={folder}"]
    if suite.folds:
        own += [f"data.folds={suite.folds}", f"data.fold={fold}"]
    if entry.init:
        own.append(f"model.init={place_of(root, entry.init, seed, fold)}")
    recipe, begun = load_recipe(entry.recipe, own), (folder / RECIPE_FILE).is_file()
    changed = first_difference(load_recipe(folder / RECIPE_FILE), recipe) if begun else None
    if changed:
        raise UserError(f"{folder} was trained with another {changed}; choose a new folder with --out")
    if not (folder / "config.json").is_file():
        print(f"== {folder.name}")
        run(recipe, resume=begun)


@dataclass(frozen=True)
class Pooled:
    """One predictor over all folds: labels [N], predicted classes [S, N], mean training images per class [C]."""

    labels: np.ndarray
    predictions: np.ndarray
    train_counts: np.ndarray


def pool(suite: Suite, root: Path, place: str) -> Pooled:
    """Collect the predictions of `RUN/PREDICTOR` over folds and seeds.

    A class's group follows its training images averaged over the folds, so that it is in one group throughout.
    """
    name, _, predictor = place.partition("/")
    predictions, labels, counts = [], [], []
    for seed in suite.seeds:
        parts = []
        labels, counts = [], []
        for fold in range(suite.folds or 1):
            path = place_of(root, name, seed, fold) / PREDICTIONS_FILE
            with np.load(path, allow_pickle=False) as stored:
                if predictor not in stored:
                    raise UserError(f"run {name} has no predictor {predictor!r}; there are {', '.join(stored.files)}")
                parts.append(stored[predictor].argmax(axis=1))
                labels.append(stored["labels"])
                counts.append(stored["train_counts"])
        predictions.append(np.concatenate(parts))
    return Pooled(np.concatenate(labels), np.stack(predictions), np.mean(counts, axis=0).round().astype(np.int64))


def compare(suite: Suite, root: Path, rule: str = "oltr") -> dict[str, Any]:
    """Each row's numbers (mean and deviation over seeds) and its paired differences from `suite.against`.

    Differences come with 95 % bootstrap intervals over the tested images (10,000 resamples, images within classes,
    the seeds' runs averaged per image).
    """
    pooled = {row: pool(suite, root, place) for row, place in suite.rows.items()}
    base = pooled[suite.against]
    groups = {key: mask for key, mask in shot_groups(base.train_counts, rule).items() if mask.any()}
    rows = {}
    for row, found in pooled.items():
        metrics = [evaluate_predictions(p, found.labels, base.train_counts, rule) for p in found.predictions]
        values = {
            "all": [m["accuracy"] for m in metrics],
            "balanced": [m["balanced_accuracy"] for m in metrics],
            **{key: [m["groups"][key]["accuracy"] for m in metrics] for key in groups},
        }
        name = suite.rows[row].partition("/")[0]
        metrics_file = place_of(root, name, suite.seeds[0], 0) / METRICS_FILE
        stated = json.loads(metrics_file.read_text(encoding="utf-8"))["protocol"] if metrics_file.is_file() else None
        difference = {} if row == suite.against else _differences(found, base, groups)
        rows[row] = {"values": values, "difference": difference, "protocol_of_first_run": stated}
    sizes = {key: int(mask.sum()) for key, mask in groups.items()}
    return {
        "schema": 1,
        "rule": rule,
        "images": len(base.labels),
        "group_classes": sizes,
        "seeds": list(suite.seeds),
        "folds": suite.folds,
        "against": suite.against,
        "rows": rows,
    }


def _differences(found: Pooled, base: Pooled, groups: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """[estimate, low, high] of the difference from the baseline, per column."""
    correct, other = found.predictions == base.labels, base.predictions == base.labels
    statistics: dict[str, str | np.ndarray] = {"all": "accuracy", "balanced": "balanced", **groups}
    intervals = {key: paired_bootstrap(correct, other, base.labels, what) for key, what in statistics.items()}
    return {key: [i.estimate, i.low, i.high] for key, i in intervals.items()}


def markdown(document: dict[str, Any]) -> str:
    """The comparison as two Markdown tables: numbers, and differences with their intervals."""
    sizes = document["group_classes"]
    columns = ["all", "balanced", *sizes]
    titles = ["all", "balanced", *(f"{key} ({count})" for key, count in sizes.items())]
    lines = [f"| | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    for row, entry in document["rows"].items():
        cells = [_spread(entry["values"][column]) for column in columns]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines += ["", f"| minus {document['against']} | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    for row, entry in document["rows"].items():
        if entry["difference"]:
            cells = [
                f"{100 * d:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
                for d, low, high in (entry["difference"][column] for column in columns)
            ]
            lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    mean = f"{100 * float(np.mean(values)):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * float(np.std(values, ddof=1)):.1f}"
