"""ImageNet-LT from a miniature of the real folders and lists."""

import json
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_vlr.data.loading import load_dataset
from hf_vlr.data.registry import build_dataset
from hf_vlr.datasets_scripts.imagenet_lt import manifest
from hf_vlr.errors import UserError

# Two synsets that WordNet both calls crane, out of the order of their ids.
WNIDS = ("n01440764", "n02012849", "n03126707")
TRAIN = {"n01440764": 6, "n02012849": 3, "n03126707": 1}
LABELS = "n03126707 2 crane\nn01440764 0 tench\nn02012849 1 crane\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def draw(file: Path, shade: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (9 * shade, 255 - 9 * shade, 60)).save(file, quality=95)


def lists_of() -> dict[str, list[str]]:
    """The miniature's three lists; validation images come from the training folder."""
    rows: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for label, wnid in enumerate(WNIDS):
        rows["train"] += [f"train/{wnid}/{wnid}_{index}.JPEG {label}" for index in range(TRAIN[wnid])]
        rows["val"] += [f"train/{wnid}/{wnid}_{100 + index}.JPEG {label}" for index in range(2)]
        rows["test"] += [f"val/{wnid}/ILSVRC2012_val_0000{label}{index}.JPEG {label}" for index in range(2)]
    return rows


def write_lists(folder: Path, rows: dict[str, list[str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in rows.items():
        (folder / f"ImageNet_LT_{split}.txt").write_text("".join(f"{line}\n" for line in lines))


def write_images(root: Path, rows: dict[str, list[str]], flat: bool = False) -> None:
    shade = 0
    for line in (line for lines in rows.values() for line in lines):
        path = Path(line.split()[0])
        draw(root / ("val" if flat and path.parts[0] == "val" else path.parent) / path.name, shade := shade + 1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The layout of torchvision and VL-LTR: everything in one folder, class names beside it."""
    folder, rows = tmp_path / "imagenet", lists_of()
    write_lists(folder, rows)
    write_images(folder, rows)
    (folder / "labels.txt").write_text(LABELS)
    return folder


def report(out: Path) -> dict:
    return json.loads((out / "build_report.json").read_text())


def test_it_builds_reads_and_streams(source, tmp_path):
    out = build_dataset("imagenet-lt", source, tmp_path / "out", num_proc=1)
    whole = datasets.load_dataset(str(out))
    assert {split: len(rows) for split, rows in whole.items()} == {"train": 10, "validation": 6, "test": 6}
    names = ["tench", "crane (n02012849)", "crane (n03126707)"]
    assert whole["train"].features["label"].names == names
    assert whole["train"]["label"][:] == [0] * 6 + [1] * 3 + [2]
    assert whole["train"]["class_name"][9] == "crane"
    assert whole["train"]["file"][0] == "train/n01440764/n01440764_0.JPEG"
    first = Image.open(source / "train/n01440764/n01440764_0.JPEG")
    assert np.array_equal(np.asarray(whole["train"][0]["image"]), np.asarray(first))
    stream = datasets.load_dataset(str(out), split="test", streaming=True)
    assert [row["label"] for row in stream] == [0, 0, 1, 1, 2, 2]
    told = report(out)["told"]
    assert told["total differs from the published one"] == [
        "train 10 instead of 115,846", "validation 6 instead of 20,000", "test 6 instead of 50,000",
    ]  # fmt: skip
    assert told["class name that repeats"] == ["crane (2 classes)"]
    assert not report(out)["dropped"]
    card = (out / "README.md").read_text()
    assert "$" not in card
    assert "from `labels.txt`" in card
    assert card.count("differs from the published list") == 2
    assert str(tmp_path) not in card


@pytest.mark.parametrize("flat", [False, True])
def test_kaggles_layout_with_its_names(tmp_path, flat):
    folder, rows = tmp_path / "kaggle", lists_of()
    write_lists(folder / "ImageNet_LT", rows)
    write_images(folder / "ILSVRC/Data/CLS-LOC", rows, flat)
    (folder / "LOC_synset_mapping.txt").write_text(
        "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\nn04008634 projectile, missile\n"
    )
    found = manifest(folder)
    assert all(entry.image.is_file() for entries in found.splits.values() for entry in entries)
    assert found.splits["test"][0].image.parent.name == ("val" if flat else "n01440764")
    assert found.splits["test"][0].file == "val/n01440764/ILSVRC2012_val_000000.JPEG"
    assert found.class_names == ["tench", "crane", "crane", "projectile"]
    assert found.marks == [*WNIDS, "n04008634"]


def test_a_flat_list_finds_images_in_class_folders(source):
    rows = lists_of()
    rows["test"] = [f"val/{line.split('/')[-1]}" for line in rows["test"]]
    write_lists(source, rows)
    assert all(entry.image.is_file() for entry in manifest(source).splits["test"])


def test_lists_and_images_may_lie_apart(source, tmp_path):
    write_lists(tmp_path / "lists", lists_of())
    for file in source.glob("ImageNet_LT_*.txt"):
        file.unlink()
    found = manifest(tmp_path / "lists", images_dir=source, name_source=source / "labels.txt")
    assert found.splits["train"][0].image.is_file()
    assert manifest(source, lists=tmp_path / "lists").splits == found.splits
    with pytest.raises(UserError, match=r"below any of: .*lists, .*ILSVRC/Data/CLS-LOC.*images_dir="):
        manifest(tmp_path / "lists", name_source=source / "labels.txt")


def test_names_without_a_file_are_wordnets(source):
    (source / "labels.txt").unlink()
    found = manifest(source)
    assert len(found.class_names) == 1000
    # as the list numbers its classes; the others follow in the order of their ids
    assert list(found.marks[:4]) == [*WNIDS, "n01443537"]
    assert list(found.class_names[:4]) == ["tench", "crane", "crane", "goldfish"]
    assert len(set(found.marks)) == 1000
    (source / "classnames.txt").write_text("n01440764 fish\nn02012849 bird\nn03126707 tall crane\n")
    assert manifest(source).class_names == ["fish", "bird", "tall crane"]
    assert manifest(source, name_source="timm").class_names == found.class_names
    (source / "plain.txt").write_text("a fish\na bird\na machine\n")
    plain = manifest(source, name_source=source / "plain.txt")
    assert (plain.class_names, tuple(plain.marks)) == (["a fish", "a bird", "a machine"], WNIDS)


def test_names_of_other_classes_are_refused(source):
    (source / "labels.txt").write_text("n07745940 strawberry\nn07747607 orange\n")
    with pytest.raises(UserError, match="none of the lists' folders"):
        manifest(source)


def test_texts_come_from_the_wiki_folder_or_a_spec(source, tmp_path):
    assert manifest(source).texts == []
    (source / "wiki").mkdir()
    for label, word in enumerate(("The tench swims.", "The crane flies.", "The crane lifts.")):
        (source / "wiki" / f"desc_{label}.txt").write_text(f"{word}\n")
    out = build_dataset("imagenet-lt", source, tmp_path / "out", num_proc=1)
    rows = datasets.load_dataset(str(out), "texts")["train"]
    assert rows["text"][:] == ["The tench swims.", "The crane flies.", "The crane lifts."]
    assert rows["class_name"][:] == ["tench", "crane", "crane"]
    assert rows["label"][:] == [0, 1, 2]
    assert set(rows["license"]) == {"CC-BY-SA-3.0"}
    assert manifest(source, texts=None).texts == []
    assert {row.label for row in manifest(source, texts="templates").texts} == {0, 1, 2}
    streamed = datasets.load_dataset(str(out), "texts", split="train", streaming=True)
    assert next(iter(streamed))["text"] == "The tench swims."


def test_every_fault_is_found_and_strict_fails(source, tmp_path):
    rows = lists_of()
    train = source / "train/n01440764"
    rows["train"] = [line for line in rows["train"] if "n03126707" not in line]
    rows["train"] += ["train/n01440764/n01440764_7.JPEG 3", rows["train"][0], rows["val"][0]]
    rows["test"] += ["val/n01440764/gone.JPEG 0"]
    write_lists(source, rows)
    with (source / "ImageNet_LT_train.txt").open("a", newline="") as file:
        file.write("\r\n\ntrain/n02012849/n0201")
    (train / "n01440764_1.JPEG").write_bytes((train / "n01440764_1.JPEG").read_bytes()[:200])
    out = build_dataset("imagenet-lt", source, tmp_path / "out", num_proc=1)
    dropped = report(out)["dropped"]
    cut = "train ImageNet_LT_train.txt line 15: 'train/n02012849/n0201' is not `PATH LABEL`, the file is cut off there"
    assert dropped["label outside 0 … 2"] == ["train train/n01440764/n01440764_7.JPEG"]
    assert dropped["line of a list that cannot be used"] == [cut]
    assert dropped["image listed twice"] == ["train train/n01440764/n01440764_0.JPEG"]
    assert dropped["image of another split too"] == ["train train/n01440764/n01440764_100.JPEG"]
    assert dropped["image listed but absent"] == ["test val/n01440764/gone.JPEG"]
    assert dropped["image that cannot be decoded"][0].startswith("train train/n01440764/n01440764_1.JPEG")
    assert report(out)["told"]["class without training images"] == ["crane"]
    assert report(out)["rows"] == {"train": 8, "validation": 6, "test": 6}
    with pytest.raises(UserError, match=r"image listed twice: 1.*total differs"):
        build_dataset("imagenet-lt", source, tmp_path / "strict", num_proc=1, strict=True)
    assert not (tmp_path / "strict").exists()


def test_an_image_folder_alone_is_told_what_it_lacks(source):
    for file in source.glob("ImageNet_LT_*.txt"):
        file.unlink()
    with pytest.raises(UserError, match=r"ImageNet_LT_train\.txt, ImageNet_LT_val\.txt, .*zhmiao/OpenLongTail"):
        manifest(source)
    with pytest.raises(UserError, match="no such folder"):
        manifest(source / "nowhere")


def test_the_package_loads_it_by_name_and_notices_a_changed_list(source):
    options = {"data_dir": source, "num_proc": 1}
    first = load_dataset("imagenet-lt", split="train", **options)
    # the images stay where they are
    stored = first.cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert stored == {"bytes": None, "path": str(source / "train/n01440764/n01440764_0.JPEG")}
    assert first[0]["image"].size == (20, 20)
    rows = lists_of()
    write_lists(source, rows | {"train": rows["train"][1:]})
    os.utime(source / "ImageNet_LT_train.txt", ns=(1, 1))
    second = load_dataset("imagenet-lt", split="train", **options)
    assert second["file"][:] == first["file"][1:]
    (source / "own.jsonl").write_text('{"label": 2, "text": "It lifts."}\n')
    texts = load_dataset("imagenet-lt", "texts", texts=str(source / "own.jsonl"), **options)["train"]
    assert texts["text"][:] == ["It lifts."]


def test_it_trains_from_its_parquet(source, tmp_path, trained):
    out = build_dataset("imagenet-lt", source, tmp_path / "out", num_proc=1, texts="templates")
    assert json.loads((trained(out) / "metrics.json").read_text())["protocol"]["split"] == "test"
