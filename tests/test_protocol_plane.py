"""Features in the plane: what is drawn, and what its numbers mean."""

import csv
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import silhouette_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from hf_vlr.errors import UserError
from hf_vlr.protocols.contact_sheet import FRAME, GAP, LABEL, RIGHT, WRONG, Hit, SheetRow, sheet_page, write_sheet
from hf_vlr.protocols.options import ProjectionOptions
from hf_vlr.protocols.plane import centred, leave_one_out, separation, to_plane
from hf_vlr.protocols.projection import drawn_classes, drawn_images, texts_among_images
from hf_vlr.protocols.scatter import MARKS, Scatter, class_colours, write_coordinates, write_scatter


def clusters(classes: int = 3, each: int = 12, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), each)
    points = 8 * generator.normal(size=(classes, width))[labels] + generator.normal(size=(len(labels), width))
    return points.astype(np.float32), labels


def test_centred_features_have_no_common_direction():
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) + 3
    unit = centred(features, False)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(50))
    assert unit.mean(dim=0).norm() > 0.8
    moved = centred(features, True)
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(50))
    assert moved.mean(dim=0).norm() < 0.3


def test_tsne_keeps_clusters_together_and_repeats():
    points, labels = clusters()
    plane = to_plane(points, "tsne", 30.0, seed=3)
    assert plane.shape == (36, 2)
    assert separation(plane, labels)["knn_accuracy"] == 1.0
    np.testing.assert_array_equal(plane, to_plane(points, "tsne", 30.0, seed=3))


@pytest.mark.slow
def test_umap_keeps_clusters_together_and_repeats():
    pytest.importorskip("umap")
    points, labels = clusters()
    plane = to_plane(points, "umap", 10.0, seed=3)
    assert separation(plane, labels)["knn_accuracy"] == 1.0
    np.testing.assert_array_equal(plane, to_plane(points, "umap", 10.0, seed=3))


def test_a_missing_umap_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match="umap-learn: pip install umap-learn"):
        to_plane(clusters()[0], "umap", 10.0, seed=0)


def test_three_points_are_too_few():
    with pytest.raises(UserError, match="3 points are too few"):
        to_plane(np.zeros((3, 5), dtype=np.float32), "tsne", 30.0, seed=0)


def test_separation_is_that_of_scikit_learn():
    points, labels = np.random.default_rng(1).normal(size=(40, 3)), np.arange(40) % 2
    found = separation(points, labels)
    assert found["silhouette"] == pytest.approx(silhouette_score(points, labels))
    wanted = cross_val_predict(KNeighborsClassifier(9), points, labels, cv=LeaveOneOut())
    # an odd number of neighbours of two classes has no ties
    np.testing.assert_array_equal(leave_one_out(points, labels, 9), wanted)
    assert separation(points, np.zeros(40, dtype=int)) == {"silhouette": None, "knn_accuracy": 1.0}


def test_drawn_classes_are_spread_over_the_groups():
    counts = np.array([300, 250, 200, 150, 90, 80, 70, 60, 9, 8, 7, 6])
    names = [f"class {index}" for index in range(12)]
    images = np.full(12, 5)
    assert drawn_classes(names, counts, images, "oltr", ProjectionOptions(most=6)).tolist() == [0, 3, 4, 7, 8, 11]
    assert drawn_classes(names, counts, images, "oltr", ProjectionOptions(most=0)).tolist() == list(range(12))
    images[[0, 1, 2]] = 0
    # one many-shot class is left: the others make up for it
    assert drawn_classes(names, counts, images, "oltr", ProjectionOptions(most=7)).tolist() == [3, 4, 6, 7, 8, 10, 11]
    named = ProjectionOptions(classes=["class 9", "Class_2"])
    assert drawn_classes(names, counts, images, "oltr", named).tolist() == [2, 9]
    with pytest.raises(UserError, match="classes=cat is the name of 0 classes"):
        drawn_classes(names, counts, images, "oltr", ProjectionOptions(classes=["cat"]))


def test_drawn_images_are_equally_many_of_each_class():
    labels = np.repeat([0, 1, 2, 3], [50, 20, 3, 40])
    rows = drawn_images(labels, np.array([0, 2, 3]), 30, seed=0)
    assert np.bincount(labels[rows], minlength=4).tolist() == [10, 0, 3, 10]
    assert drawn_images(labels, np.array([2, 3]), 99, seed=0).tolist() == list(range(70, 113))


def test_texts_among_images_by_hand():
    points = np.array([[0.0, 0], [5, 5], [0, 1], [5, 4], [9, 9]])
    labels = np.array([0, 1, 0, 0, 1])
    assert texts_among_images(points, labels, 3) == pytest.approx(2 / 3)


@pytest.fixture
def scatter() -> Scatter:
    points, labels = clusters(width=2)
    points, labels = np.concatenate([points, points[::12]]), np.concatenate([labels, [0, 1, 2]])
    return Scatter(points, labels, 3, ["a, b", "c", "d"], ["many", "medium", "few"], "class")


def test_the_picture_and_its_coordinates(scatter, tmp_path):
    picture = Image.open(write_scatter(tmp_path / "deep" / "plane.png", scatter, "a title"))
    assert picture.size == (1350, 975)
    drawn = {colour for _, colour in picture.convert("RGB").getcolors(2**24)}
    assert len(drawn) > 50
    with write_coordinates(tmp_path / "plane.csv", scatter).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["image"] * 36 + ["text"] * 3
    assert rows[0] | {"x": "", "y": ""} == {
        "kind": "image", "label": "0", "class_name": "a, b", "shot": "many", "x": "", "y": "",
    }  # fmt: skip
    assert float(rows[5]["x"]) == pytest.approx(scatter.points[5, 0], rel=1e-4)
    assert {path.name for path in tmp_path.iterdir()} == {"deep", "plane.csv"}


def test_every_class_has_a_colour_of_its_own(scatter):
    for count in (3, 12, 20, 60):
        many = Scatter(scatter.points, scatter.labels, 0, [""] * count, ["few"] * count, "class")
        assert len(set(class_colours(many, np.arange(count)).values())) == count
    by_shot = Scatter(scatter.points, scatter.labels, 3, scatter.names, scatter.shots, "shot")
    assert len(set(class_colours(by_shot, np.arange(3)).values())) == len(MARKS)


def test_the_contact_sheet_frames_right_and_wrong(tmp_path):
    grey = Image.new("RGB", (30, 50), (100, 100, 100))
    hits = (Hit(grey, "<fox>", 0.91, True), Hit(grey, "<wolf>", 0.55, False))
    rows = [SheetRow("<fox>", ("2 training images", "AP 50.0"), hits), SheetRow("a" * 99, (), hits[:1])]
    sheet = Image.open(write_sheet(rows, tmp_path / "sheet.png", 40)).convert("RGB")
    cell = 40 + 2 * FRAME
    assert sheet.size == (GAP + LABEL + 2 * (cell + GAP), GAP + 2 * (cell + GAP))
    left, middle = GAP + LABEL, GAP + cell // 2
    shown = [sheet.getpixel((left + column * (cell + GAP), middle)) for column in (0, 1)]
    assert ["#{:02x}{:02x}{:02x}".format(*pixel) for pixel in shown] == [RIGHT, WRONG]
    assert sheet.getpixel((left + cell // 2, middle)) == (100, 100, 100)
    page = sheet_page(rows, "Foxes", "The best.", 40)
    assert page.count("data:image/jpeg;base64,") == 3
    assert "<fox>" not in page
    assert "0.55 &lt;wolf&gt;" in page
