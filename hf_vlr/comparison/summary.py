"""A comparison in sentences, for the terminal and the page."""

from collections.abc import Sequence

from hf_vlr.comparison.comparison import Comparison
from hf_vlr.comparison.measures import Measure
from hf_vlr.evaluation.verdict import BETTER, NOTHING_SHOWN, WORSE

SHORT = 30


def subject(found: Comparison) -> str:
    """What was compared on which images."""
    images = found.images
    paired = "by their identities" if images.paired_by == "identity" else "by their order, without identities"
    return (
        f"{len(images.labels):,} test images of {len(images.train_counts):,} classes, paired {paired}; "
        f"shot groups by {images.rule.name}, averaged by {images.rule.averaging}"
    )


def outcome(found: Comparison, name: str) -> str:
    """What may be said of one row against the baseline."""
    tested = [one for one in found.measures if found.differences[name][one.key].verdict is not None]
    said = [
        (word, [one for one in tested if found.differences[name][one.key].verdict == word]) for word in (BETTER, WORSE)
    ]
    parts = [f"{word} in {_listed([_measured(found, name, one) for one in those])}" for word, those in said if those]
    rest = len(tested) - sum(len(those) for _, those in said)
    if not parts:
        return f"{name} against {found.against}: no difference shown in any of the {rest} tested numbers."
    others = f"; no difference shown in the other {rest if rest > 1 else 'one'}" if rest else ""
    return f"{name} against {found.against}: {'; '.join(parts)}{others}."


def open_question(found: Comparison, name: str) -> str | None:
    """Which differences are those of these runs, but may be those of their seeds; None without any."""
    own = found.differences[name]
    names = [
        one.title
        for one in found.measures
        if own[one.key].verdict == NOTHING_SHOWN and own[one.key].these_runs != NOTHING_SHOWN
    ]
    if not names:
        return None
    return (
        f"These very runs differ in {_listed(names)}, more than the images' chance explains; the seeds are too few, or "
        "differ too much, to say so of others. More seeds would tell."
    )


def reading(found: Comparison) -> str:
    """When a difference is called one."""
    seeds = ", by the tests over the images and over the seeds," if found.several_seeds else ""
    return (
        f"Better and worse are said where the 95 % interval over the images excludes zero and p is at most 0.05{seeds} "
        f"after Holm's adjustment over all {found.tested} tested numbers: between equal predictors, that happens in at "
        "most 5 of 100 comparisons. No difference shown does not mean that there is none."
    )


def seeds(found: Comparison) -> str:
    """What the seeds allow to be said."""
    single = [name for name, row in found.rows.items() if len(row.runs) == 1]
    if not found.several_seeds:
        return "One run of each row: a verdict is about these runs, and what other seeds would give is unknown."
    runs = _listed([f"{len(row.runs)} of {name}" for name, row in found.rows.items()])
    assumed = f" One run of {_listed(single)}: its seeds are taken to spread as the others' do." if single else ""
    return f"Runs: {runs}, shown as mean ± standard deviation; intervals are of the mean over these runs.{assumed}"


def cross_check(found: Comparison, name: str) -> str | None:
    """McNemar's exact test of one row; None with seeds."""
    exact = found.mcnemar[name]
    if exact is None:
        return None
    return (
        f"{exact.only_row:,} images are right in {name} only, {exact.only_base:,} in {found.against} only; McNemar's "
        f"exact test, a cross-check on all images without adjustment: p = {p_text(exact.p)}."
    )


def warning(found: Comparison) -> str | None:
    """Which conditions differ; None if none does."""
    if not found.flagged:
        return None
    return f"The rows differ in {_listed([one.title for one in found.flagged])}: this may explain their numbers."


def short(name: str) -> str:
    """A row's name where there is little room: of a long path its end."""
    return name if len(name) <= SHORT else f"…{name[1 - SHORT :]}"


def p_text(p: float | None) -> str:
    """A p-value for readers."""
    if p is None:
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def interval_text(measure: Measure, interval: tuple[float, float] | None) -> str:
    """An interval for readers, "-" for None."""
    return "-" if interval is None else " to ".join(map(measure.change, interval))


def spread_text(measure: Measure, values: Sequence[float] | None) -> tuple[str, str]:
    """Mean and deviation over seeds; "" for the latter with one run."""
    from statistics import fmean, stdev

    if values is None:
        return measure.text(None), ""
    return measure.text(fmean(values)), f"±\u00a0{measure.text(stdev(values))}" if len(values) > 1 else ""


def _measured(found: Comparison, name: str, measure: Measure) -> str:
    own = found.differences[name][measure.key]
    unit = " points" if measure.percent else ""
    return f"{measure.title} ({measure.change(own.estimate)}{unit}, {interval_text(measure, own.interval)})"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
