"""Differences of rows from one of them, with intervals, tests and verdicts.

A difference is called better or worse only if
 1. the 95 % paired-bootstrap interval over the test images excludes zero,
 2. the paired randomisation test over the images, and
 3. where there are several seeds, Student's t test over the seeds
    reject that there is none, both after Holm's adjustment over all tested numbers of all compared rows.
So the chance that a comparison of equal predictors calls anything better or worse is at most 5 %. With a single run of
each row, a verdict is about these runs: what another seed would give is unknown.

Letters: N images, S runs (seeds).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_vlr.comparison.images import Images
from hf_vlr.comparison.measures import Measure
from hf_vlr.comparison.runs import Row
from hf_vlr.errors import UserError
from hf_vlr.evaluation.bootstrap import paired_bootstrap
from hf_vlr.evaluation.chance import mcnemar_p, mean_interval, paired_seeds_p, seeds_p, sign_flip_p
from hf_vlr.evaluation.outcome import Floats
from hf_vlr.evaluation.verdict import CONFIDENCE, holm, resamples_needed, verdict

Entries = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Difference:
    """A row's number minus the baseline's, means over seeds; fractions, or nats for the NLL.

    estimate: None where either has nothing to measure. interval: over the images. p_images, p_seeds: of the two
    tests; p: the larger one, after Holm. verdict: None, as all but the estimate, for what is not tested.
    these_runs: the verdict that interval and test over the images alone would give: it holds for these very runs.
    """

    estimate: float | None
    interval: tuple[float, float] | None = None
    p_images: float | None = None
    p_seeds: float | None = None
    p: float | None = None
    verdict: str | None = None
    these_runs: str | None = None


@dataclass(frozen=True)
class McNemar:
    """Images that only one of two single runs has right, and McNemar's exact p."""

    only_row: int
    only_base: int
    p: float


def differences(
    rows: Mapping[str, Row],
    entries: Entries,
    against: str,
    images: Images,
    measures: Sequence[Measure],
    num_resamples: int,
) -> dict[str, dict[str, Difference]]:
    """By row but `against`, by measure's key. `entries`: of each row its runs' entries of `metrics.json`.

    Raises `UserError` for too few resamples: where even the clearest difference could not pass Holm's rule.
    """
    values = {one.key: {name: _values(one, entries[name]) for name in rows} for one in measures}
    found = {
        name: {one.key: _plain(values[one.key], name, against) for one in measures} for name in rows if name != against
    }
    tested = [
        (name, one) for name in found for one in measures if one.tested and found[name][one.key].estimate is not None
    ]
    if num_resamples < resamples_needed(len(tested)):
        raise UserError(
            f"{num_resamples} resamples cannot tell chance from a difference among {len(tested)} tested numbers: "
            f"give --resamples {resamples_needed(len(tested))} or more"
        )
    for name, one in tested:
        shown = _over_images(rows[name], rows[against], images, one, num_resamples)
        p_seeds = _over_seeds(rows[name], rows[against], values[one.key])
        found[name][one.key] = replace(shown, estimate=found[name][one.key].estimate, p_seeds=p_seeds)
    return _judged(found, tested)


def mcnemar(row: Row, base: Row) -> McNemar | None:
    """The exact test on overall accuracy, a cross-check; None unless both rows are single runs."""
    if len(row.runs) > 1 or len(base.runs) > 1:
        return None
    ours, theirs = row.runs[0].outcome.correct, base.runs[0].outcome.correct
    only_row, only_base = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return McNemar(only_row, only_base, mcnemar_p(only_row, only_base))


def _values(measure: Measure, entries: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """The number of each run, None where a run has none."""
    found = [measure.value(entry) for entry in entries]
    return None if None in found else found


def _plain(values: Mapping[str, list[float] | None], name: str, against: str) -> Difference:
    ours, theirs = values[name], values[against]
    return Difference(None if ours is None or theirs is None else float(np.mean(ours) - np.mean(theirs)))


def _judged(
    found: dict[str, dict[str, Difference]], tested: Sequence[tuple[str, Measure]]
) -> dict[str, dict[str, Difference]]:
    """Holm's adjustment and the verdicts."""
    of_images = {(name, one.key): found[name][one.key].p_images for name, one in tested}
    larger = {place: max(p, found[place[0]][place[1]].p_seeds or 0.0) for place, p in of_images.items()}
    adjusted, these_runs = holm(larger), holm(of_images)
    for name, one in tested:
        own, place = found[name][one.key], (name, one.key)
        said, images_say = (
            verdict(own.estimate, *own.interval, p[place], lower_is_better=one.lower_is_better)
            for p in (adjusted, these_runs)
        )
        found[name][one.key] = replace(own, p=adjusted[place], verdict=said, these_runs=images_say)
    return found


def _per_image(row: Row, measure: Measure) -> Floats:
    """What an image adds to the measure, averaged over the runs: [N]."""
    if measure.key == "nll":
        return -np.mean([run.outcome.log_likelihood for run in row.runs], axis=0)
    return np.mean([run.outcome.correct for run in row.runs], axis=0)


def _over_images(row: Row, base: Row, images: Images, measure: Measure, num_resamples: int) -> Difference:
    """Interval and p over the images."""
    likelihood = measure.key == "nll"
    ours, theirs = _per_image(row, measure), _per_image(base, measure)
    weights = images.weights("accuracy" if likelihood else measure.key)
    kept = weights > 0
    ours, theirs, labels = ours[kept], theirs[kept], images.labels[kept]
    change = ours - theirs
    # drawn one way round, so that swapping the rows turns every sign and nothing else
    turned = bool(change.any()) and change[np.flatnonzero(change)[0]] < 0
    first, second = (theirs, ours) if turned else (ours, theirs)
    if likelihood:
        low, high = mean_interval(first - second, labels, num_resamples, confidence=CONFIDENCE)
    else:
        statistic = "balanced" if images.averages_classes(measure.key) else "accuracy"
        found = paired_bootstrap(first, second, labels, statistic, num_resamples, confidence=CONFIDENCE)
        low, high = found.low, found.high
    interval = (-high, -low) if turned else (low, high)
    return Difference(None, interval, sign_flip_p(weights[kept] * change, num_resamples))


def _over_seeds(row: Row, base: Row, values: Mapping[str, list[float] | None]) -> float | None:
    """p over the seeds: of each run's own difference where both rows are of the same runs, else of the rows' means."""
    ours, theirs = values[row.name], values[base.name]
    if row.places == base.places and len(row.runs) > 1:
        return paired_seeds_p(np.subtract(ours, theirs).tolist())
    return seeds_p(ours, theirs, [one for one in values.values() if one is not None])
