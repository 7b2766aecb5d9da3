import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pillow

from hf_vlr.data.images import decode_image
from hf_vlr.data.source import check_source, load_source
from hf_vlr.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def paint(path: Path, grey: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.new("L", (6, 4), grey).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    for name, count in (("cat", 10), ("dog", 5), ("emu", 1)):
        for index in range(count):
            paint(root / name / f"{index}.png", 10 * index)
    return root


def parquet(folder: Path, columns: dict, features: dict, split: str = "train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    picture = {"bytes": png_bytes(), "path": None}
    count = len(next(iter(columns.values())))
    table = Dataset.from_dict(
        {"image": [picture] * count, **columns}, features=Features({"image": Image(), **features})
    )
    table.to_parquet(folder / f"{split}.parquet")
    return folder


def png_bytes(width: int = 5, height: int = 5, declared: tuple[int, int] | None = None) -> bytes:
    """A grey PNG whose header may declare another size than it has."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", *(declared or (width, height)), 8, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + b"\x80" * width for _ in range(height)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_an_image_folder_gives_rgb_pictures_labels_and_counts(folder: Path) -> None:
    source = load_source(f"imagefolder:{folder}", "train", validation_fraction=0)
    assert source.class_names == ["cat", "dog", "emu"]
    assert source.class_counts().tolist() == [10, 5, 1]
    assert source.labels.dtype == np.int64
    assert source.images[3].mode == "RGB"
    assert source.images[3].getpixel((0, 0)) == (30, 30, 30)
    check_source(source)


def test_train_and_validation_are_disjoint_and_repeatable(folder: Path) -> None:
    spec = f"imagefolder:{folder}"
    train, validation = load_source(spec, "train"), load_source(spec, "validation")
    assert train.class_counts().tolist() == [9, 4, 1]
    assert validation.class_counts().tolist() == [1, 1, 0]
    assert train.fingerprint() == load_source(spec, "train").fingerprint()
    assert train.fingerprint() != validation.fingerprint()
    assert train.fingerprint() != load_source(spec, "train", seed=1).fingerprint()


def test_a_changed_folder_is_read_anew(folder: Path) -> None:
    spec = f"imagefolder:{folder}"
    before = load_source(spec, "train", validation_fraction=0)
    paint(folder / "emu" / "1.png", 200)
    after = load_source(spec, "train", validation_fraction=0)
    assert after.class_counts().tolist() == [10, 5, 2]
    assert before.fingerprint() != after.fingerprint()


def test_over_all_folds_every_row_is_tested_once(folder: Path) -> None:
    spec = f"imagefolder:{folder}"
    tested = []
    for fold in range(4):
        parts = {split: load_source(spec, split, folds=4, fold=fold) for split in ("train", "validation", "test")}
        rows = {split: set(part.images.indices.tolist()) for split, part in parts.items()}
        assert rows["train"] | rows["validation"] | rows["test"] == set(range(16))
        assert sum(map(len, rows.values())) == 16
        tested += rows["test"]
    assert sorted(tested) == list(range(16))


def test_captions_come_from_the_folders_metadata(folder: Path) -> None:
    lines = [f"{path.relative_to(folder)},a  {path.parent.name}" for path in sorted(folder.rglob("*.png"))]
    (folder / "metadata.csv").write_text("file_name,text\n" + "\n".join(lines) + "\n")
    source = load_source(f"imagefolder:{folder}", "train", validation_fraction=0)
    assert source.class_counts().tolist() == [10, 5, 1]
    assert [source.captions[row] for row in (0, 10, 15)] == ["a cat", "a dog", "a emu"]


def test_images_beside_a_file_of_captions_are_image_text_pairs(tmp_path: Path) -> None:
    paint(tmp_path / "pairs" / "a.png", 10)
    paint(tmp_path / "pairs" / "b.png", 20)
    (tmp_path / "pairs" / "metadata.csv").write_text("file_name,text\na.png,one\nb.png,two\n")
    source = load_source(f"imagefolder:{tmp_path / 'pairs'}", "train", validation_fraction=0)
    assert (source.labels.tolist(), source.captions) == ([-1, -1], ["one", "two"])


def test_images_without_class_and_caption_are_refused(tmp_path: Path) -> None:
    paint(tmp_path / "loose" / "a.png", 10)
    with pytest.raises(UserError, match="neither a label nor a text column"):
        load_source(f"imagefolder:{tmp_path / 'loose'}", "train")


def test_a_hub_dataset_that_cannot_be_had_is_named() -> None:
    with pytest.raises(UserError, match="nobody/nothing: the dataset could not be loaded"):
        load_source("nobody/nothing", "train")


def test_splits_that_exist_are_used(tmp_path: Path) -> None:
    for split, grey in (("train", 10), ("val", 20), ("test", 30)):
        for name in ("a", "b"):
            paint(tmp_path / split / name / "x.png", grey)
    for split, grey in (("train", 10), ("validation", 20), ("test", 30)):
        source = load_source(f"imagefolder:{tmp_path}", split)
        assert [image.getpixel((0, 0))[0] for image in source.images] == [grey, grey]


def test_a_missing_test_split_is_answered_with_folds(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no test split; set data\.folds=4"):
        load_source(f"imagefolder:{folder}", "test")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("imagefolder:/no/such/place", "/no/such/place: there is no such folder"),
        ("/no/such/place", "/no/such/place: there is no such folder"),
        ("image_folder:x", "did you mean 'imagefolder'"),
        ("shapes-tl", "did you mean 'shapes-lt'"),
        ("what is this", "is not understood"),
    ],
)
def test_a_wrong_spec_is_named(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_source(spec, "train")


def test_an_unknown_split_and_option_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match="unknown split 'trian', did you mean 'train'"):
        load_source("shapes-lt", "trian")
    with pytest.raises(UserError, match="unknown data option 'lable'"):
        load_source(f"imagefolder:{folder}", "train", options={"lable": "x"})
    with pytest.raises(UserError, match="only shapes-lt has one"):
        load_source(f"imagefolder:{folder}", "unseen")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fold": 1}, "needs data.folds"),
        ({"folds": 4}, "choose a fold from 0 to 3"),
        ({"folds": 4, "fold": 4}, "choose a fold from 0 to 3"),
        ({"folds": 40, "fold": 0}, "folds=40"),
    ],
)
def test_wrong_folds_are_named(folder: Path, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_source(f"imagefolder:{folder}", "test", **arguments)


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="no images in this folder"):
        load_source(f"imagefolder:{tmp_path}", "train")
    with pytest.raises(UserError, match="no Parquet files here; for a folder of images write imagefolder:"):
        load_source(str(tmp_path), "train")


def test_an_empty_class_folder_is_named(folder: Path) -> None:
    (folder / "bee").mkdir()
    source = load_source(f"imagefolder:{folder}", "train", validation_fraction=0)
    assert source.class_names == ["cat", "dog", "emu", "bee"]
    with pytest.raises(UserError, match="no train images for class bee; add images or remove the class"):
        check_source(source)


def test_a_corrupt_image_is_named(folder: Path) -> None:
    (folder / "dog" / "2.png").write_bytes((folder / "dog" / "3.png").read_bytes()[:40])
    (folder / "dog" / "4.png").write_bytes(b"not an image")
    source = load_source(f"imagefolder:{folder}", "train", validation_fraction=0)
    for row, name in ((12, "2.png"), (14, "4.png")):
        with pytest.raises(UserError, match=f"dog/{name}: not a readable image"):
            source.images[row]


def test_a_decompression_bomb_is_named_and_not_decoded() -> None:
    with pytest.raises(UserError, match=r"bomb\.png: the image is too large to decode safely"):
        decode_image(png_bytes(declared=(60000, 60000)), "bomb.png")


def test_transparency_becomes_white() -> None:
    from io import BytesIO

    for mode in ("RGBA", "LA", "PA"):
        buffer = BytesIO()
        picture = Pillow.new("RGBA", (2, 1), (0, 0, 0, 0))
        picture.putpixel((1, 0), (0, 0, 0, 255))
        converted = picture.quantize(4) if mode == "PA" else picture.convert(mode)
        converted.save(buffer, "PNG")
        decoded = decode_image(buffer.getvalue(), mode)
        assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 0)]


def test_16_bit_grey_keeps_its_brightness() -> None:
    from io import BytesIO

    buffer = BytesIO()
    Pillow.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16)).save(buffer, "PNG")
    assert [decode_image(buffer.getvalue(), "x").getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


def test_parquet_with_captions_groups_and_folds(tmp_path: Path) -> None:
    columns = {
        "label": [0, 1, 0, 1],
        "caption": ["a", "", "c", None],
        "group": [0, 0, 1, 2],
        "fold": [1, 1, 2, 2],
    }
    features = {
        "label": ClassLabel(names=["x", "y"]),
        "caption": Value("string"),
        "group": Value("int64"),
        "fold": Value("int64"),
    }
    spec = str(parquet(tmp_path / "data", columns, features))
    source = load_source(spec, "train", validation_fraction=0)
    assert source.captions == ["a", "", "c", None]
    assert source.groups.tolist() == [0, 0, 1, 2]
    assert load_source(spec, "test", fold=2).captions == ["c", None]
    assert load_source(spec, "train", fold=2, validation_fraction=0).captions == ["a", ""]
    with pytest.raises(UserError, match="choose a fold from 1 to 2"):
        load_source(spec, "test", fold=0)


def test_a_rebuilt_parquet_folder_is_read_anew(tmp_path: Path) -> None:
    names = {"label": ClassLabel(names=["x", "y", "z"]), "text": Value("string")}
    sources = []
    for text in ("old", "new"):
        spec = str(parquet(tmp_path / "data", {"label": [0, 1], "text": [text, text]}, names))
        (tmp_path / "data" / "README.md").write_text(
            "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train*\n---\n"
        )
        sources.append(load_source(spec, "train", validation_fraction=0))
    assert [source.captions for source in sources] == [["old", "old"], ["new", "new"]]
    assert sources[0].fingerprint() != sources[1].fingerprint()
    assert sources[1].class_names == ["x", "y", "z"]


def test_labels_may_be_names_or_numbers(tmp_path: Path) -> None:
    named = parquet(tmp_path / "named", {"label": ["b", "a", "b"]}, {"label": Value("string")})
    source = load_source(str(named), "train", validation_fraction=0)
    assert (source.class_names, source.labels.tolist()) == (["a", "b"], [1, 0, 1])
    numbered = parquet(tmp_path / "numbered", {"label": [2, 0, 1]}, {"label": Value("int64")})
    source = load_source(str(numbered), "train", validation_fraction=0)
    assert (source.class_names, source.labels.tolist()) == (["0", "1", "2"], [2, 0, 1])


def test_a_label_outside_the_range_is_named(tmp_path: Path) -> None:
    spec = str(parquet(tmp_path / "data", {"label": [0, -7, 1]}, {"label": Value("int64")}))
    with pytest.raises(UserError, match=r"train row 1: label -7 is outside -1 … 1"):
        load_source(spec, "train")


def test_captions_without_labels_are_image_text_pairs(tmp_path: Path) -> None:
    spec = str(parquet(tmp_path / "data", {"text": ["one", "two"]}, {"text": Value("string")}))
    source = load_source(spec, "train", validation_fraction=0)
    assert source.labels.tolist() == [-1, -1]
    assert source.class_counts().tolist() == []


def test_a_dataset_without_label_and_text_is_refused(tmp_path: Path) -> None:
    spec = str(parquet(tmp_path / "data", {"score": [0.5]}, {"score": Value("float32")}))
    with pytest.raises(UserError, match="neither a label nor a text column; the columns are image, score"):
        load_source(spec, "train")
    with pytest.raises(UserError, match="no column 'kind' for the label"):
        load_source(spec, "train", options={"label": "kind"})


def test_a_subset_keeps_rows_together(folder: Path) -> None:
    source = load_source(f"imagefolder:{folder}", "train", validation_fraction=0)
    part = source.subset([15, 3]).subset([1, 0])
    assert part.labels.tolist() == [0, 2]
    assert part.images[0].getpixel((0, 0)) == (30, 30, 30)
    assert part.class_names == source.class_names


def test_a_picture_taken_sideways_is_turned_upright(tmp_path):
    """transformers' pipelines turn by EXIF; training on the unturned picture would see another one."""
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.new("RGB", (20, 10), "red").save(tmp_path / "side.jpg", exif=exif)
    assert decode_image(tmp_path / "side.jpg", "side").size == (10, 20)
