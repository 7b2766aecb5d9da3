"""The probe against its own gradient and scikit-learn; what it is chosen on."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

import hf_vlr
from hf_vlr.errors import UserError
from hf_vlr.protocols.linear_probe import fit_chosen, over_seeds, shot_rows, trials
from hf_vlr.protocols.options import LinearProbeOptions
from hf_vlr.protocols.probe import UNSEEN, ProbeData, chosen_score, class_mean_accuracy, draw_shots, fit_probe
from hf_vlr.protocols.regularisation import FIRST_STEP, GRID, refined_search


def data(count: int = 120, classes: int = 4, width: int = 6, seed: int = 0, spread: float = 1.0) -> ProbeData:
    """Noisy clusters; every class occurs."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, count - classes)])
    return ProbeData(centres[labels] + spread * generator.normal(size=(count, width)), labels)


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_the_gradient_of_the_stated_objective_is_zero(class_weight):
    train, C = data(), 0.7
    probe = fit_probe(train, 4, C, features="unit", class_weight=class_weight, max_iter=5000)
    x = train.features / np.linalg.norm(train.features, axis=1, keepdims=True)
    counts = np.bincount(train.labels)
    weights = np.ones(len(x)) if class_weight == "none" else len(x) / (4 * counts[train.labels])
    error = np.exp(probe.log_probabilities(train.features).astype(np.float64))
    error[np.arange(len(x)), train.labels] -= 1
    error *= weights[:, None]
    gradient = error.T @ x + probe.model[-1].coef_ / C
    assert np.abs(gradient).max() < 0.02
    assert np.abs(error.sum(axis=0)).max() < 0.02  # the intercept is not penalised
    assert probe.converged


def test_standard_features_are_those_of_the_training_images():
    train, test = data(), data(seed=1)
    scaler = StandardScaler().fit(train.features)
    other = LogisticRegression(C=2.0, max_iter=1000).fit(scaler.transform(train.features), train.labels)
    found = fit_probe(train, 4, 2.0, features="standard").log_probabilities(test.features)
    wanted = other.predict_log_proba(scaler.transform(test.features))
    np.testing.assert_allclose(found, np.maximum(wanted, np.log(UNSEEN)), atol=1e-5)


def test_two_classes_and_raw_features():
    train = data(classes=2)
    other = LogisticRegression(C=1.0, max_iter=1000).fit(train.features, train.labels)
    found = fit_probe(train, 2, 1.0, features="raw").log_probabilities(train.features)
    np.testing.assert_allclose(found, other.predict_log_proba(train.features), atol=1e-5)


def test_a_class_without_images_is_never_predicted():
    train = data()
    probe = fit_probe(train.take(train.labels != 2), 5, 1.0)
    found = probe.log_probabilities(train.features)
    assert found.shape == (120, 5)
    np.testing.assert_allclose(found[:, [2, 4]], np.log(UNSEEN), rtol=1e-6)
    assert set(found.argmax(axis=1)) <= {0, 1, 3}


def test_one_class_is_no_problem_to_solve():
    train = data()
    with pytest.raises(UserError, match="two classes"):
        fit_probe(train.take(train.labels == 1), 4, 1.0)


def test_classes_that_lie_apart_are_all_told_apart():
    fitted = fit_chosen(data(spread=0.05), data(seed=1, spread=0.05), 4, LinearProbeOptions())
    test = data(seed=2, spread=0.05)
    assert (fitted.probe.log_probabilities(test.features).argmax(axis=1) == test.labels).all()


def test_too_few_steps_are_told():
    assert not fit_probe(data(), 4, 1e5, max_iter=2).converged


@pytest.mark.parametrize("peak", range(97))
def test_the_search_finds_the_top_of_every_hill_in_fifteen_looks(peak):
    asked = []

    def score(place: int) -> float:
        asked.append(place)
        return -abs(place - peak)

    best, tried = refined_search(score, len(GRID), FIRST_STEP)
    assert best == peak
    assert len(asked) == len(set(asked)) == len(tried) <= 15
    assert list(tried) == sorted(tried)


def test_equally_good_strengths_give_the_strongest():
    best, _ = refined_search(lambda place: 1.0, 97, 16)
    assert best == 0
    assert (GRID[0], GRID[48], GRID[96]) == pytest.approx((1e-6, 1.0, 1e6))


def test_C_is_chosen_on_validation_images_and_the_probe_is_fitted_on_training_images():
    train, validation = data(spread=2.0), data(200, seed=1, spread=2.0)
    fitted = fit_chosen(train, validation, 4, LinearProbeOptions())
    best = max(fitted.validation.values())
    assert fitted.validation[fitted.C] == best
    assert fitted.images == len(train.labels)
    again = fit_probe(train, 4, fitted.C).log_probabilities(validation.features)
    np.testing.assert_array_equal(again, fitted.probe.log_probabilities(validation.features))
    assert chosen_score(again.argmax(axis=1), validation.labels, "balanced") == best


def test_refit_takes_both_parts_and_a_given_C_chooses_nothing():
    train, validation = data(), data(80, seed=1)
    both = ProbeData(
        np.concatenate([train.features, validation.features]), np.concatenate([train.labels, validation.labels])
    )
    fitted = fit_chosen(train, validation, 4, LinearProbeOptions(refit="train+validation"))
    wanted = fit_probe(both, 4, fitted.C).log_probabilities(train.features)
    np.testing.assert_array_equal(fitted.probe.log_probabilities(train.features), wanted)
    assert fitted.images == 200
    given = fit_chosen(train, None, 4, LinearProbeOptions(C=3.0))
    assert (given.C, given.validation) == (3.0, {})


def test_choices_maximise_what_they_say():
    predictions, labels = np.array([0, 0, 0, 1, 0]), np.array([0, 0, 0, 1, 1])
    assert chosen_score(predictions, labels, "accuracy") == pytest.approx(0.8)
    assert chosen_score(predictions, labels, "balanced") == pytest.approx(0.75)


def test_class_mean_accuracy_is_scikit_learns_balanced_accuracy():
    generator = np.random.default_rng(0)
    labels, predictions = generator.integers(0, 5, 60), generator.integers(0, 5, 60)
    labels[labels == 3] = 4
    with np.errstate(invalid="ignore"):
        wanted = np.mean([(predictions[labels == c] == c).mean() for c in np.unique(labels)])
    assert class_mean_accuracy(predictions, labels) == pytest.approx(wanted)
    labels = generator.integers(0, 5, 200)
    predictions = generator.integers(0, 5, 200)
    assert class_mean_accuracy(predictions, labels) == pytest.approx(balanced_accuracy_score(labels, predictions))


def test_shots_are_so_many_of_each_class_and_nested():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 3], [3, 30, 12]))
    draws = {shots: draw_shots(labels, shots, 7, "train") for shots in (1, 5, 20, 0)}
    for shots, rows in draws.items():
        most = shots or 99
        assert np.bincount(labels[rows], minlength=4).tolist() == [min(3, most), min(30, most), 0, min(12, most)]
        assert (np.diff(rows) > 0).all()
    assert set(draws[1]) < set(draws[5]) < set(draws[20]) < set(draws[0])
    assert np.array_equal(draws[5], draw_shots(labels, 5, 7, "train"))
    assert not np.array_equal(draws[5], draw_shots(labels, 5, 8, "train"))
    assert not np.array_equal(draws[5], draw_shots(labels, 5, 7, "validation"))


def test_an_extra_is_named_only_for_what_it_brings():
    package = Path(hf_vlr.__file__).parent
    hints = [
        (file.name, found[1])
        for folder in ("protocols", "detection")
        for file in (package / folder).glob("*.py")
        for found in re.finditer(r"needs? ([^:\n]+): pip install .hf_vlr\[eval\]", file.read_text(encoding="utf-8"))
    ]
    extras = tomllib.loads((package.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    brought = {re.match(r"[\w-]+", line)[0] for line in extras["eval"]}
    assert ("finetuning.py", "torchmetrics and pycocotools") in hints
    assert {name for _, names in hints for name in names.split(" and ")} <= brought


def test_the_table_over_seeds():
    settings = LinearProbeOptions(shots=[5, 0], seeds=[0, 1])
    assert trials(settings) == [("5-shot, seed 0", 5, 0), ("5-shot, seed 1", 5, 1), ("linear probe", 0, 0)]
    numbers = {
        "5-shot, seed 0": {"accuracy": 0.5, "balanced_accuracy": 0.4},
        "5-shot, seed 1": {"accuracy": 0.7, "balanced_accuracy": 0.4},
        "linear probe": {"accuracy": 0.9, "balanced_accuracy": 0.8},
    }
    rows = shot_rows(over_seeds(numbers, settings), 2)
    assert rows[1:] == [("5-shot", "60.0 ± 14.1", "40.0 ± 0.0"), ("all images", "90.0", "80.0")]
