"""Rows read, paired, measured and held against one of them.

Letters: N images, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hf_vlr.comparison.conditions import Condition, conditions
from hf_vlr.comparison.differences import Difference, McNemar, differences, mcnemar
from hf_vlr.comparison.images import Images, align
from hf_vlr.comparison.measures import Measure, measures_of
from hf_vlr.comparison.runs import Row, read_row
from hf_vlr.comparison.seeds import check_seeds
from hf_vlr.comparison.words import named_rows
from hf_vlr.data.shots import SHOT_NAMES, ShotRule, shot_rule
from hf_vlr.errors import UserError
from hf_vlr.evaluation.metrics import evaluate_outcome
from hf_vlr.evaluation.outcome import Floats

# class accuracies that differ by less are the same: they are means of fractions
_EQUAL = 1e-9


@dataclass(frozen=True)
class Options:
    """against: the row that all others are compared with, the first by default. predictor: for rows that name none.
    rule: of the shot groups. resamples: of each interval and test. counts_from: the row whose training counts define
    the groups. different_splits: images without identities are the same although their splits have other names.
    """

    against: str | None = None
    predictor: str | None = None
    rule: str | ShotRule = "oltr"
    resamples: int = 10000
    counts_from: str | None = None
    different_splits: bool = False


@dataclass(frozen=True)
class Comparison:
    """rows: by name, all on the same `images`. entries: of each row its runs' entries, as in `metrics.json`.

    differences: by row but `against`, by measure's key; mcnemar: of the same rows, None where there are seeds.
    """

    images: Images
    rows: Mapping[str, Row]
    entries: Mapping[str, list[dict[str, Any]]]
    against: str
    measures: tuple[Measure, ...]
    differences: Mapping[str, Mapping[str, Difference]]
    mcnemar: Mapping[str, McNemar | None]
    conditions: tuple[Condition, ...]
    resamples: int

    @property
    def others(self) -> list[str]:
        """The rows that are compared with `against`."""
        return list(self.differences)

    @property
    def tested(self) -> int:
        """How many differences were tested, over all rows."""
        return sum(one.verdict is not None for row in self.differences.values() for one in row.values())

    @property
    def flagged(self) -> list[Condition]:
        return [one for one in self.conditions if one.flagged]

    @property
    def several_seeds(self) -> bool:
        return any(len(row.runs) > 1 for row in self.rows.values())

    def values(self, name: str, measure: Measure) -> list[float] | None:
        """A measure of each run of a row; None where there is nothing to measure."""
        found = [measure.value(entry) for entry in self.entries[name]]
        return None if None in found else found

    @cached_property
    def class_accuracy(self) -> dict[str, Floats]:
        """By row the accuracy of each class [C], averaged over its runs; NaN for a class without test images."""
        return {name: _class_accuracy(row, self.images) for name, row in self.rows.items()}

    def wins(self, name: str) -> dict[str, tuple[int, int, int]]:
        """By shot group, in how many of its tested classes a row is better than the baseline, equal, and worse."""
        change = self.class_accuracy[name] - self.class_accuracy[self.against]
        signs = np.where(np.abs(change) < _EQUAL, 0, np.sign(change))
        counted = {}
        for group in SHOT_NAMES:
            own = signs[self.images.groups[group] & (self.images.per_class > 0)]
            counted[group] = (int((own > 0).sum()), int((own == 0).sum()), int((own < 0).sum()))
        return counted

    def agreement(self, first: str, second: str) -> float | None:
        """The share of images that two rows predict to be of one class, right or wrong, averaged over pairs of runs.

        Of a row with itself: over pairs of its different runs, None for a single run.
        """
        ours, theirs = self.rows[first].runs, self.rows[second].runs
        pairs = [(one, two) for i, one in enumerate(ours) for j, two in enumerate(theirs) if first != second or i < j]
        if not pairs:
            return None
        return float(np.mean([(one.outcome.predictions == two.outcome.predictions).mean() for one, two in pairs]))


def compare_runs(words: Sequence[str], options: Options) -> Comparison:
    """The rows that words name (see `hf_vlr.comparison.words`), compared.

    Raises `UserError` as the steps do, and where `against` names no row.
    """
    return compare_rows([read_row(one) for one in named_rows(words, options.predictor)], options)


def compare_rows(rows: Sequence[Row], options: Options) -> Comparison:
    """Rows that were read, at least two, compared. Raises `UserError` as the steps do (`align`, `check_seeds`)."""
    names = [row.name for row in rows]
    against = options.against or names[0]
    if against not in names:
        raise UserError(f"--against {against} is no row; there are {', '.join(names)}")
    images, aligned = align(
        rows, options.rule, counts_from=options.counts_from, different_splits=options.different_splits
    )
    for row in aligned:
        check_seeds(row)
    rule, by_name = shot_rule(options.rule), {row.name: row for row in aligned}
    entries = {
        row.name: [evaluate_outcome(run.outcome, images.train_counts, rule) for run in row.runs] for row in aligned
    }
    measures = measures_of(images)
    return Comparison(
        images=images,
        rows=by_name,
        entries=entries,
        against=against,
        measures=tuple(measures),
        differences=differences(by_name, entries, against, images, measures, options.resamples),
        mcnemar={name: mcnemar(row, by_name[against]) for name, row in by_name.items() if name != against},
        conditions=tuple(conditions(aligned)),
        resamples=options.resamples,
    )


def _class_accuracy(row: Row, images: Images) -> Floats:
    correct = np.mean([run.outcome.correct for run in row.runs], axis=0)
    hits = np.bincount(images.labels, weights=correct, minlength=len(images.train_counts))
    return np.divide(hits, images.per_class, out=np.full(hits.size, np.nan), where=images.per_class > 0)
