import numpy as np
import pytest

from hf_vlr.errors import UserError
from hf_vlr.evaluation.bootstrap import (
    _kinds,
    bootstrap_intervals,
    paired_bootstrap,
    resample,
    resample_reference,
)


def drawn(images_per_class, rate_a, rate_b, seed=0):
    """Correctness of two predictors that are right on overlapping images."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(images_per_class)), images_per_class)
    difficulty = generator.random(labels.size)
    shared = generator.random(labels.size) < 0.5
    return difficulty < rate_a, np.where(shared, difficulty, generator.random(labels.size)) < rate_b, labels


def of_one(right, labels, statistic, num_resamples):
    """The interval of one predictor: how far it is from one that is always wrong."""
    return paired_bootstrap(right, np.zeros(len(labels)), labels, statistic, num_resamples)


def width(interval):
    return interval.high - interval.low


@pytest.mark.parametrize("statistic", ["accuracy", "balanced", np.array([False, True, True])])
def test_identical_predictors_differ_by_nothing(statistic):
    right, _, labels = drawn([30, 8, 3], 0.6, 0.6)
    interval = paired_bootstrap(right, right, labels, statistic, num_resamples=200)
    assert (interval.low, interval.high, interval.estimate) == (0, 0, 0)


def test_estimates_are_the_statistics_themselves():
    a, b, labels = drawn([40, 10, 4], 0.8, 0.5)
    rates = [[right[labels == c].mean() for c in range(3)] for right in (a, b)]
    difference = np.subtract(*rates)
    for statistic, expected in [
        ("accuracy", a.mean() - b.mean()),
        ("balanced", difference.mean()),
        (np.array([False, True, True]), difference[1:].mean()),
    ]:
        interval = paired_bootstrap(a, b, labels, statistic, num_resamples=500)
        assert interval.estimate == pytest.approx(expected, rel=1e-12)
        assert interval.low <= interval.estimate <= interval.high
    assert of_one(a, labels, "balanced", 50).estimate == pytest.approx(np.mean(rates[0]))


def test_the_multinomial_draws_what_single_images_draw():
    a, b, labels = drawn([25, 9, 5, 2], 0.7, 0.5, seed=4)
    values = a.astype(float) - b
    weights = 1 / (np.bincount(labels)[labels] * 4)
    fast = resample(values, labels, weights, 40000, seed=0)
    slow = resample_reference(values, labels, weights, 40000, seed=0)
    # Both means have a standard error of sigma / 200, so five of the difference's are 0.036 sigma.
    assert abs(fast.mean() - slow.mean()) < 0.036 * slow.std()
    assert fast.std() == pytest.approx(slow.std(), rel=0.03)
    assert np.abs(np.quantile(fast, [0.025, 0.975]) - np.quantile(slow, [0.025, 0.975])).max() < 0.1 * slow.std()


def test_classes_that_are_alike_draw_together_and_the_distribution_stays():
    a, _, labels = drawn([3] * 30 + [5] * 20 + [1, 1, 7], 0.6, 0.6, seed=6)
    strata = np.where(np.bincount(labels)[labels] == 1, -1, labels)
    weights = 1 / (np.bincount(labels)[labels] * 53)
    kinds = list(_kinds(a.astype(float), strata, weights))
    assert sum(alike for *_, alike in kinds) == 52
    assert len(kinds) < 15
    fast = resample(a.astype(float), strata, weights, 40000, seed=0)
    slow = resample_reference(a.astype(float), strata, weights, 10000, seed=0)
    assert abs(fast.mean() - slow.mean()) < 5 * slow.std() * np.sqrt(1 / 40000 + 1 / 10000)
    assert fast.std() == pytest.approx(slow.std(), rel=0.04)
    assert np.abs(np.quantile(fast, [0.025, 0.975]) - np.quantile(slow, [0.025, 0.975])).max() < 0.15 * slow.std()


def test_every_interval_of_a_predictor():
    right, _, labels = drawn([40, 12, 6, 6], 0.7, 0.7)
    groups = {
        "many": np.array([True, False, False, False]),
        "few": np.array([False, False, True, True]),
        "none": np.zeros(4, dtype=bool),
    }
    found = bootstrap_intervals(right, labels, groups, "class", num_resamples=300)
    assert (found["confidence"], found["resamples"]) == (0.95, 300)

    def own(statistic, rows=slice(None)):
        interval = of_one(right[rows], labels[rows], statistic, 300)
        return [interval.low, interval.high]

    assert found["accuracy"] == own("accuracy")
    assert found["balanced_accuracy"] == own("balanced")
    assert found["groups"] == {"many": own(groups["many"]), "few": own(groups["few"]), "none": None}
    by_image = bootstrap_intervals(right, labels, groups | {"all": np.ones(4, dtype=bool)}, "image", num_resamples=300)
    assert by_image["groups"]["few"] == own("accuracy", labels >= 2)
    assert by_image["groups"]["all"] == by_image["accuracy"] == found["accuracy"]


def test_variance_is_the_unbiased_one_of_stratified_sampling():
    a, b, labels = drawn([3] * 40, 0.7, 0.4, seed=5)
    values = a.astype(float) - b
    totals = resample(values, labels, np.full(labels.size, 1 / labels.size), 20000, seed=0)
    expected = np.mean([values[labels == c].var(ddof=1) / 3 for c in range(40)]) / 40
    assert totals.var() == pytest.approx(expected, rel=0.05)


def test_more_images_give_narrower_intervals():
    widths = []
    for images in (10, 40, 160):
        labels = np.repeat(np.arange(5), images)
        a, b = np.arange(labels.size) % 10 < 7, np.arange(labels.size) % 10 >= 5
        widths.append(width(paired_bootstrap(a, b, labels, "balanced", num_resamples=4000)))
    # Four times the images halve the width: exactly so but for n - 1 instead of n, and the grid of outcomes.
    assert widths[0] > widths[1] > widths[2]
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.1)


def test_pairing_narrows_the_interval_of_similar_predictors():
    a, _, labels = drawn([50] * 4, 0.6, 0.6)
    b = a.copy()
    b[::20] ^= True
    paired = paired_bootstrap(a, b, labels, num_resamples=2000)
    alone = of_one(a, labels, "accuracy", 2000)
    assert width(paired) < width(alone)


@pytest.mark.parametrize("images", [3, 12])
def test_intervals_cover_the_truth_as_often_as_they_say(images):
    rates = np.random.default_rng(0).uniform(0.2, 0.8, size=(2, 20))
    labels = np.repeat(np.arange(20), images)
    truth = (rates[0] - rates[1]).mean()
    covered = 0
    for trial in range(2000):
        generator = np.random.default_rng([trial, images])
        a, b = generator.random((2, labels.size)) < rates[:, labels]
        interval = paired_bootstrap(a, b, labels, "balanced", num_resamples=300, seed=trial)
        covered += interval.low <= truth <= interval.high
    # 2000 trials at 95 %: a standard error of half a point. Three images a class take few values, which costs one.
    assert 0.93 <= covered / 2000 <= 0.965


def test_single_image_classes_still_vary():
    labels = np.arange(30)
    right = labels % 3 == 0
    interval = of_one(right, labels, "balanced", 4000)
    assert interval.low < interval.estimate < interval.high
    binomial = 2 * 1.96 * np.sqrt((1 / 3) * (2 / 3) / 29)
    assert width(interval) == pytest.approx(binomial, rel=0.1)
    alone = of_one(right, labels, labels == 3, 100)
    assert (alone.low, alone.estimate, alone.high) == (1, 1, 1)


def test_runs_are_averaged_for_each_image():
    a, b, labels = drawn([20, 10], 0.8, 0.5)
    once = paired_bootstrap(a, b, labels, "balanced", num_resamples=500)
    assert paired_bootstrap(np.stack([a, a]), b, labels, "balanced", num_resamples=500) == once
    other = drawn([20, 10], 0.7, 0.5, seed=9)[0]
    several = paired_bootstrap(np.stack([a, other, a]), np.stack([b, b]), labels, num_resamples=500)
    assert several.estimate == pytest.approx((2 * a.mean() + other.mean()) / 3 - b.mean())
    assert -1 <= several.low <= several.estimate <= several.high <= 1


def test_a_higher_confidence_is_wider_and_seeds_decide_everything():
    a, b, labels = drawn([31, 17, 7], 0.8, 0.5)

    def interval(seed, confidence=0.95):
        return paired_bootstrap(a, b, labels, "balanced", 1000, seed, confidence)

    assert interval(seed=1) == interval(seed=1)
    assert interval(seed=1) != interval(seed=2)
    assert width(interval(seed=1)) < width(interval(seed=1, confidence=0.999))


def test_exchanging_the_predictors_exchanges_the_sign():
    a, b, labels = drawn([200, 100], 0.8, 0.5)
    there, back = paired_bootstrap(a, b, labels), paired_bootstrap(b, a, labels)
    assert there.estimate == -back.estimate
    assert there.low == pytest.approx(-back.high, abs=0.01)
    assert there.high == pytest.approx(-back.low, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [0, 1]}, "shape .* for 2 labels"),
        ({"labels": []}, "labels must be one integer"),
        ({"labels": [0, 0, -1]}, "label -1 is negative"),
        ({"correct_a": [1, 2, 0]}, "true or false"),
        ({"correct_a": [1, np.nan, 0]}, "true or false"),
        ({"statistic": "macro"}, "unknown statistic 'macro'"),
        ({"statistic": np.array([True])}, "one boolean for each class"),
        ({"statistic": np.array([1, 0])}, "one boolean for each class"),
        ({"statistic": np.array([False, False])}, "nothing to resample"),
        ({"num_resamples": 0}, "num_resamples is 0"),
        ({"confidence": 95}, "confidence is 95"),
    ],
)
def test_bad_input_is_named(arguments, message):
    good = {"correct_a": [1, 0, 1], "correct_b": [0, 0, 1], "labels": [0, 0, 1]}
    with pytest.raises(UserError, match=message):
        paired_bootstrap(**good | arguments)
