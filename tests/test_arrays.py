"""Anybody's arrays as predictions: every format, and one line for everything that does not fit."""

import numpy as np
import pytest

from hf_vlr.errors import UserError
from hf_vlr.evaluation.arrays import read_array, read_arrays

LABELS = np.array([0, 2, 1, 1, 0])
COUNTS = np.array([90, 30, 2])
LOGITS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


@pytest.fixture
def files(tmp_path):
    np.save(tmp_path / "logits.npy", LOGITS)
    np.save(tmp_path / "labels.npy", LABELS)
    np.save(tmp_path / "counts.npy", COUNTS)
    return tmp_path


def read(files, logits="logits.npy", labels="labels.npy", counts="counts.npy", **more):
    return read_arrays(files / logits, files / labels, files / counts, **more)


def test_logits_are_mapped_and_the_rest_is_read(files):
    found = read(files, predictor="mine")
    assert isinstance(found.scores["mine"], np.memmap)
    assert not found.scores["mine"].flags.writeable
    np.testing.assert_array_equal(found.scores["mine"], LOGITS)
    assert found.labels.tolist() == LABELS.tolist()
    assert found.train_counts.tolist() == COUNTS.tolist()
    assert found.class_names == ("class 0", "class 1", "class 2")
    assert set(found.protocol.values()) == {None}


@pytest.mark.parametrize("kind", ["csv", "txt", "npz", "float", "heading", "column"])
def test_labels_and_counts_come_in_many_formats(kind, files):
    name = {"npz": "l.npz", "float": "l.npy", "txt": "l.txt"}.get(kind, "l.csv")
    if kind == "npz":
        np.savez(files / name, labels=LABELS, train_counts=COUNTS)
        (files / "c.npz").write_bytes((files / name).read_bytes())
        assert read(files, labels=name, counts="c.npz").train_counts.tolist() == COUNTS.tolist()
    elif kind == "float":
        np.save(files / name, LABELS.astype(np.float64))
    elif kind == "column":
        np.save(files / "l.npy", LABELS[:, None])
        name = "l.npy"
    else:
        heading = "label\n" if kind == "heading" else ""
        (files / name).write_text(heading + "\n".join(map(str, LABELS)) + "\n")
    assert read(files, labels=name).labels.tolist() == LABELS.tolist()


def test_one_line_of_commas_is_a_list(files):
    (files / "c.csv").write_text("90, 30, 2")
    assert read(files, counts="c.csv").train_counts.tolist() == [90, 30, 2]
    (files / "logits.csv").write_text("\n".join(",".join(map(str, row)) for row in LOGITS.tolist()))
    np.testing.assert_allclose(read(files, "logits.csv").scores["logits"], LOGITS)


def test_predicted_classes_are_predictions(files):
    np.save(files / "predicted.npy", LABELS.astype(np.int32))
    assert read(files, "predicted.npy").scores["logits"].ndim == 1


def test_names_are_the_lines_of_a_file(files):
    (files / "names.txt").write_text("fox\nwölf\nlynx\n", encoding="utf-8")
    assert read(files, class_names=files / "names.txt").class_names == ("fox", "wölf", "lynx")


@pytest.mark.parametrize(
    ("what", "array", "said"),
    [
        ("labels", np.array([0, 1]), "has 5 images, the labels have 2"),
        ("labels", np.array([0, 3, 1, 1, 0]), "labels run from 0 to 3"),
        ("labels", np.array([0, -1, 1, 1, 0]), "labels run from -1 to 1"),
        ("labels", np.array([0, 0.5, 1, 1, 0]), "labels are whole numbers"),
        ("labels", np.array([0, np.nan, 1, 1, 0]), "labels are whole numbers"),
        ("labels", np.zeros((5, 2)), "labels are one column"),
        ("labels", np.array(list("abcde")), "labels are numbers, not <U1"),
        ("counts", np.array([1, 2]), "has 3 classes, the train counts have 2"),
        ("counts", np.array([1, -2, 3]), "train counts hold -2"),
        ("logits", np.zeros((5, 3, 1)), r"not \(5, 3, 1\)"),
        ("logits", np.zeros(5), "float64 per image is neither logits nor predicted classes"),
        ("logits", np.array([{}] * 5, dtype=object), "cannot be read as logits: Array can.t be memory-mapped"),
    ],
)
def test_what_does_not_fit_is_one_line(what, array, said, files):
    np.save(files / f"{what}.npy", array)
    with pytest.raises(UserError, match=said) as caught:
        read(files)
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_one_line(files):
    (files / "names.txt").write_text("fox\n")
    with pytest.raises(UserError, match="there are 1 class names and 3 train counts"):
        read(files, class_names=files / "names.txt")
    with pytest.raises(UserError, match="no such file of logits"):
        read(files, "nothing.npy")
    (files / "broken.npy").write_bytes(b"\x93NUMPY\x01\x00broken")
    with pytest.raises(UserError, match="cannot be read as logits"):
        read(files, "broken.npy")
    (files / "x.pkl").write_bytes(b"")
    with pytest.raises(UserError, match=r"labels come as \.npy, \.npz, \.csv, \.txt"):
        read(files, labels="x.pkl")
    np.savez(files / "two.npz", a=LABELS, b=LABELS)
    with pytest.raises(UserError, match="holds a, b; call the labels 'labels'"):
        read_array(files / "two.npz", "labels")
    (files / "words.csv").write_text("label\nfox\n")
    with pytest.raises(UserError, match="cannot be read as labels"):
        read(files, labels="words.csv")


@pytest.mark.parametrize("text", ["", "\n\n", "label\n", "label\n \n"])
def test_an_empty_file_is_one_line_and_no_warning(text, files, recwarn):
    (files / "empty.csv").write_text(text)
    with pytest.raises(UserError, match=r"empty\.csv cannot be read as labels: it holds no numbers"):
        read(files, labels="empty.csv")
    assert not recwarn.list
