"""iNaturalist 2018 from a miniature of the competition's files."""

import json
from pathlib import Path

import datasets
import pytest
from PIL import Image

from hf_vlr.data.loading import load_dataset
from hf_vlr.data.registry import build_dataset
from hf_vlr.datasets_scripts.inaturalist2018 import manifest
from hf_vlr.errors import UserError

# One name for a plant and a mollusc: homonyms occur across kingdoms.
SPECIES = (("Plantae", "Ficus variegata"), ("Mollusca", "Ficus variegata"), ("Aves", "Grus grus"))
TRAIN = (5, 2, 1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def annotations(counts: tuple[int, ...], first: int) -> dict:
    """The competition's form; annotations in another order than the images."""
    images, labels = [], []
    for label, (count, (kingdom, _)) in enumerate(zip(counts, SPECIES)):
        for _ in range(count):
            number = first + len(images)
            path = f"train_val2018/{kingdom}/{label}/{number:032x}.jpg"
            images.append({"id": number, "width": 20, "height": 20, "file_name": path, "license": 0})
            labels.append({"id": number, "image_id": number, "category_id": label})
    hidden = [{"id": label, "name": str(label), "supercategory": one[0]} for label, one in enumerate(SPECIES)]
    return {"info": {}, "images": images, "annotations": labels[::-1], "categories": hidden}


def categories() -> list[dict]:
    return [
        {"id": label, "name": name, "supercategory": group, "kingdom": "K", "genus": name.split()[0]}
        for label, (group, name) in enumerate(SPECIES)
    ]


def save(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "inat"
    folder.mkdir()
    for name, found in (("train2018", annotations(TRAIN, 1)), ("val2018", annotations((1, 1, 1), 100))):
        save(folder, f"{name}.json", found)
        for image in found["images"]:
            file = folder / image["file_name"]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (2 * image["id"], 80, 255 - 2 * image["id"])).save(file)
    save(folder, "categories.json", categories())
    return folder


def report(out: Path) -> dict:
    return json.loads((out / "build_report.json").read_text())


def test_it_builds_reads_and_streams(source, tmp_path):
    out = build_dataset("inaturalist2018", source, tmp_path / "out", num_proc=1)
    whole = datasets.load_dataset(str(out))
    assert {split: len(rows) for split, rows in whole.items()} == {"train": 8, "test": 3}
    assert whole["train"].features["label"].names == ["Ficus variegata (0)", "Ficus variegata (1)", "Grus grus"]
    assert whole["train"]["label"][:] == [0] * 5 + [1] * 2 + [2]
    assert whole["test"]["file"][0] == f"train_val2018/Plantae/0/{100:032x}.jpg"
    told = report(out)["told"]
    assert told["total differs from the published one"] == ["train 8 instead of 437,513", "test 3 instead of 24,426"]
    assert not report(out)["dropped"]
    # by id, because the name alone would not tell the plant from the mollusc
    texts = list(datasets.load_dataset(str(out), "texts", split="train", streaming=True))
    assert any("a plant" in row["text"] for row in texts if row["label"] == 0)
    assert any("a mollusc" in row["text"] for row in texts if row["label"] == 1)
    assert not any("a plant" in row["text"] for row in texts if row["label"] != 0)
    card = (out / "README.md").read_text()
    assert "*validation* set" in card
    assert "$" not in card
    with pytest.raises(UserError, match="total differs from the published one: 2"):
        build_dataset("inaturalist2018", source, tmp_path / "strict", num_proc=1, strict=True)


def test_faults_in_the_annotations_are_told(source, tmp_path):
    found = annotations(TRAIN, 1)
    lost, twice = found["images"][0], found["images"][1]
    found["annotations"] = [one for one in found["annotations"] if one["image_id"] != lost["id"]]
    found["annotations"] += [{"id": 98, "image_id": twice["id"], "category_id": 2}]
    found["annotations"] += [{"id": 99, "image_id": 77, "category_id": 0}]
    found["annotations"][0]["category_id"] = 8142
    save(source, "train2018.json", found)
    (source / found["images"][2]["file_name"]).unlink()
    out = build_dataset("inaturalist2018", source, tmp_path / "out", num_proc=1)
    assert report(out)["dropped"] == {
        "label outside 0 … 2": [f"train {found['images'][-1]['file_name']}"],
        "line of a list that cannot be used": [
            f"train train2018.json: {lost['file_name']} has 0 categories",
            f"train train2018.json: {twice['file_name']} has 2 categories",
            "train train2018.json: annotation of image 77, which is not among the images",
        ],
        "image listed but absent": [f"train {found['images'][2]['file_name']}"],
    }
    assert report(out)["told"]["class without training images"] == ["Grus grus"]


def test_species_are_numbered_by_id_not_by_their_order(source):
    wanted = manifest(source)
    save(source, "categories.json", categories()[::-1])
    found = manifest(source)
    assert (found.class_names, found.texts) == (wanted.class_names, wanted.texts)


def test_hidden_names_are_the_last_resort(source):
    (source / "categories.json").unlink()
    found = manifest(source)
    assert found.class_names == ["0", "1", "2"]
    assert "only numbers" in found.about
    assert {row.source for row in found.texts} == {"templates"}


def test_lists_of_lines_are_read_too(source):
    wanted = manifest(source).splits
    for split, name in (("train", "train"), ("test", "val")):
        (source / f"{name}2018.json").unlink()
        rows = [f"{entry.file} {entry.label}\n" for entry in wanted[split]]
        (source / f"iNaturalist18_{name}.txt").write_text("".join(rows))
    assert manifest(source).splits == wanted
    (source / "categories.json").unlink()
    with pytest.raises(UserError, match=r"categories\.json is not here; .*visipedia/inat_comp"):
        manifest(source)


def test_images_and_annotations_may_lie_apart(source, tmp_path):
    wanted = manifest(source)
    (tmp_path / "away").mkdir()
    for file in source.glob("*.json"):
        file.rename(tmp_path / "away" / file.name)
    assert manifest(source, lists=tmp_path / "away").splits == wanted.splits
    assert manifest(tmp_path / "away", images_dir=source).splits == wanted.splits
    assert manifest(tmp_path / "away", images_dir=source / "train_val2018").splits == wanted.splits
    with pytest.raises(UserError, match="below any of"):
        manifest(tmp_path / "away")
    with pytest.raises(UserError, match=r"train2018\.json is not here; .*visipedia/inat_comp"):
        manifest(source)


def test_texts_by_a_spec_and_from_the_wiki_folder(source):
    assert manifest(source, texts=None).texts == []
    (source / "wiki").mkdir()
    for label in range(3):
        (source / "wiki" / f"desc_{label}.txt").write_text(f"It is species {label}.\n")
    texts = manifest(source).texts
    assert [row.label for row in texts if row.text.startswith("It is")] == [0, 1, 2]
    assert any("taxonomy" in row.source for row in texts)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("train2018.json", '{"images": [{"id": 1, "file_na', r"train2018\.json line 1: not JSON"),
        ("train2018.json", "[]", r"train2018\.json: not iNaturalist's annotations"),
        ("train2018.json", '{"images": [{"id": 1}], "annotations": []}', "not iNaturalist's annotations"),
        ("train2018.json", '{"images": [{"id": 1, "file_name": "../x.jpg"}], "annotations": '
         '[{"image_id": 1, "category_id": 0}]}', "leaves the images' folder"),
        ("categories.json", '[{"id": 0, "name": "a"}, {"id": 2, "name": "b"}]', "its 2 categories are not 0 … 1"),
        ("categories.json", '[{"id": 0}]', "list of categories with id and name"),
        ("categories.json", "[]", r"categories\.json"),
    ],
)  # fmt: skip
def test_files_that_are_wrong_are_refused(source, name, content, told):
    (source / name).write_text(content)
    with pytest.raises(UserError, match=told):
        manifest(source)


def test_the_package_loads_it_by_name_and_notices_changed_annotations(source):
    first = load_dataset("inaturalist2018", data_dir=source, split="train", num_proc=1)
    stored = first.cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert stored == {"bytes": None, "path": str(source / first["file"][0])}
    found = annotations(TRAIN, 1)
    found["images"], found["annotations"] = found["images"][1:], found["annotations"][:-1]
    save(source, "train2018.json", found)
    assert len(load_dataset("inaturalist2018", data_dir=source, split="train", num_proc=1)) == 7


def test_it_trains_from_its_parquet(source, tmp_path, trained):
    out = build_dataset("inaturalist2018", source, tmp_path / "out", num_proc=1, texts="templates")
    assert json.loads((trained(out) / "metrics.json").read_text())["protocol"]["split"] == "test"
