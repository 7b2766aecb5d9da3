import csv
import json

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from hf_vlr.errors import UserError
from hf_vlr.evaluation import outcome as outcome_module
from hf_vlr.evaluation.metrics import (
    confusion_matrix,
    evaluate_predictions,
    per_class_table,
    write_per_class_csv,
    write_text,
)

CLASSES = 12
COUNTS = np.array([300, 200, 101, 100, 60, 40, 21, 20, 19, 8, 3, 1])


def drawn(num_images=400, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(CLASSES), generator.integers(0, CLASSES, num_images - CLASSES)])
    scores = generator.normal(size=(num_images, CLASSES))
    scores[np.arange(num_images), labels] += generator.normal(1.5, 1.0, num_images)
    return scores, labels


def leaves(tree, place=()):
    """Every number of a tree by its place."""
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {key: leaf for name, value in items for key, leaf in leaves(value, (*place, name)).items()}
    return {} if tree is None or isinstance(tree, str) else {place: tree}


def softmax(scores):
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_agrees_with_scikit_learn():
    scores, labels = drawn()
    result = evaluate_predictions(scores, labels, COUNTS)
    predictions = scores.argmax(axis=1)
    assert result["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, predictions), rel=1e-12)
    assert result["balanced_accuracy"] == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(labels, predictions), rel=1e-12
    )
    assert result["macro_f1"] == pytest.approx(
        sklearn_metrics.f1_score(labels, predictions, average="macro"), rel=1e-12
    )
    assert result["top5"] == pytest.approx(sklearn_metrics.top_k_accuracy_score(labels, scores, k=5), rel=1e-12)
    assert result["nll"] == pytest.approx(sklearn_metrics.log_loss(labels, softmax(scores)), rel=1e-12)
    confusion = confusion_matrix(predictions, labels, CLASSES)
    assert (confusion == sklearn_metrics.confusion_matrix(labels, predictions)).all()
    recall = np.diag(confusion) / confusion.sum(axis=1)
    assert result["worst_class"] == recall.min() == recall[result["worst_class_label"]]
    assert result["groups"]["few"]["accuracy"] == pytest.approx(recall[8:].mean(), rel=1e-12)
    assert result["groups"]["few"]["classes"] == 4
    assert sum(group["images"] for group in result["groups"].values()) == len(labels)


def test_means_of_class_accuracies_by_hand():
    predictions = np.array([0, 0, 0, 1, 1, 0, 0, 2])
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    result = evaluate_predictions(predictions, labels, [200, 50, 5])
    rates = [0.75, 0.5, 0.5]
    assert result["harmonic_mean"] == pytest.approx(3 / sum(1 / rate for rate in rates))
    assert result["geometric_mean"] == pytest.approx((0.75 * 0.5 * 0.5) ** (1 / 3))
    assert (result["worst_class"], result["worst_class_label"]) == (0.5, 1)
    assert [result["groups"][name]["accuracy"] for name in ("many", "medium", "few")] == rates
    assert result["top5"] is result["nll"] is result["ece"] is None


def test_a_class_that_is_never_right_does_not_erase_the_means():
    result = evaluate_predictions(np.array([0, 1, 1]), np.array([0, 1, 2]), [5, 5, 5])
    assert result["harmonic_mean"] == pytest.approx(3 / (2 + 1e5))
    assert result["geometric_mean"] == pytest.approx(1e-5 ** (1 / 3))


def test_classes_without_test_images_leave_the_means():
    scores, labels = drawn()
    some = np.isin(labels, [0, 1, 5, 6])
    result = evaluate_predictions(scores[some], labels[some], COUNTS)
    right = (scores.argmax(axis=1) == labels)[some]
    by_class = [right[labels[some] == c].mean() for c in (0, 1, 5, 6)]
    assert result["classes_without_test_images"] == CLASSES - 4
    assert result["balanced_accuracy"] == pytest.approx(np.mean(by_class))
    nothing = dict.fromkeys(("accuracy", "nll", "brier", "ece", "share", "predicted_share"))
    assert result["groups"]["few"] == nothing | {"classes": 0, "images": 0}
    assert result["reliability"]["few"] == {"confidence": [None] * 15, "accuracy": [None] * 15, "images": [0] * 15}
    assert result["tail_to_head"] is None
    assert result["group_confusion"]["counts"][2] == [0, 0, 0]
    assert result["groups"]["many"]["classes"] == 2
    expected = sklearn_metrics.f1_score(labels[some], scores[some].argmax(axis=1), average="macro", labels=[0, 1, 5, 6])
    assert result["macro_f1"] == pytest.approx(expected)


def test_averaging_by_image_and_by_class_differ():
    predictions, labels, counts = np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1]), [5, 4]
    assert evaluate_predictions(predictions, labels, counts, "oltr")["groups"]["few"]["accuracy"] == 0.5
    assert evaluate_predictions(predictions, labels, counts, "vl-ltr")["groups"]["few"]["accuracy"] == 0.75


def test_logits_log_probabilities_and_any_offset_give_the_same_numbers():
    scores, labels = drawn()
    plain = evaluate_predictions(scores, labels, COUNTS)
    for same in (np.log(softmax(scores)), scores + 1000.0, scores - 1e4):
        other = evaluate_predictions(same, labels, COUNTS)
        assert other["accuracy"] == plain["accuracy"]
        assert other["nll"] == pytest.approx(plain["nll"], rel=1e-9)
        assert other["ece"] == pytest.approx(plain["ece"], rel=1e-9)
    far = evaluate_predictions(scores * 1e4, labels, COUNTS)
    assert np.isfinite(far["nll"]) and far["accuracy"] == plain["accuracy"]


def test_permutations_of_images_and_of_classes_change_nothing():
    scores, labels = drawn()
    plain = evaluate_predictions(scores, labels, COUNTS)
    images = np.random.default_rng(1).permutation(len(labels))
    shuffled = evaluate_predictions(scores[images], labels[images], COUNTS)
    assert leaves(shuffled) == pytest.approx(leaves(plain), rel=1e-12)
    classes = np.random.default_rng(2).permutation(CLASSES)
    moved = evaluate_predictions(scores[:, classes], np.argsort(classes)[labels], COUNTS[classes])
    assert classes[moved.pop("worst_class_label")] == plain.pop("worst_class_label")
    assert leaves(moved) == pytest.approx(leaves(plain), rel=1e-12)


def test_chunks_do_not_change_the_result(monkeypatch):
    scores, labels = drawn()
    whole = evaluate_predictions(scores, labels, COUNTS)
    monkeypatch.setattr(outcome_module, "_CHUNK_NUMBERS", 7 * CLASSES)
    assert evaluate_predictions(scores, labels, COUNTS) == whole


def test_ties_go_to_the_lower_index_everywhere():
    labels = np.arange(CLASSES)
    result = evaluate_predictions(np.zeros((CLASSES, CLASSES)), labels, COUNTS)
    assert result["accuracy"] == 1 / CLASSES
    assert result["top5"] == 5 / CLASSES
    assert result["nll"] == pytest.approx(np.log(CLASSES))


def test_top5_needs_more_than_five_classes():
    scores, labels = drawn()
    few = labels < 5
    assert evaluate_predictions(scores[few, :5], labels[few], COUNTS[:5])["top5"] is None


def test_predictions_and_scores_agree_and_both_are_json():
    scores, labels = drawn()
    with_scores = evaluate_predictions(scores, labels, COUNTS)
    with_predictions = evaluate_predictions(scores.argmax(axis=1), labels, COUNTS)
    for name in ("top5", "nll", "brier", "ece", "mce", "reliability"):
        assert with_predictions[name] is None
        with_scores[name] = None
    for group in with_scores["groups"].values():
        group |= dict.fromkeys(("nll", "brier", "ece"))
    assert with_predictions == with_scores
    full = evaluate_predictions(scores, labels, COUNTS, "vl-ltr", resamples=50)
    assert json.loads(json.dumps(full, allow_nan=False)) == full


def test_the_numbers_of_a_group_are_those_of_its_images():
    scores, labels = drawn(seed=5)
    groups = evaluate_predictions(scores, labels, COUNTS)["groups"]
    shots = np.select([COUNTS > 100, COUNTS < 20], [0, 2], 1)
    for number, name in enumerate(("many", "medium", "few")):
        inside = shots[labels] == number
        alone = evaluate_predictions(scores[inside], labels[inside], COUNTS)
        for key in ("nll", "brier", "ece"):
            assert groups[name][key] == pytest.approx(alone[key], rel=1e-12)
        assert groups[name]["accuracy"] == pytest.approx(alone["balanced_accuracy"], rel=1e-12)
        assert groups[name]["share"] == pytest.approx(inside.mean())
        assert groups[name]["predicted_share"] == pytest.approx((shots[scores.argmax(axis=1)] == number).mean())


def test_worst_tenth_by_hand():
    # 21 tested classes of 22, ten images each, class c right c times in ten: the three worst are 0, 0.1 and 0.2
    labels = np.repeat(np.arange(21), 10)
    right = np.tile(np.arange(10), 21) < np.minimum(labels, 10)
    result = evaluate_predictions(np.where(right, labels, 21), labels, np.full(22, 5))
    assert result["worst_tenth"] == pytest.approx((0 + 0.1 + 0.2) / 3)
    assert evaluate_predictions(np.array([0, 0]), np.array([0, 1]), [5, 5])["worst_tenth"] == 0.0


def test_one_image_and_one_class():
    result = evaluate_predictions(np.array([[1.0, 0.0]]), [0], [5, 500], resamples=20)
    assert result["accuracy"] == result["balanced_accuracy"] == result["worst_tenth"] == result["macro_f1"] == 1
    assert result["brier"] == pytest.approx(2 * (1 / (1 + np.e)) ** 2)
    assert set(result["shifted_priors"].values()) == {1.0}
    assert result["intervals"]["accuracy"] == result["intervals"]["groups"]["few"] == [1, 1]
    assert result["intervals"]["groups"]["many"] is None
    alone = evaluate_predictions(np.zeros((3, 1)), [0, 0, 0], [7])
    assert (alone["accuracy"], alone["nll"], alone["brier"], alone["ece"]) == (1, 0, 0, 0)


def test_intervals_hold_the_numbers_and_follow_the_averaging():
    scores, labels = drawn()
    by_class = evaluate_predictions(scores, labels, COUNTS, "custom:99,21", resamples=400)
    by_image = evaluate_predictions(scores, labels, COUNTS, "vl-ltr", resamples=400)
    for result in (by_class, by_image):
        intervals = result["intervals"]
        assert (intervals["confidence"], intervals["resamples"]) == (0.95, 400)
        for name in ("accuracy", "balanced_accuracy"):
            assert intervals[name][0] < result[name] < intervals[name][1]
        for name, group in result["groups"].items():
            assert intervals["groups"][name][0] < group["accuracy"] < intervals["groups"][name][1]
    assert by_class["intervals"]["groups"]["few"] != by_image["intervals"]["groups"]["few"]
    assert "intervals" not in evaluate_predictions(scores, labels, COUNTS)


def test_per_class_table_adds_up(tmp_path):
    scores, labels = drawn()
    kept = labels != 4
    scores, labels = scores[kept], labels[kept]
    names = [f"class, {c} \N{LATIN SMALL LETTER E WITH ACUTE}" for c in range(CLASSES)]
    rows = per_class_table(scores, labels, COUNTS, names)
    result = evaluate_predictions(scores, labels, COUNTS)
    assert [row["label"] for row in rows] == list(range(CLASSES))
    assert sum(row["correct"] for row in rows) / len(labels) == result["accuracy"]
    assert rows[4]["accuracy"] is None and rows[4]["mean_confidence"] is None and rows[4]["test_images"] == 0
    tested = [row for row in rows if row["test_images"]]
    assert np.mean([row["accuracy"] for row in tested]) == pytest.approx(result["balanced_accuracy"])
    assert rows[7]["mean_confidence"] == pytest.approx(softmax(scores).max(axis=1)[labels == 7].mean())
    assert [rows[c]["shot"] for c in (0, 3, 7, 8)] == ["many", "medium", "medium", "few"]

    path = tmp_path / "new" / "per_class.csv"
    write_per_class_csv(path, rows)
    with path.open(encoding="utf-8", newline="") as lines:
        back = list(csv.DictReader(lines))
    assert [row["class_name"] for row in back] == names
    assert [float(row["accuracy"]) for row in back if row["accuracy"]] == [row["accuracy"] for row in tested]
    assert back[4]["accuracy"] == ""
    assert [file.name for file in path.parent.iterdir()] == ["per_class.csv"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((2, 3)), [0, 3], "label 3 of image 1 is outside 0..2"),
        (np.zeros((2, 3)), [-1, 0], "label -1 of image 0"),
        (np.zeros((2, 3)), [0.0, 1.0], "labels must be one integer"),
        (np.zeros((2, 3)), [0], "2 predictions for 1 labels"),
        (np.array([0, 7]), [0, 1], "prediction 7 of image 1"),
        (np.array([0.5, 0.5]), [0, 1], "predictions must be one integer"),
        (np.array([[0, 0, 0], [0, np.nan, 0]]), [0, 1], "scores of image 1 are NaN"),
        (np.array([[0, 0, 0], [0, np.inf, 0]]), [0, 1], "scores of image 1 are NaN or infinite"),
        (np.array([[0, -np.inf, 0], [0, 0, 0]]), [0, 1], "scores of image 0 are NaN or infinite.*mask"),
        (np.array([[0j, 0, 0], [0, 0, 0]]), [0, 1], "scores are complex128"),
        (np.array([["a", "b", "c"]]), [0], "scores are <U1"),
        (np.zeros((2, 4)), [0, 1], "4 columns for 3 classes"),
        (np.zeros((2, 3, 1)), [0, 1], "scores have shape"),
        (np.zeros((0, 3)), [], "no test images"),
    ],
)
def test_bad_input_is_named(scores, labels, message):
    with pytest.raises(UserError, match=message):
        evaluate_predictions(scores, labels, [3, 2, 1])


def test_wrong_number_of_names():
    with pytest.raises(UserError, match="2 class names for 3 classes"):
        per_class_table(np.zeros((1, 3)), [0], [3, 2, 1], ["a", "b"])
