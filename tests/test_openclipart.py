import json
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Features, Value, load_dataset
from huggingface_hub import DatasetCardData
from PIL import Image

from hf_vlr.data.parquet import write_dataset
from hf_vlr.data.registry import build_dataset
from hf_vlr.data.source import load_source
from hf_vlr.datasets_scripts.openclipart_lt import SOURCE_DIR, build, describe_svg, find_classes, squared
from hf_vlr.errors import UserError

RDF = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
 xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><rdf:RDF>
<cc:Work rdf:about=""><dc:title>{title}</dc:title>
<dc:description>{description}</dc:description><dc:subject><rdf:Bag>
<rdf:li>{keyword}</rdf:li><rdf:li>hash</rdf:li><rdf:li></rdf:li><rdf:li>clip_art</rdf:li></rdf:Bag></dc:subject>
<dc:creator><cc:Agent><dc:title>An Artist</dc:title></cc:Agent></dc:creator></cc:Work>
</rdf:RDF></metadata>{end}"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def svg(title: str = "A bird", description: str = "It   sings", keyword: str = "animal", end: str = "</svg>") -> str:
    return RDF.format(title=title, description=description, keyword=keyword, end=end)


def draw(root: Path, file: str, shade: int, text: str | None = None, mode: str = "RGB") -> None:
    for kind in ("png", "svg"):
        (root / kind / file).parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (20, 10), (shade, 0, 0))
    picture.paste((0, shade, 255), (0, 0, 10, 10))
    picture.convert(mode).save(root / "png" / f"{file}.png")
    if text is not None:
        (root / "svg" / f"{file}.svg").write_text(text, encoding="utf-8")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "package"
    for index in range(6):
        draw(root, f"animals/birds/b{index}", 10 + index, svg())
        draw(root, f"food/fruit/f{index}", 100 + index, svg(title="", description="", keyword="fruit"))
    for index in range(2):
        draw(root, f"animals/birds/sea/gulls/g{index}", 50 + index)
        draw(root, f"food/fruit/red/r{index}", 200 + index, svg(end="<unclosed"))
    draw(root, "animals/dog", 5, svg())
    for index in range(7):
        draw(root, f"tools/hammers/h{index}", index)
    return root


def test_the_dataset_reads_back_by_load_dataset(tree: Path, tmp_path: Path) -> None:
    out = build(tree, tmp_path / "out", size=16, num_proc=1)
    data = load_dataset(str(out))["train"]
    assert data.column_names == ["image", "label", "class_name", "shot", "text", "file", "group"]
    assert isinstance(data.features["label"], ClassLabel)
    assert data.features["label"].names == ["animals/birds", "food/fruit"]
    assert data["label"][:] == [0] * 8 + [1] * 8
    assert data["class_name"][8] == "food/fruit"
    assert set(data["shot"]) == {"few"}
    texts = load_dataset(str(out), "texts")["train"]
    assert set(texts["label"]) == {0, 1}
    assert set(texts["license"]) == {"CC0-1.0"}
    assert data[0]["image"].size == (16, 16)
    assert data["text"][0] == "A bird. animal, clip art. It sings."
    assert data["file"][6] == "animals/birds/sea/gulls/g0.png"
    assert data["text"][6] == ""
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "16 drawings in 2 classes" in card
    assert "2 SVG files were not well-formed" in card
    assert "$" not in card
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["out", "package"]


def test_the_source_reads_it_in_folds_with_copies_together(tree: Path, tmp_path: Path) -> None:
    for copy in ("food/fruit/copy", "animals/birds/copy"):
        (tree / "png" / f"{copy}.png").write_bytes((tree / "png/animals/birds/b0.png").read_bytes())
    out = build_dataset("openclipart-lt", tree, tmp_path / "out", size=16, num_proc=2)
    groups = []
    for fold in range(3):
        test = load_source(str(out), "test", folds=3, fold=fold)
        groups += sorted(set(test.groups.tolist()))
        train = load_source(str(out), "train", folds=3, fold=fold)
        assert not set(train.groups) & set(test.groups)
        assert train.class_counts().min() > 0
    assert len(groups) == len(set(groups)) == 16


def test_blank_drawings_are_no_copies_of_each_other(tree: Path, tmp_path: Path) -> None:
    for index in range(6):
        Image.new("RGBA", (9, 9)).save(tree / f"png/food/fruit/f{index}.png")
    data = load_dataset(str(build(tree, tmp_path / "out", size=8, num_proc=1)))["train"]
    assert len(set(data["group"])) == 16


def test_unreadable_drawings_are_left_out_and_listed(tree: Path, tmp_path: Path) -> None:
    good = (tree / "png/animals/birds/b0.png").read_bytes()
    (tree / "png/animals/birds/b1.png").write_bytes(good[:50])
    huge = Image.new("1", (4000, 3000))
    huge.save(tree / "png/animals/birds/b2.png")
    out = build(tree, tmp_path / "out", size=8, num_proc=1, max_pixels=10_000_000)
    assert len(load_dataset(str(out))["train"]) == 14
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "`animals/birds/b1.png: " in card
    assert "`animals/birds/b2.png: 4000x3000 pixels are more than 10000000`" in card


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "RGB"])
def test_large_pictures_shrink_on_white_as_small_ones_do(mode: str) -> None:
    picture = Image.new("RGBA", (900, 300), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (300, 0, 600, 300))
    if mode in ("RGB", "L", "1"):
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        picture = white
    buffer = BytesIO()
    (picture.quantize(4) if mode == "P" else picture.convert(mode)).save(buffer, "PNG")
    result = np.asarray(squared(buffer.getvalue(), 30))
    expected = np.full((30, 30, 3), 255)
    expected[10:20, 10:20] = 0
    assert result.shape == (30, 30, 3)
    # Lanczos rings by a few grey levels along the edge
    assert np.abs(result.astype(int) - expected).mean() < 4
    assert result[15, 15].tolist() == [0, 0, 0]
    assert result[2, 2].tolist() == [255, 255, 255]


def test_a_thin_picture_keeps_a_pixel() -> None:
    buffer = BytesIO()
    Image.new("RGB", (1, 500), "red").save(buffer, "PNG")
    assert squared(buffer.getvalue(), 20).size == (20, 20)


def test_texts_of_broken_and_hostile_svgs(tmp_path: Path) -> None:
    path = tmp_path / "x.svg"
    path.write_text(svg(end="<unclosed"), encoding="utf-8")
    assert describe_svg(path) == ("A bird. animal, clip art. It sings.", True)
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    entity = f'<!DOCTYPE svg [<!ENTITY x SYSTEM "{secret.as_uri()}">]>'
    path.write_text(svg(title="&x;").replace("<svg", entity + "<svg", 1), encoding="utf-8")
    assert describe_svg(path) == ("&x;. animal, clip art. It sings.", False)
    path.write_bytes(b"\xff\x00 no xml")
    assert describe_svg(path) == ("", True)
    assert describe_svg(tmp_path / "none.svg") == ("", False)


def test_a_sample_keeps_a_tail(tree: Path, tmp_path: Path) -> None:
    for index in range(80):
        draw(tree, f"shapes/stars/s{index}", index, mode="L")
    data = load_dataset(str(build(tree, tmp_path / "out", size=8, num_proc=1, sample=40)))["train"]
    counts = np.bincount(data["label"])
    assert 30 <= counts.sum() <= 45
    assert counts.min() >= 8
    assert counts.max() > counts.min()


def test_failures_leave_nothing_behind(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fewer than two classes with at least 100 drawings"):
        build(tree, tmp_path / "out", min_images=100)
    with pytest.raises(UserError, match="no folder png/ here; install Debian's openclipart-png"):
        build(tmp_path, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(UserError, match="exists already; remove it or choose another out folder"):
        build(tree, tmp_path / "full")

    def rows() -> Iterator[dict[str, int]]:
        yield from ({"x": index} for index in range(250))
        raise UserError("the power went")

    with pytest.raises(UserError, match="the power went"):
        write_dataset({"train": rows()}, Features({"x": Value("int64")}), tmp_path / "out", DatasetCardData(), str)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "package"]


def test_unknown_builders_and_options_are_named(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'openclipart', did you mean 'openclipart-lt'"):
        build_dataset("openclipart", tree, tmp_path / "out")
    with pytest.raises(UserError, match="openclipart-lt has no option 'sizes', did you mean 'size'; there are"):
        build_dataset("openclipart-lt", tree, tmp_path / "out", sizes=3)


@pytest.mark.slow
def test_the_real_package_has_53_classes() -> None:
    png = Path(SOURCE_DIR) / "png"
    if not png.is_dir():
        pytest.skip("Debian's package openclipart-png is not installed")
    classes = find_classes(png, 8)
    counts = sorted(len(drawings) for drawings in classes.values())
    assert (len(counts), sum(counts), counts[0], counts[-1]) == (53, 6468, 9, 1853)


@pytest.mark.slow
def test_a_sample_of_the_real_package(tmp_path: Path) -> None:
    if not (Path(SOURCE_DIR) / "svg").is_dir():
        pytest.skip("Debian's packages openclipart-png and openclipart-svg are not installed")
    data = load_dataset(str(build(out=tmp_path / "out", size=64, sample=100)))["train"]
    assert 80 <= len(data) <= 120
    assert np.mean([bool(text) for text in data["text"]]) > 0.9


def test_every_class_is_described_in_our_own_words():
    text = files("hf_vlr.datasets_scripts").joinpath("openclipart_lt_texts.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    described = Counter(row["class_name"] for row in rows)
    assert len(described) == 53 and min(described.values()) >= 3
    assert {row["license"] for row in rows} == {"CC0-1.0"}


def test_it_trains_from_its_parquet(tree: Path, tmp_path: Path, trained) -> None:
    out = build(tree, tmp_path / "out", size=32, num_proc=1)
    run = trained(out, "data.folds=3", "data.fold=0")
    assert json.loads((run / "metrics.json").read_text())["protocol"]["split"] == "test (fold 0 of 3)"


def test_an_interrupted_build_goes_on_from_the_drawings_it_had_read(tree: Path, tmp_path: Path, monkeypatch) -> None:
    whole = build(tree, tmp_path / "whole", size=16, num_proc=1)
    assert not list(tmp_path.glob(".*.drawings"))

    def interrupted(splits: dict, *settings: object) -> None:
        list(splits["train"])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("hf_vlr.datasets_scripts.openclipart_lt.write_dataset", interrupted)
        build(tree, tmp_path / "again", size=16, num_proc=1)
    assert not (tmp_path / "again").exists()
    kept = list((tmp_path / ".again.drawings").iterdir())
    assert len(kept) == len(load_dataset(str(whole), split="train"))
    # a mark that is there only if the drawing is not read again
    marked = next(path for path in kept if "A bird" in path.read_text())
    marked.write_text(marked.read_text().replace("A bird", "A kept bird"))
    texts = load_dataset(str(build(tree, tmp_path / "again", size=16, num_proc=1)), split="train")["text"]
    assert sum("A kept bird" in text for text in texts) == 1
    assert not list(tmp_path.glob(".*.drawings"))
    build(tree, tmp_path / "third", size=16, num_proc=1)
    name = "data/train-00000-of-00001.parquet"
    assert (tmp_path / "third" / name).read_bytes() == (whole / name).read_bytes()
