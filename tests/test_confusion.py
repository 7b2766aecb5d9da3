"""Confusions of classes and of shot groups, against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from hf_vlr.data.shots import shot_groups
from hf_vlr.errors import UserError
from hf_vlr.evaluation.confusion import confusion_matrix, group_confusion, tail_to_head

COUNTS = np.array([300, 150, 60, 40, 12, 3])


def drawn(seed=0, rows=300):
    return np.random.default_rng(seed).integers(0, 6, size=(2, rows))


def test_agrees_with_scikit_learn():
    predictions, labels = drawn()
    expected = sklearn_metrics.confusion_matrix(labels, predictions, labels=range(7))
    np.testing.assert_array_equal(confusion_matrix(predictions, labels, 7), expected)


@pytest.mark.parametrize("rule", ["oltr", "vl-ltr", "custom:40,40"])
def test_groups_are_confused_as_their_classes_are(rule):
    predictions, labels = drawn(1)
    groups = shot_groups(COUNTS, rule)
    found = group_confusion(predictions, labels, groups)
    classes = confusion_matrix(predictions, labels, 6)
    for row, true in enumerate(found["groups"]):
        for column, predicted in enumerate(found["groups"]):
            assert found["counts"][row][column] == classes[np.ix_(groups[true], groups[predicted])].sum()


def test_where_the_errors_of_the_tail_go_by_hand():
    # few-shot images: one right, one to the other few-shot class, one to medium, two to many
    labels = np.array([4, 4, 5, 5, 5, 0, 2])
    predictions = np.array([4, 5, 2, 0, 1, 1, 0])
    assert tail_to_head(predictions, labels, shot_groups(COUNTS)) == pytest.approx(2 / 4)
    assert group_confusion(predictions, labels, shot_groups(COUNTS)) == {
        "groups": ["many", "medium", "few"],
        "counts": [[1, 0, 0], [1, 0, 0], [2, 1, 2]],
    }


def test_nothing_to_measure_is_none():
    labels = np.array([4, 0, 0])
    assert tail_to_head(np.array([4, 1, 4]), labels, shot_groups(COUNTS)) is None
    assert tail_to_head(np.array([0, 1]), np.array([1, 0]), shot_groups(COUNTS)) is None
    assert tail_to_head(np.array([1, 0]), np.array([0, 1]), shot_groups([5, 4])) is None
    assert tail_to_head(np.array([1]), np.array([4]), shot_groups(COUNTS)) == 1.0
    assert tail_to_head(np.array([3]), np.array([4]), shot_groups(COUNTS)) == 0.0


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [([6], [0], "prediction 6 of image 0"), ([0], [-1], "label -1"), ([0, 1], [0], "2 predictions for 1 labels")],
)
def test_bad_input_is_named(predictions, labels, message):
    with pytest.raises(UserError, match=message):
        confusion_matrix(predictions, labels, 6)
