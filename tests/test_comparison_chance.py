"""What chance alone would give: tests and intervals against exact counts, other libraries and simulations."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from hf_vlr.evaluation.bootstrap import paired_bootstrap
from hf_vlr.evaluation.chance import (
    mcnemar_p,
    mean_interval,
    paired_seeds_p,
    seeds_p,
    sign_flip_p,
    sign_flip_p_reference,
)
from hf_vlr.evaluation.verdict import BETTER, NOTHING_SHOWN, WORSE, holm, resamples_needed, verdict


def test_sign_flips_of_three_equal_contributions_by_hand():
    # |sum| = 3 only where all signs agree: 2 of 8
    assert sign_flip_p_reference([1, 1, 1]) == 2 / 8
    assert sign_flip_p([1, 1, 1, 0, 0], 40000) == pytest.approx(2 / 8, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_sign_flips_agree_with_all_choices_of_signs(seed):
    generator = np.random.default_rng(seed)
    given = generator.choice([-1.0, -0.5, 0.0, 0.25, 1.0], size=12) + (seed % 2) * generator.normal(size=12)
    exact = sign_flip_p_reference(given)
    assert sign_flip_p(given, 40000) == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 40000) + 1e-4)


def test_sign_flips_of_right_and_wrong_are_mcnemars_exact_test():
    given = np.repeat([1.0, -1.0, 0.0], [14, 5, 300])
    assert mcnemar_p(14, 5) == pytest.approx(stats.binomtest(5, 19).pvalue)
    assert sign_flip_p(given / given.size, 40000) == pytest.approx(mcnemar_p(14, 5), abs=0.006)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 0), (7, 7), (120, 80), (5, 19)])
def test_mcnemar_is_a_fair_coin(first, second):
    total = first + second
    expected = stats.binomtest(min(first, second), total).pvalue if total else 1.0
    assert mcnemar_p(first, second) == pytest.approx(expected, rel=1e-12)
    assert mcnemar_p(first, second) == mcnemar_p(second, first)


def test_sign_flips_never_give_zero_and_know_no_direction():
    clear = np.full(100, 0.01)
    assert sign_flip_p(clear, 199) == 1 / 200
    mixed = np.random.default_rng(0).normal(size=50)
    assert sign_flip_p(mixed) == sign_flip_p(-mixed) == sign_flip_p(mixed[::-1])
    assert sign_flip_p(np.zeros(7)) == 1.0


def test_equal_fractions_of_other_origin_are_equal():
    third = float(Fraction(1, 3))
    assert sign_flip_p([1 - 2 * third, third, 2 * third - third], 999) == sign_flip_p([third] * 3, 999)


def test_the_interval_of_a_mean_is_that_of_the_paired_bootstrap():
    generator = np.random.default_rng(3)
    labels = np.repeat(np.arange(6), [1, 1, 3, 20, 60, 200])
    ours, theirs = generator.random(labels.size) < 0.6, generator.random(labels.size) < 0.5
    known = paired_bootstrap(ours, theirs, labels, "accuracy", 20000)
    low, high = mean_interval(ours.astype(float) - theirs, labels, 20000)
    assert (low, high) == pytest.approx((known.low, known.high), abs=0.004)
    assert mean_interval(ours.astype(float), labels, 500) == mean_interval(ours.astype(float), labels, 500)


def test_the_interval_of_a_mean_covers_it():
    labels, hits = np.repeat(np.arange(3), [10, 40, 100]), 0
    for seed in range(300):
        values = np.random.default_rng(seed).exponential(size=150) - 1
        low, high = mean_interval(values, labels, 400, seed=seed)
        hits += low <= 0 <= high
    assert hits >= stats.binom.ppf(0.001, 300, 0.95)


def test_two_rows_of_seeds_are_students_t_test():
    ours, theirs = [0.61, 0.64, 0.6], [0.55, 0.58, 0.53]
    assert seeds_p(ours, theirs, [ours, theirs]) == pytest.approx(stats.ttest_ind(ours, theirs).pvalue)
    assert seeds_p(ours, theirs, [ours, theirs]) == seeds_p(theirs, ours, [ours, theirs])
    differences = np.subtract(ours, theirs).tolist()
    assert paired_seeds_p(differences) == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)


def test_further_rows_lend_degrees_of_freedom_but_never_a_smaller_spread():
    ours, theirs, other = [0.6, 0.64], [0.5, 0.53], [0.58, 0.62, 0.6, 0.59]
    alone = seeds_p(ours, theirs, [ours, theirs])
    with_other = seeds_p(ours, theirs, [ours, theirs, other])
    own = (np.var(ours) * 2 + np.var(theirs) * 2) / 2
    expected = 2 * stats.t.sf((0.62 - 0.515) / math.sqrt(own), 1 + 1 + 3)
    assert with_other == pytest.approx(expected) and with_other < alone
    quiet = [0.6, 0.6, 0.6, 0.6]
    assert seeds_p(ours, theirs, [ours, theirs, quiet]) == pytest.approx(expected)


def test_single_runs_have_no_seeds_to_test_by():
    assert seeds_p([0.6], [0.5], [[0.6], [0.5]]) is None
    assert paired_seeds_p([0.1]) is None
    # the spread of the row that has seeds stands for the other
    one_sided = seeds_p([0.6], [0.5, 0.52, 0.54], [[0.6], [0.5, 0.52, 0.54]])
    assert one_sided == pytest.approx(2 * stats.t.sf(0.08 / math.sqrt(0.0004 * (1 + 1 / 3)), 2))
    assert seeds_p([0.5, 0.5], [0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]]) == 1.0


@pytest.mark.parametrize("value", [0.6, 0.1 + 0.2, 1 / 3])
def test_seeds_without_any_spread_are_no_evidence(value):
    rows = [[value] * 3, [value + 0.1] * 3]
    assert seeds_p(*rows, rows) == 1.0
    assert paired_seeds_p([value] * 3) == 1.0


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.6, "b": 0.9}) == pytest.approx({"a": 1.0, "b": 1.0})
    assert holm({}) == {}


def test_holm_keeps_its_promise_for_dependent_tests():
    """Ten correlated true nulls: some are rejected in at most 5 % of the trials."""
    generator, wrong = np.random.default_rng(0), 0
    for _ in range(2000):
        shared, own = generator.normal(), generator.normal(size=10)
        p = 2 * stats.norm.sf(np.abs(np.sqrt(0.5) * (shared + own)))
        wrong += min(holm(dict(enumerate(p))).values()) <= 0.05
    assert wrong <= stats.binom.ppf(0.999, 2000, 0.05)


@pytest.mark.parametrize(
    ("estimate", "low", "high", "p", "lower_is_better", "expected"),
    [
        (0.02, 0.01, 0.03, 0.05, False, BETTER),
        (0.02, 0.01, 0.03, 0.051, False, NOTHING_SHOWN),
        (0.02, 0.0, 0.04, 0.01, False, NOTHING_SHOWN),
        (0.02, 1e-17, 0.04, 0.01, False, NOTHING_SHOWN),
        (-0.02, -0.03, -0.01, 0.01, False, WORSE),
        (-0.2, -0.3, -0.1, 0.01, True, BETTER),
        (0.2, 0.1, 0.3, 0.01, True, WORSE),
        (0.0, 0.0, 0.0, 1.0, False, NOTHING_SHOWN),
    ],
)
def test_verdicts(estimate, low, high, p, lower_is_better, expected):
    assert verdict(estimate, low, high, p, lower_is_better=lower_is_better) == expected


@pytest.mark.parametrize("tests", [1, 6, 42])
def test_enough_resamples_let_the_clearest_difference_pass(tests):
    enough = resamples_needed(tests)
    assert tests * sign_flip_p(np.ones(60), enough) <= 0.05 + 1e-12
    assert tests * sign_flip_p(np.ones(60), enough - 1) > 0.05
