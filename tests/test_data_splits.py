import numpy as np
import pytest

from hf_vlr.data.splits import stratified_folds, stratified_holdout
from hf_vlr.errors import UserError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(12), [60, 31, 17, 9, 8, 7, 5, 3, 2, 1, 1, 1]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_folds_spread_every_class_and_the_whole_to_within_one_row(seed: int) -> None:
    fold = stratified_folds(LABELS, 4, seed)
    assert np.ptp(np.bincount(fold, minlength=4)) <= 1
    for label in range(12):
        assert np.ptp(np.bincount(fold[label == LABELS], minlength=4)) <= 1


def test_folds_depend_on_the_seed_alone() -> None:
    assert np.array_equal(stratified_folds(LABELS, 4, 5), stratified_folds(LABELS, 4, 5))
    assert not np.array_equal(stratified_folds(LABELS, 4, 5), stratified_folds(LABELS, 4, 6))


def test_single_rows_do_not_always_go_to_the_first_fold() -> None:
    labels = np.array([0, 1])
    assert len({tuple(stratified_folds(labels, 2, seed)) for seed in range(20)}) == 2


def test_copies_share_a_fold_and_the_folds_stay_balanced() -> None:
    groups = np.arange(len(LABELS))
    groups[1:60:2] = groups[0:60:2]
    fold = stratified_folds(LABELS, 4, 0, groups)
    assert all(len(set(fold[groups == group])) == 1 for group in groups)
    assert np.ptp(np.bincount(fold)) <= 4


def test_holdout_takes_its_share_and_empties_no_class() -> None:
    held_out = stratified_holdout(LABELS, 0.2, 0)
    taken = np.bincount(LABELS[held_out], minlength=12)
    assert taken.tolist() == [12, 6, 3, 2, 2, 1, 1, 1, 1, 0, 0, 0]
    assert np.array_equal(held_out, stratified_holdout(LABELS, 0.2, 0))
    assert not np.array_equal(held_out, stratified_holdout(LABELS, 0.2, 1))


def test_holdout_keeps_copies_together_and_never_empties_a_class() -> None:
    groups = np.arange(len(LABELS))
    groups[1:90:3] = groups[0:90:3]
    held_out = stratified_holdout(LABELS, 0.3, 0, groups)
    assert held_out.any()
    assert all(len(set(held_out[groups == group])) == 1 for group in groups)
    assert set(LABELS[~held_out]) == set(range(12))


def test_copies_in_two_classes_do_not_empty_the_second() -> None:
    labels = np.array([0, 0, 0, 0, 1])
    groups = np.array([0, 1, 2, 3, 3])
    for seed in range(10):
        assert 1 in labels[~stratified_holdout(labels, 0.5, seed, groups)]


def test_image_text_pairs_are_split_like_a_class() -> None:
    labels = np.repeat([-1, 0], [40, 20])
    held_out = stratified_holdout(labels, 0.1, 0)
    assert np.bincount(labels[held_out] + 1).tolist() == [4, 2]


@pytest.mark.parametrize("folds", [1, 200])
def test_a_senseless_number_of_folds_is_refused(folds: int) -> None:
    with pytest.raises(UserError, match="folds="):
        stratified_folds(LABELS, folds, 0)


def test_a_senseless_fraction_is_refused() -> None:
    with pytest.raises(UserError, match=r"validation_fraction=1\.0"):
        stratified_holdout(LABELS, 1.0, 0)
