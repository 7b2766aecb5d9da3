"""`predictions.npz`: what is read is whole and fits, and everything else is one line."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hf_vlr.errors import UserError
from hf_vlr.evaluation.arrays import read_arrays
from hf_vlr.evaluation.predictions import Predictions, read_predictions, write_predictions

RNG = np.random.default_rng(0)
ENTRIES = {
    "labels": np.arange(6) % 3,
    "train_counts": np.array([30, 10, 2]),
    "class_names": np.array(["fox", "wolf", "lynx"]),
    "rows": np.array([f"x:{index}" for index in range(6)]),
    "visual": RNG.normal(size=(6, 3)).astype(np.float32),
}


def written(folder: Path, **changes) -> Path:
    np.savez(folder / "predictions.npz", **(ENTRIES | changes))
    return folder


def test_what_was_written_is_read(tmp_path):
    made = Predictions({"a/b": ENTRIES["visual"], "mine": ENTRIES["labels"]}, *list(ENTRIES.values())[:2], tuple("abc"))
    write_predictions(tmp_path / "deep" / "predictions.npz", made)
    found = read_predictions(tmp_path / "deep")
    assert list(found.scores) == ["a/b", "mine"]
    np.testing.assert_array_equal(found.scores["a/b"], ENTRIES["visual"])
    np.testing.assert_array_equal(found.scores["mine"], ENTRIES["labels"])
    assert (found.class_names, found.rows, found.protocol) == (("a", "b", "c"), None, {})


@pytest.mark.parametrize("name", ["labels", "train_counts", "class_names", "rows", "file", "allow_pickle", ""])
def test_a_predictor_cannot_take_the_place_of_another_entry(name, tmp_path):
    made = Predictions({name: ENTRIES["visual"]}, ENTRIES["labels"], ENTRIES["train_counts"], tuple("abc"))
    with pytest.raises(UserError, match=f"cannot be called '{name}'"):
        write_predictions(tmp_path / "predictions.npz", made)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=f"cannot be called '{name}'"):
        read_arrays("l.npy", "y.npy", "c.npy", predictor=name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": np.array(1)}, r"labels are int64 \(\)"),
        ({"labels": np.zeros(6)}, "labels are float64"),
        ({"labels": np.arange(6)}, "labels run from 0 to 5"),
        ({"labels": np.array([0, -1, 1, 1, 1, 1])}, "labels run from -1"),
        ({"labels": np.array([None] * 6)}, "cannot be read as predictions"),
        ({"train_counts": np.array(30)}, r"train_counts are int64 \(\)"),
        ({"train_counts": np.array([30, -1, 2])}, "train_counts hold -1"),
        ({"class_names": np.array(["fox", "wolf"])}, "there are 3 classes"),
        ({"class_names": np.array([1, 2, 3])}, "class_names are int64"),
        ({"rows": np.array(["x:0"])}, "there are 6 images"),
        ({"rows": np.array([["x"]] * 6)}, r"rows are <U1 \(6, 1\)"),
    ],
)
def test_entries_that_do_not_fit_are_one_line(changes, said, tmp_path):
    with pytest.raises(UserError, match=said) as caught:
        read_predictions(written(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (np.zeros((5, 3)), r"'visual' is float64 \(5, 3\), neither numbers \(6, 3\) nor predicted classes \(6,\)"),
        (np.zeros((6, 4)), "neither numbers"),
        (np.zeros(6), "neither numbers"),
        (np.array(["a"] * 6), "neither numbers"),
        (np.array([None] * 6), "Object arrays cannot be loaded"),
    ],
)
def test_scores_that_do_not_fit_are_one_line_when_they_are_read(scores, said, tmp_path):
    found = read_predictions(written(tmp_path, visual=scores))
    with pytest.raises(UserError, match=said):
        found.scores["visual"]


def test_damaged_scores_are_one_line(tmp_path):
    path = written(tmp_path) / "predictions.npz"
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("visual.npy").header_offset
    data = bytearray(path.read_bytes())
    data[place + 200] ^= 0xFF
    path.write_bytes(data)
    found = read_predictions(tmp_path)
    with pytest.raises(UserError, match="cannot be read as predictions: Bad CRC-32"):
        found.scores["visual"]


@pytest.mark.parametrize("protocol", [None, ["split"], 3])
def test_a_protocol_that_is_none_is_one_line(protocol, tmp_path):
    (written(tmp_path) / "metrics.json").write_text(json.dumps({"protocol": protocol}))
    with pytest.raises(UserError, match=r"metrics\.json is no metrics file"):
        read_predictions(tmp_path)
