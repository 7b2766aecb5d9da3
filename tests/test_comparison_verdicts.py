"""Two runs are told apart where they differ, and noise is never called a gain: simulated and counted."""

import numpy as np
import pytest
from scipy import stats

from hf_vlr.comparison.comparison import Options, compare_rows
from hf_vlr.comparison.runs import Row, Run
from hf_vlr.errors import UserError
from hf_vlr.evaluation.outcome import measure
from hf_vlr.evaluation.predictions import Predictions
from hf_vlr.evaluation.verdict import BETTER, NOTHING_SHOWN, WORSE

CLASSES = 12
NAMES = tuple(f"kind {index}" for index in range(CLASSES))
# 301 to 2 training images: many, medium and few all occur
COUNTS = np.round(300 * 0.6 ** np.arange(CLASSES)).astype(np.int64) + 1
LABELS = np.repeat(np.arange(CLASSES), np.maximum(3, 50 * 0.8 ** np.arange(CLASSES)).astype(int))
FEW = Options(resamples=499)


class World:
    """Images of one difficulty for all runs; a run sees each with noise of its own."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.ease = self.generator.normal(1.2, 1.2, size=LABELS.size)

    def scores(self, gain: float | np.ndarray = 0.0) -> np.ndarray:
        scores = self.generator.normal(size=(LABELS.size, CLASSES))
        scores[np.arange(LABELS.size), LABELS] += self.ease + gain
        return scores


def row(name: str, *scores: np.ndarray, counts=COUNTS, rows=None, labels=LABELS, place: str | None = None) -> Row:
    test = Predictions({}, labels, counts, NAMES, {}, rows)
    return Row(
        name,
        tuple(
            Run(f"{place or name}-{index}", "fused", test, measure(one, labels, CLASSES))
            for index, one in enumerate(scores)
        ),
    )


def called(found) -> bool:
    return any(one.verdict in (BETTER, WORSE) for own in found.differences.values() for one in own.values())


def outside_zero(found) -> bool:
    """Whether any tested number's interval excludes zero."""
    tested = (one for own in found.differences.values() for one in own.values() if one.p is not None)
    return any(one.interval[0] > 0 or one.interval[1] < 0 for one in tested)


def numbers(found, name: str) -> dict[str, tuple]:
    return {key: (one.estimate, one.interval, one.p, one.verdict) for key, one in found.differences[name].items()}


def at_most_5_percent(errors: int, trials: int) -> bool:
    return errors <= stats.binom.ppf(0.999, trials, 0.05)


def test_noise_is_not_called_a_difference():
    errors = by_intervals = 0
    for seed in range(200):
        world = World(seed)
        found = compare_rows([row("a", world.scores()), row("b", world.scores())], FEW)
        errors += called(found)
        by_intervals += outside_zero(found)
    print(f"\nequal predictors called different: {errors / 2:g} %, by their intervals alone {by_intervals / 2:g} %")
    assert at_most_5_percent(errors, 200)


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_the_noise_of_seeds_is_not_called_a_difference(shift):
    """Seeds whose common level differs: over the images alone, most comparisons would find something."""
    errors, these_runs = 0, 0
    for seed in range(100):
        world = World(seed)
        rows = [row(one, *(world.scores(shift * world.generator.normal()) for _ in range(3))) for one in "ab"]
        found = compare_rows(rows, FEW)
        errors += called(found)
        these_runs += any(one.these_runs in (BETTER, WORSE) for one in found.differences["b"].values())
    assert at_most_5_percent(errors, 100)
    assert these_runs > 50 if shift else at_most_5_percent(these_runs, 100)


def test_several_rows_share_one_allowance():
    errors = 0
    for seed in range(60):
        world = World(seed)
        found = compare_rows([row(one, world.scores()) for one in "abcd"], FEW)
        assert found.tested == 18
        errors += called(found)
    assert at_most_5_percent(errors, 60)


@pytest.mark.parametrize("runs", [1, 3])
def test_a_clear_gain_is_found(runs):
    found_gains = 0
    for seed in range(20):
        world = World(seed)
        rows = [row("a", *(world.scores() for _ in range(runs)))]
        rows.append(row("b", *(world.scores(1.2) for _ in range(runs))))
        own = compare_rows(rows, FEW).differences["b"]
        assert all(one.verdict != WORSE for one in own.values())
        found_gains += own["accuracy"].verdict == own["balanced_accuracy"].verdict == own["nll"].verdict == BETTER
    assert found_gains >= 19


def test_a_gain_of_the_tail_alone_is_found_there():
    world = World(1)
    tail = np.where(COUNTS[LABELS] < 20, 2.5, 0.0)
    own = compare_rows([row("a", world.scores()), row("b", world.scores(tail))], Options()).differences["b"]
    assert own["few"].verdict == BETTER and own["many"].verdict == NOTHING_SHOWN
    assert own["macro_f1"].verdict is None and own["macro_f1"].estimate is not None


def test_differences_are_those_of_the_metrics_counted_by_hand():
    labels = np.repeat(np.arange(CLASSES), 2)
    ours = np.where(np.arange(24) < 12, labels, (labels + 1) % CLASSES)
    theirs = np.where(np.arange(24) % 2 == 0, labels, (labels + 1) % CLASSES)
    found = compare_rows([row("a", theirs, labels=labels), row("b", ours, labels=labels)], FEW)
    own = found.differences["b"]
    # b has the first six classes right, a one image of each; counts above 100: classes 0 to 2, below 20: 6 and on
    assert own["accuracy"].estimate == own["balanced_accuracy"].estimate == 0.0
    assert own["many"].estimate == own["medium"].estimate == 0.5 and own["few"].estimate == -0.5
    assert own["nll"].estimate is None and own["nll"].verdict is None and own["ece"].estimate is None
    assert found.wins("b") == {"many": (3, 0, 0), "medium": (3, 0, 0), "few": (0, 0, 6)}
    exact = found.mcnemar["b"]
    assert (exact.only_row, exact.only_base, exact.p) == (6, 6, 1.0)
    assert found.agreement("a", "b") == 0.5 and found.agreement("a", "a") is None


def test_swapping_the_rows_turns_every_sign_and_nothing_else():
    world = World(5)
    one, two = row("a", *(world.scores() for _ in range(2))), row("b", *(world.scores(0.3) for _ in range(3)))
    forth, back = compare_rows([one, two], FEW).differences["b"], compare_rows([two, one], FEW).differences["a"]
    turned = {BETTER: WORSE, WORSE: BETTER}
    for key, own in forth.items():
        other = back[key]
        assert own.estimate == -other.estimate
        assert (own.p, own.p_images, own.p_seeds) == (other.p, other.p_images, other.p_seeds)
        assert own.verdict == turned.get(other.verdict, other.verdict)
        if own.interval is not None:
            assert own.interval == (-other.interval[1], -other.interval[0])


def test_identical_runs_do_not_differ():
    scores = World(2).scores()
    found = compare_rows([row("a", scores), row("b", scores.copy())], FEW)
    for own in found.differences["b"].values():
        assert own.estimate == 0.0 and own.verdict in (NOTHING_SHOWN, None)
        assert own.interval in ((0.0, 0.0), None) and own.p in (1.0, None)
    assert found.agreement("a", "b") == 1.0 and found.mcnemar["b"].p == 1.0


def test_pairing_by_identity_does_not_depend_on_the_order():
    world = World(3)
    identities = np.array([f"image-{index:04d}.png" for index in range(LABELS.size)])
    ours, theirs = world.scores(0.4), world.scores()
    order = np.random.default_rng(0).permutation(LABELS.size)
    plain = compare_rows([row("a", theirs, rows=identities), row("b", ours, rows=identities)], FEW)
    moved = row("b", ours[order], rows=identities[order], labels=LABELS[order])
    mixed = compare_rows([row("a", theirs, rows=identities), moved], FEW)
    assert plain.images.paired_by == mixed.images.paired_by == "identity"
    assert numbers(plain, "b") == numbers(mixed, "b")
    assert plain.agreement("a", "b") == mixed.agreement("a", "b") and plain.mcnemar == mixed.mcnemar


def test_the_same_comparison_gives_the_same_numbers():
    world = World(4)
    rows = [row("a", world.scores()), row("b", world.scores(0.2))]
    assert numbers(compare_rows(rows, FEW), "b") == numbers(compare_rows(rows, FEW), "b")


def test_seeds_are_averaged_and_their_spread_is_stated():
    world = World(6)
    first = [world.scores() for _ in range(3)]
    second = [world.scores(1.0) for _ in range(2)]
    found = compare_rows([row("a", *first), row("b", *second)], FEW)
    rates = [[(one.argmax(axis=1) == LABELS).mean() for one in part] for part in (first, second)]
    own = found.differences["b"]["accuracy"]
    assert own.estimate == pytest.approx(np.mean(rates[1]) - np.mean(rates[0]))
    assert own.p_seeds == pytest.approx(stats.ttest_ind(*rates).pvalue)
    assert found.values("b", found.measures[0]) == pytest.approx(rates[1])
    assert found.mcnemar["b"] is None
    same = [(one.argmax(axis=1) == two.argmax(axis=1)).mean() for one in first for two in second]
    assert found.agreement("a", "b") == pytest.approx(np.mean(same))
    own_pairs = [(first[i].argmax(1) == first[j].argmax(1)).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found.agreement("a", "a") == pytest.approx(np.mean(own_pairs))


def test_two_predictors_of_the_same_runs_are_paired_by_run():
    """Runs that differ much among themselves, but each gains the same."""
    world = World(7)
    base = [world.scores(shift) for shift in (-1.0, 0.0, 1.0, 2.0)]
    gained = [one + 0.9 * np.eye(CLASSES)[LABELS] for one in base]
    own = compare_rows([row("a", *base, place="run"), row("b", *gained, place="run")], FEW).differences["b"]
    rates = [[(one.argmax(axis=1) == LABELS).mean() for one in part] for part in (gained, base)]
    assert own["accuracy"].p_seeds == pytest.approx(stats.ttest_rel(*rates).pvalue)
    assert own["accuracy"].p_seeds < stats.ttest_ind(*rates).pvalue


def test_an_empty_group_has_no_number():
    counts = np.full(CLASSES, 50)
    world = World(8)
    found = compare_rows([row("a", world.scores(), counts=counts), row("b", world.scores(), counts=counts)], FEW)
    own = found.differences["b"]
    assert own["many"].estimate is own["many"].p is own["many"].verdict is own["few"].estimate is None
    assert found.tested == 4 and found.wins("b")["many"] == (0, 0, 0)


def test_groups_are_averaged_as_the_rule_says():
    world = World(9)
    rows = [row("a", world.scores()), row("b", world.scores(0.5))]
    own = compare_rows(rows, Options(rule="vl-ltr", resamples=499)).differences["b"]
    inside = COUNTS[LABELS] < 21
    hits = [(one.runs[0].outcome.correct)[inside].mean() for one in rows]
    assert own["few"].estimate == pytest.approx(hits[1] - hits[0])
    assert {"10-shot", "5-shot"} <= set(own)


def test_too_few_resamples_are_refused():
    world = World(0)
    with pytest.raises(UserError, match="--resamples 119 or more"):
        compare_rows([row("a", world.scores()), row("b", world.scores())], Options(resamples=118))
    compare_rows([row("a", world.scores()), row("b", world.scores())], Options(resamples=119))
