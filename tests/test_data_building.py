"""From a manifest to a dataset: what is found on the way, what an interruption leaves, what a reader sees."""

import json
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import DatasetCardData
from PIL import Image

from hf_vlr.data import building
from hf_vlr.data.building import build_longtail
from hf_vlr.data.corpus import TextRow
from hf_vlr.data.manifest import Entry, Manifest, inspect
from hf_vlr.data.source import load_source
from hf_vlr.errors import UserError

NAMES, MARKS = ("missile", "missile", "kit fox"), ("n03773504", "n04008634", "n02119789")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(path: Path, shade: int, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade % 256, shade // 256, 90)).save(path, quality=90)
    return path


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    """Three classes of 6, 4 and 2 training images, one test image each."""
    splits = {"train": [6, 4, 2], "test": [1, 1, 1]}
    entries: dict[str, list[Entry]] = {}
    shade = 0
    for split, counts in splits.items():
        entries[split] = []
        for label, count in enumerate(counts):
            for index in range(count):
                shade += 10
                file = f"{split}/{MARKS[label]}/{index}.jpg"
                entries[split].append(Entry(picture(tmp_path / "source" / file, shade), label, "", file))
    texts = [TextRow(0, "It flies.", "a book", "CC0-1.0"), TextRow(2, "A small fox.", "a book", "CC0-1.0")]
    card = DatasetCardData(license="cc0-1.0", pretty_name="Toy")
    return Manifest("toy", NAMES, MARKS, entries, card, "# Toy", texts, {"train": 12, "test": 3})


def changed(manifest: Manifest, **splits: list[Entry]) -> Manifest:
    return Manifest(**{**vars(manifest), "splits": {**manifest.splits, **splits}})


def report(out: Path) -> dict:
    return json.loads((out / "build_report.json").read_text())


@pytest.mark.parametrize("num_proc", [1, 2])
def test_both_configs_read_back(manifest, tmp_path, num_proc):
    out = build_longtail(manifest, tmp_path / "out", num_proc=num_proc)
    whole = datasets.load_dataset(str(out))
    assert {split: len(rows) for split, rows in whole.items()} == {"train": 12, "test": 3}
    rows = whole["test"]
    assert rows.column_names == ["image", "label", "class_name", "shot", "text", "file"]
    assert rows.features["label"].names == ["missile (n03773504)", "missile (n04008634)", "kit fox"]
    assert rows["class_name"][:] == list(NAMES)
    assert rows["shot"][:] == ["few"] * 3  # by the training counts, in every split
    assert rows["text"][2] == "a photo of a kit fox."
    assert rows["file"][0] == "test/n03773504/0.jpg"
    source = manifest.splits["test"][0].image
    assert np.array_equal(np.asarray(rows[0]["image"]), np.asarray(Image.open(source)))
    texts = datasets.load_dataset(str(out), "texts")["train"]
    assert texts[1] == {
        "label": 2, "class_name": "kit fox", "text": "A small fox.", "source": "a book", "license": "CC0-1.0",
    }  # fmt: skip
    assert texts.features["label"].names == rows.features["label"].names
    stream = datasets.load_dataset(str(out), split="train", streaming=True)
    assert [row["label"] for row in stream] == [0] * 6 + [1] * 4 + [2] * 2
    assert report(out)["told"] == {"class name that repeats": ["missile (2 classes)"]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out", "source"]


def test_the_built_dataset_is_a_training_source(manifest, tmp_path):
    out = build_longtail(manifest, tmp_path / "out", num_proc=1)
    source = load_source(str(out), "test")
    assert source.labels.tolist() == [0, 1, 2]
    assert source.images[0].size == (40, 30)


def test_images_may_stay_where_they_are(manifest, tmp_path):
    out = build_longtail(manifest, tmp_path / "out", images="paths", num_proc=1)
    rows = datasets.load_dataset(str(out), split="train")
    assert rows[0]["image"].size == (40, 30)
    stored = rows.cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert stored["path"] == str(manifest.splits["train"][0].image.resolve())
    assert stored["bytes"] is None


def test_pictures_shrink_to_the_size_asked_for_and_never_grow(manifest, tmp_path):
    picture(manifest.splits["train"][0].image, 3, (200, 100))
    out = build_longtail(manifest, tmp_path / "out", size=50, num_proc=1)
    rows = datasets.load_dataset(str(out), split="train")
    assert (rows[0]["image"].size, rows[1]["image"].size) == ((100, 50), (40, 30))


def test_pixels_are_stored_without_loss(manifest, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    out = build_longtail(changed(manifest, test=[Entry(pixels, 1)]), tmp_path / "out", num_proc=2)
    assert np.array_equal(np.asarray(datasets.load_dataset(str(out), split="test")[0]["image"]), pixels)


@pytest.fixture
def faulty(manifest, tmp_path) -> Manifest:
    train, test = list(manifest.splits["train"]), list(manifest.splits["test"])
    train[1].image.write_bytes(train[1].image.read_bytes()[:300])
    train[2].image.write_bytes(test[0].image.read_bytes())
    train += [
        Entry(tmp_path / "none.jpg", 0, "", "train/none.jpg"),
        train[3],
        test[1],
        Entry(train[4].image, 7, "", "train/other.jpg"),
    ]
    return changed(manifest, train=[entry for entry in train if entry.label != 2])


def test_every_fault_is_reported_with_its_cases(faulty, tmp_path):
    out = build_longtail(faulty, tmp_path / "out", num_proc=1)
    found = report(out)
    assert {kind: len(cases) for kind, cases in found["dropped"].items()} == {
        "image listed but absent": 1,
        "image listed twice": 1,
        "image of another split too": 1,
        "label outside 0 … 2": 1,
        "image that cannot be decoded": 1,
    }
    assert found["dropped"]["image listed but absent"] == ["train train/none.jpg"]
    assert found["dropped"]["image of another split too"] == ["train test/n04008634/0.jpg"]
    assert found["dropped"]["image that cannot be decoded"][0].startswith("train train/n03773504/1.jpg: 1.jpg: not a")
    assert found["told"]["same picture in two splits"] == ["train train/n03773504/2.jpg = test test/n03773504/0.jpg"]
    assert found["told"]["total differs from the published one"] == ["train 14 instead of 12"]
    assert found["told"]["class without training images"] == ["kit fox"]
    assert found["rows"] == {"train": 9, "test": 3}
    assert len(datasets.load_dataset(str(out), split="train")) == 9
    card = (out / "README.md").read_text()
    assert "- image listed but absent (left out): 1: train train/none.jpg" in card
    assert not re.search(r"0x[0-9a-f]{6}", json.dumps(found)), "an address of this process"


def test_strict_fails_and_names_all(faulty, manifest, tmp_path):
    with pytest.raises(
        UserError,
        match=r"^toy: image listed but absent: 1: train train/none.jpg; .*; mend the files, or build without strict$",
    ) as caught:
        build_longtail(faulty, tmp_path / "out", strict=True, num_proc=1)
    assert "image of another split too: 1: train test/n04008634/0.jpg" in str(caught.value)
    assert not (tmp_path / "out").exists()
    manifest.splits["train"][0].image.write_bytes(b"no picture")
    clean = Manifest(**{**vars(manifest), "class_names": ("a", "b", "c")})
    with pytest.raises(UserError, match=r"^toy: image that cannot be decoded: 2: train train/"):
        build_longtail(clean, tmp_path / "out", strict=True, num_proc=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_training_image_that_is_also_tested_leaves_training(manifest):
    twice = changed(manifest, train=[*manifest.splits["train"], manifest.splits["test"][2]])
    kept, _ = inspect(twice)
    assert [len(kept.splits[split]) for split in ("train", "test")] == [12, 3]
    assert list(kept.splits) == ["train", "test"]


def test_an_interrupted_build_goes_on(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "ROWS_PER_SHARD", 4)
    encoded: list[str] = []
    encode = building.encode

    def failing(entry, size, verify):
        encoded.append(entry.file)
        if len(encoded) == 7:
            raise KeyboardInterrupt
        return encode(entry, size, verify)

    monkeypatch.setattr(building, "encode", failing)
    with pytest.raises(KeyboardInterrupt):
        build_longtail(manifest, tmp_path / "out", num_proc=1)
    assert not (tmp_path / "out").exists()
    out = build_longtail(manifest, tmp_path / "out", num_proc=1)
    assert len(encoded) == 7 + 11  # the first shard of four was kept
    whole = build_longtail(manifest, tmp_path / "whole", num_proc=1)
    for file in sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file()):
        assert (out / file).read_bytes() == (whole / file).read_bytes(), file
    assert sorted(path.name for path in (out / "data").iterdir()) == [
        "test-00000-of-00001.parquet", *(f"train-{index:05d}-of-00003.parquet" for index in range(3)),
    ]  # fmt: skip


def test_a_changed_source_starts_anew(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "ROWS_PER_SHARD", 4)
    encode = building.encode

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        build_longtail(manifest, tmp_path / "out", num_proc=1)
    monkeypatch.undo()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    picture(manifest.splits["train"][0].image, 77)
    assert building.encode is encode
    out = build_longtail(manifest, tmp_path / "out", num_proc=1)
    assert np.asarray(datasets.load_dataset(str(out), split="train")[0]["image"])[0, 0, 0] in range(72, 83)
    assert len(list((out / "data").iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "links"}, "images=links is none of embed, paths"),
        ({"images": "paths", "size": 64}, "images=paths stores no pictures"),
    ],
)
def test_options_that_make_no_sense_are_refused(manifest, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        build_longtail(manifest, tmp_path / "out", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_an_empty_source_and_an_occupied_folder_are_refused(manifest, tmp_path):
    absent = {split: [row._replace(image=tmp_path / "none") for row in rows] for split, rows in manifest.splits.items()}
    with pytest.raises(UserError, match="toy: no image of the lists is there; check the source folder"):
        build_longtail(changed(manifest, **absent), tmp_path / "out")
    with pytest.raises(UserError, match="exists already"):
        build_longtail(manifest, tmp_path / "source")
