"""What an evaluation leaves behind, in which order, and what its images are called."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from hf_vlr.data.images import SelectedImages
from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.evaluation.document import PROTOCOL_FIELDS
from hf_vlr.evaluation.explanation import main_predictor, make_examples
from hf_vlr.evaluation.image_rows import image_rows
from hf_vlr.evaluation.predictions import Predictions, read_predictions
from hf_vlr.evaluation.record import record
from hf_vlr.evaluation.table import WIDE
from hf_vlr.training.options import EvalOptions

RNG = np.random.default_rng(0)
LABELS = np.repeat(np.arange(4), 5)
OPTIONS = EvalOptions(resamples=20, report=False)


def predictions(**changes) -> Predictions:
    scores = {name: RNG.normal(size=(20, 4)).astype(np.float32) for name in ("visual", "fused", "language")}
    made = Predictions(
        scores,
        LABELS,
        np.array([200, 50, 10, 3]),
        ("a", "b", "c", "d"),
        dict.fromkeys(PROTOCOL_FIELDS) | {"split": "test"},
        np.array([f"x:{index}" for index in range(20)]),
    )
    return replace(made, **changes)


def source(images=None) -> ImageSource:
    pictures = [Image.new("RGB", (300, 200), (index * 10, 0, 0)) for index in range(20)]
    return ImageSource("mine", "test", images or pictures, LABELS, [None] * 20, list("abcd"))


def test_a_folder_holds_everything_and_reads_back(tmp_path, capsys):
    made = predictions()
    document = record(made, tmp_path / "deep" / "er", OPTIONS)
    said = capsys.readouterr().out
    assert said.startswith("test: 20 images\n")
    assert "fused" in said
    folder = tmp_path / "deep" / "er"
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "per_class.csv", "predictions.npz"]
    assert json.loads((folder / "metrics.json").read_text())["predictors"] == document["predictors"]
    assert len((folder / "per_class.csv").read_text().splitlines()) == 1 + 3 * 4
    again = read_predictions(folder)
    assert again.rows.tolist() == made.rows.tolist()
    for name, values in made.scores.items():
        np.testing.assert_array_equal(again.scores[name], values)


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(predictions(), None, EvalOptions(resamples=0))
    assert list(tmp_path.iterdir()) == []


def test_the_report_is_one_file_with_the_examples_in_it(tmp_path):
    made = predictions()
    examples = make_examples(made, source(), "oltr", lambda rows, classes: [((0.7, "it hunts at dusk"),)] * len(rows))
    record(made, tmp_path, EvalOptions(resamples=0), examples, reference=predictions())
    page = (tmp_path / "report.html").read_text()
    assert "it hunts at dusk" in page
    assert "data:image/" in page


def test_metrics_are_last_so_that_they_mean_complete(tmp_path):
    (tmp_path / "per_class.csv").mkdir()
    with pytest.raises(UserError, match=r"metrics\.json cannot be written .*; mend that and evaluate again"):
        record(predictions(), tmp_path, OPTIONS)
    assert (tmp_path / "predictions.npz").is_file()
    assert not (tmp_path / "metrics.json").exists()


def test_kept_predictions_are_not_touched(tmp_path):
    record(predictions(), tmp_path, OPTIONS)
    before = (tmp_path / "predictions.npz").stat().st_mtime_ns
    record(read_predictions(tmp_path), tmp_path, replace(OPTIONS, rule="custom:100,20"), keep_predictions=True)
    assert (tmp_path / "predictions.npz").stat().st_mtime_ns == before
    assert json.loads((tmp_path / "metrics.json").read_text())["protocol"]["rule"]["name"].startswith("custom")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_counts": np.ones(5, dtype=np.int64), "class_names": tuple("abcde")}, "knows 5 classes"),
        ({"labels": LABELS[:-1]}, "has 19 images"),
        ({"labels": LABELS[::-1]}, "other labels"),
        ({"rows": np.array(["y"] * 20)}, "other images with the same labels"),
    ],
)
def test_a_reference_on_other_images_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        record(predictions(), None, OPTIONS, reference=predictions(**changes))


def test_the_mixed_convention_is_a_row_of_its_own_and_says_so(capsys):
    document = record(predictions(), None, replace(OPTIONS, mixed_convention=True))
    mixed = [name for name, entry in document["predictors"].items() if entry.get("mixed")]
    assert len(mixed) == 1
    assert document["predictors"][mixed[0]]["note"]
    assert mixed[0] in capsys.readouterr().out


def test_examples_say_what_was_predicted_and_how_surely():
    made = predictions()
    asked = []

    def sentences(rows: ImageSource, classes: list[int]) -> list:
        asked.extend(classes)
        return [((1.0, f"class {label}"),) for label in classes]

    examples = make_examples(made, source(), "oltr", sentences, count=6)
    assert len(examples) == 6
    probabilities = np.exp(made.scores["fused"])
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    for example, label in zip(examples, asked, strict=True):
        row = example.image.getpixel((0, 0))[0] // 10
        assert max(example.image.size) <= 160
        assert example.true == "abcd"[LABELS[row]]
        assert example.predicted == "abcd"[probabilities[row].argmax()] == "abcd"[label]
        assert example.confidence == pytest.approx(probabilities[row].max(), rel=1e-5)
        assert example.true_probability == pytest.approx(probabilities[row, LABELS[row]], rel=1e-5)
        assert example.shot == ("many", "medium", "few", "few")[LABELS[row]]
        assert example.sentences == ((1.0, f"class {label}"),)


def test_the_fusion_speaks_for_the_model():
    made = predictions()
    assert main_predictor(made) == "fused"
    assert main_predictor(made.with_scores({"visual": made.scores["visual"]})) == "visual"
    assert main_predictor(made.with_scores({"mine": made.scores["visual"]})) == "mine"
    # predicted classes have no confidence to show
    assert make_examples(made.with_scores({"mine": LABELS}), source(), "oltr") == []


def test_images_keep_their_names_in_a_fold_and_lose_them_in_another_set():
    whole = source(Named(20, "set"))
    names = image_rows(whole)
    assert len(set(names.tolist())) == 20
    part = whole.subset([7, 3]).subset([1, 0])
    assert isinstance(part.images, SelectedImages)
    assert image_rows(part).tolist() == [names[3], names[7]]
    assert not set(names.tolist()) & set(image_rows(source(Named(20, "other"))).tolist())


class Named(list):
    """Pictures that know who they are, and are not looked at."""

    def __init__(self, count: int, name: str) -> None:
        super().__init__([None] * count)
        self.name = name

    def identity(self) -> str:
        return self.name

    def __getitem__(self, index: int) -> None:
        raise AssertionError("a picture was decoded")


def test_a_failed_rerun_leaves_no_numbers_of_other_predictions(tmp_path):
    record(predictions(), tmp_path, OPTIONS)
    (tmp_path / "per_class.csv").unlink()
    (tmp_path / "per_class.csv").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        record(predictions(), tmp_path, OPTIONS)
    assert not (tmp_path / "metrics.json").exists()
    # those of predictions that stay hold their protocol
    (tmp_path / "per_class.csv").rmdir()
    record(predictions(), tmp_path, OPTIONS)
    (tmp_path / "per_class.csv").unlink()
    (tmp_path / "per_class.csv").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        record(read_predictions(tmp_path), tmp_path, OPTIONS, keep_predictions=True)
    assert read_predictions(tmp_path).protocol["split"] == "test"


def test_an_old_report_does_not_stay_beside_new_numbers(tmp_path):
    record(predictions(), tmp_path, EvalOptions(resamples=0))
    assert (tmp_path / "report.html").is_file()
    record(read_predictions(tmp_path), tmp_path, OPTIONS, keep_predictions=True)
    assert not (tmp_path / "report.html").exists()


def test_the_console_shows_every_number_at_the_terminals_width(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    record(predictions(), None, OPTIONS)
    said = capsys.readouterr().out
    assert all(column.title in said for column in WIDE)
    assert max(map(len, said.splitlines())) <= 60
    monkeypatch.setenv("COLUMNS", "300")
    record(predictions(), None, OPTIONS)
    assert capsys.readouterr().out.count("fused") == 1
