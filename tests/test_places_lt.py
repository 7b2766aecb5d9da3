"""Places-LT from miniatures of the real folders and lists, in both conventions."""

import json
import shutil
from pathlib import Path

import datasets
import pytest
from PIL import Image

from hf_vlr.data.loading import load_dataset
from hf_vlr.data.registry import build_dataset
from hf_vlr.datasets_scripts.places_lt import manifest, scene_of
from hf_vlr.errors import UserError

SCENES = ("airfield", "apartment_building/outdoor", "bar")
TRAIN = (4, 2, 1)
CATEGORIES = "/a/airfield 0\n/a/apartment_building/outdoor 1\n/b/bar 2\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def easy(split: str, scene: str, file: str) -> str:
    """`train/airfield/FILE`: the easy format, and the lists of LIFT and BALLAD."""
    return f"{split}/{scene.replace('/', '-')}/{file}"


def archive(split: str, scene: str, file: str) -> str:
    """`data_256/a/airfield/FILE`: Places' own archives of 256 pixels, and the lists of OLTR and PaCo."""
    return f"data_256/{scene[0]}/{scene}/{file}" if split == "train" else f"val_256/{file}"


def large(split: str, scene: str, file: str) -> str:
    """Places' archives of large images."""
    return f"data_large/{scene[0]}/{scene}/{file}" if split == "train" else f"val_large/{file}"


def torchvision(split: str, scene: str, file: str) -> str:
    return f"data_large_standard/{scene[0]}/{scene}/{file}" if split == "train" else f"val_large/{file}"


def flat_val(split: str, scene: str, file: str) -> str:
    return easy(split, scene, file) if split == "train" else f"val/{file}"


CONVENTIONS = {"easy": easy, "archive": archive, "large": large, "torchvision": torchvision, "flat val": flat_val}


def rows_of(form) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for label, scene in enumerate(SCENES):
        rows["train"] += [f"{form('train', scene, f'0000000{index}.jpg')} {label}" for index in range(TRAIN[label])]
        rows["val"] += [f"{form('train', scene, '00000100.jpg')} {label}"]
        rows["test"] += [f"{form('val', scene, f'Places365_val_0000000{label}.jpg')} {label}"]
    return rows


def write_lists(folder: Path, form) -> None:
    for split, lines in rows_of(form).items():
        (folder / f"Places_LT_{split}.txt").write_text("".join(f"{line}\n" for line in lines))


def write_images(folder: Path, form) -> None:
    rows = rows_of(form)
    for shade, line in enumerate(rows["train"] + rows["val"] + rows["test"]):
        file = folder / line.split()[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (12 * shade, 90, 255 - 12 * shade)).save(file)


def test_it_builds_reads_and_streams(tmp_path):
    source = tmp_path / "places"
    source.mkdir()
    write_lists(source, easy)
    write_images(source, easy)
    out = build_dataset("places-lt", source, tmp_path / "out", num_proc=1, texts="templates")
    whole = datasets.load_dataset(str(out))
    assert {split: len(rows) for split, rows in whole.items()} == {"train": 7, "validation": 3, "test": 3}
    assert whole["train"].features["label"].names == ["airfield", "apartment building outdoor", "bar"]
    assert whole["train"]["label"][:] == [0] * 4 + [1] * 2 + [2]
    stream = datasets.load_dataset(str(out), "texts", split="train", streaming=True)
    assert {row["class_name"] for row in stream} == {"airfield", "apartment building outdoor", "bar"}
    report = json.loads((out / "build_report.json").read_text())
    assert report["told"] == {
        "total differs from the published one": [
            "train 7 instead of 62,500", "validation 3 instead of 7,300", "test 3 instead of 36,500",
        ]
    }  # fmt: skip
    assert not report["dropped"]
    with pytest.raises(UserError, match="total differs from the published one: 3"):
        build_dataset("places-lt", source, tmp_path / "strict", num_proc=1, strict=True)
    card = (out / "README.md").read_text()
    assert "the folders in the lists" in card
    assert "$" not in card


@pytest.mark.parametrize("below", ["", "places365_standard"])
@pytest.mark.parametrize("disk", CONVENTIONS)
@pytest.mark.parametrize("lists", CONVENTIONS)
def test_a_list_of_one_convention_finds_images_of_another(tmp_path, lists, disk, below):
    write_images(tmp_path / below, CONVENTIONS[disk])
    write_lists(tmp_path, CONVENTIONS[lists])
    found = manifest(tmp_path)
    wanted = rows_of(CONVENTIONS[disk])
    names = {"train": "train", "val": "validation", "test": "test"}
    for split, lines in wanted.items():
        images = [entry.image for entry in found.splits[names[split]]]
        assert images == [tmp_path / below / line.split()[0] for line in lines]
    assert [entry.label for entry in found.splits["train"]] == [0] * 4 + [1] * 2 + [2]
    assert list(found.marks) == list(SCENES)


def test_images_that_lie_nowhere_are_asked_for_by_roots(tmp_path):
    write_lists(tmp_path, archive)
    with pytest.raises(UserError, match=rf"data_256/a/airfield/00000000\.jpg below any of: {tmp_path}, .*images_dir="):
        manifest(tmp_path)
    write_images(tmp_path / "elsewhere", easy)
    found = manifest(tmp_path, images_dir=tmp_path / "elsewhere")
    assert found.splits["train"][0].image == tmp_path / "elsewhere/train/airfield/00000000.jpg"


def test_training_images_without_their_class_folder_are_not_guessed(tmp_path):
    # 00000000.jpg is the name of an image in every class
    write_lists(tmp_path, easy)
    write_images(tmp_path, easy)
    shutil.rmtree(tmp_path / "train")
    Image.new("RGB", (20, 20)).save(tmp_path / "00000000.jpg")
    found = manifest(tmp_path)
    assert not any(entry.image.is_file() for entry in found.splits["train"])
    assert all(entry.image.is_file() for entry in found.splits["test"])


def test_names_and_number_of_classes(tmp_path):
    write_images(tmp_path, easy)
    write_lists(tmp_path, easy)
    train = tmp_path / "Places_LT_train.txt"
    train.write_text(train.read_text() + "train/airfield/00000009.jpg 400\n")
    # a damaged label makes no classes
    assert manifest(tmp_path).class_names == ["airfield", "apartment building outdoor", "bar"]
    (tmp_path / "categories_places365.txt").write_text(CATEGORIES + "/b/barn 3\n")
    found = manifest(tmp_path)
    assert (found.class_names[3], found.marks[1]) == ("barn", "apartment_building/outdoor")
    (tmp_path / "own.txt").write_text("one\ntwo\nthree\n")
    assert manifest(tmp_path, name_source=tmp_path / "own.txt").class_names == ["one", "two", "three"]


def test_a_class_that_the_lists_lack_is_told(tmp_path):
    write_images(tmp_path, easy)
    write_lists(tmp_path, easy)
    (tmp_path / "categories_places365.txt").write_text(CATEGORIES + "/b/barn 3\n")
    out = build_dataset("places-lt", tmp_path, tmp_path / "out", num_proc=1)
    assert json.loads((out / "build_report.json").read_text())["told"]["class without training images"] == ["barn"]


def test_scenes_of_paths():
    paths = [
        "train/airfield/1.jpg",
        "data_256/a/airfield/1.jpg",
        "val_256/1.jpg",
        "data_large/u/underwater/ocean_deep/1",
    ]
    assert [scene_of(path) for path in paths] == ["airfield", "airfield", "", "underwater/ocean_deep"]


def test_the_package_loads_it_by_name_and_notices_a_changed_list(tmp_path):
    source = tmp_path / "places"
    source.mkdir()
    write_lists(source, archive)
    write_images(source, large)
    first = load_dataset("places-lt", data_dir=source, split="train", num_proc=1)
    assert first["file"][0] == "data_256/a/airfield/00000000.jpg"
    stored = first.cast_column("image", datasets.Image(decode=False))[0]["image"]["path"]
    assert stored == str(source / "data_large/a/airfield/00000000.jpg")
    train = source / "Places_LT_train.txt"
    train.write_text("\n".join(train.read_text().splitlines()[1:]) + "\n")
    assert len(load_dataset("places-lt", data_dir=source, split="train", num_proc=1)) == len(first) - 1


def test_the_lists_are_asked_for(tmp_path):
    with pytest.raises(UserError, match=r"Places_LT_train\.txt is not here; .*zhmiao/OpenLongTail"):
        manifest(tmp_path)


def test_it_trains_from_its_parquet(tmp_path, trained):
    source = tmp_path / "places"
    source.mkdir()
    write_lists(source, easy)
    write_images(source, easy)
    out = build_dataset("places-lt", source, tmp_path / "out", num_proc=1, texts="templates")
    assert json.loads((trained(out) / "metrics.json").read_text())["protocol"]["split"] == "test"
