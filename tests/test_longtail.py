"""Class sizes against published totals, the published subset against a few lines, and a copy made on the way."""

import hashlib
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCardData
from PIL import Image

from hf_vlr.cli.main import main
from hf_vlr.data.longtail import (
    KINDS,
    assign_sizes,
    class_sizes,
    published_cifar_subset,
    subset_by_sizes,
)
from hf_vlr.data.longtail_dataset import LongTail, make_longtail
from hf_vlr.data.parquet import write_dataset, write_texts
from hf_vlr.data.source import load_source
from hf_vlr.data.texts.row import TextRow
from hf_vlr.errors import UserError

# Digests of the rows (little-endian int64) that the reference below keeps of `cifar_like_labels`.
DIGESTS = {
    (10, 100, "exp"): "b39494e3986af0da",
    (10, 10, "step"): "665d36fb52347c08",
    (100, 100, "exp"): "b7e30d044a9f6aca",
    (100, 200, "exp"): "f08285c4c537d2c7",
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize(
    ("classes", "largest", "totals"),
    [
        (10, 5000, {10: 20431, 50: 13996, 100: 12406}),
        (100, 500, {10: 19573, 50: 12608, 100: 10847, 200: 9502}),
    ],
)
def test_sizes_add_up_to_the_published_totals(classes, largest, totals):
    assert {factor: int(class_sizes(classes, largest, factor).sum()) for factor in totals} == totals


def test_the_groups_of_cifar_100_lt_are_the_published_ones():
    groups = {}
    for factor in (10, 50, 100, 200):
        sizes = class_sizes(100, 500, factor)
        groups[factor] = (
            int((sizes > 100).sum()),
            int(((sizes >= 20) & (sizes <= 100)).sum()),
            int((sizes < 20).sum()),
        )
    assert groups == {10: (69, 31, 0), 50: (41, 41, 18), 100: (35, 35, 30), 200: (30, 31, 39)}


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_fall_from_the_largest_to_the_imbalance_factor(kind):
    for classes in (2, 3, 10, 101):
        for largest in (7, 49, 500, 1280, 4999):
            for factor in (1, 2, 3.5, 7, 49, 256):
                if factor <= largest:
                    sizes = class_sizes(classes, largest, factor, kind)
                    assert sizes.dtype == np.int64 and len(sizes) == classes
                    assert sizes[0] == largest and sizes[-1] == max(1, int(largest * (1 / factor)))
                    assert (np.diff(sizes) <= 0).all()


def test_the_kinds_differ_in_shape():
    assert class_sizes(5, 100, 10, "step").tolist() == [100, 100, 10, 10, 10]
    assert class_sizes(3, 100, 100, "exp").tolist() == [100, 10, 1]
    # by hand: quantiles (1/6)^(-1/2) - 1, (1/2)^(-1/2) - 1, (5/6)^(-1/2) - 1 are 1.4495, 0.4142, 0.0954
    assert class_sizes(3, 1000, 10, "pareto", alpha=2).tolist() == [1000, 100 + int(900 * 0.31879 / 1.35404), 100]
    assert class_sizes(1, 5, 3).tolist() == [5]
    heavy, light = (class_sizes(100, 500, 100, "pareto", alpha).sum() for alpha in (1, 20))
    assert heavy < light


def test_pareto_sizes_are_the_quantiles_that_numpy_draws():
    drawn = np.sort(np.random.default_rng(0).pareto(6.0, size=400_000))[::-1]
    sizes = class_sizes(1000, 100_000, 100_000, "pareto")
    # deciles of the draws, on the scale on which the sizes lie
    ranks = np.arange(50, 1000, 100)
    expected = drawn[((ranks + 0.5) * 400).astype(int)]
    assert np.allclose(expected / expected[0], sizes[ranks] / sizes[ranks[0]], atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((10, 50, 100), "imbalance_factor=100 leaves the smallest class without an image, as the largest has 50; "),
        ((10, 50, 0.5), "imbalance_factor=0.5: choose a number from 1"),
        ((10, 50, float("nan")), "imbalance_factor=nan: "),
        ((10, 50, 10, "steps"), "type=steps is unknown, did you mean 'step'?; there are: exp, step, pareto"),
        ((10, 50, 10, "pareto", 0), "alpha=0: "),
        ((0, 50, 10), "0 classes of at most 50 images"),
    ],
)
def test_impossible_sizes_are_refused(arguments, said):
    with pytest.raises(UserError) as caught:
        class_sizes(*arguments)
    assert str(caught.value).startswith(said.replace("?;", ";"))


def cifar_like_labels(classes: int) -> np.ndarray:
    """50,000 labels, equally many of each class, in a fixed mixed order, which is not CIFAR's own."""
    return np.random.RandomState(1).permutation(50_000) % classes


def published_reference(labels: np.ndarray, factor: float, kind: str) -> list[int]:
    """What the published code does, in a few lines and with the global generator."""
    classes = int(labels.max()) + 1
    largest, share = len(labels) / classes, 1 / factor
    np.random.seed(0)
    kept = []
    for label in range(classes):
        tail = share ** (label / (classes - 1.0)) if kind == "exp" else (1 if label < classes // 2 else share)
        rows = np.where(labels == label)[0]
        np.random.shuffle(rows)
        kept += rows[: int(largest * tail)].tolist()
    return kept


@pytest.mark.parametrize(("classes", "factor", "kind"), DIGESTS)
def test_the_published_subset_row_by_row(classes, factor, kind):
    # the archive's own labels are not at hand here, so a stand-in of the same size is cut
    labels = cifar_like_labels(classes)
    state = np.random.get_state()
    try:
        expected = published_reference(labels, factor, kind)
    finally:
        np.random.set_state(state)
    rows = published_cifar_subset(labels, factor, kind)
    assert rows.dtype == np.int64
    assert rows.tolist() == expected
    assert hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16] == DIGESTS[classes, factor, kind]
    assert np.bincount(labels[rows]).tolist() == class_sizes(classes, 50_000 // classes, factor, kind).tolist()


def test_the_global_generator_is_left_alone():
    before = np.random.get_state()[1:3]
    published_cifar_subset(np.repeat([0, 1], 20), 10)
    after = np.random.get_state()[1:3]
    assert np.array_equal(before[0], after[0]) and before[1] == after[1]


@pytest.mark.parametrize("labels", [[0, 0, 1], [0, 0], [-1, 0], []])
def test_the_published_subset_needs_a_balanced_dataset(labels):
    with pytest.raises(UserError, match="equally many images in every class"):
        published_cifar_subset(np.array(labels, dtype=np.int64), 2)


def test_the_published_subset_has_no_pareto():
    with pytest.raises(UserError, match="type=pareto is unknown; there are: exp, step"):
        published_cifar_subset(np.array([0, 0, 1, 1]), 2, "pareto")


def test_a_subset_has_its_sizes_and_follows_the_seed():
    labels = np.random.default_rng(1).integers(-1, 5, 400)
    sizes = [30, 12, 5, 1000, 0]
    rows = subset_by_sizes(labels, sizes, seed=3)
    assert rows.tolist() == subset_by_sizes(labels, sizes, seed=3).tolist() == sorted(set(rows.tolist()))
    assert np.bincount(labels[rows], minlength=5).tolist() == [30, 12, 5, (labels == 3).sum(), 0]
    assert rows.tolist() != subset_by_sizes(labels, sizes, seed=4).tolist()
    assert set(rows) >= set(subset_by_sizes(labels, [20, 12, 1, 7, 0], seed=3))
    assert subset_by_sizes(labels, [], seed=0).tolist() == []


def test_a_class_is_chosen_without_regard_to_the_others():
    labels = np.array([0, 1] * 50)
    alone = subset_by_sizes(np.where(labels == 1, 1, -1), [0, 9], seed=0)
    assert subset_by_sizes(labels, [30, 9], seed=0)[labels[subset_by_sizes(labels, [30, 9], seed=0)] == 1].tolist() == (
        alone.tolist()
    )


def test_every_row_is_equally_likely():
    labels = np.zeros(10, dtype=np.int64)
    times = sum(np.bincount(subset_by_sizes(labels, [3], seed), minlength=10) for seed in range(2000))
    # 600 of each expected, with a standard deviation of 20
    assert np.abs(times - 600).max() < 100


def test_sizes_go_to_classes_by_size_or_as_given():
    sizes, available = np.array([50, 20, 5]), np.array([10, 60, 10])
    assert assign_sizes(sizes, available, "size").tolist() == [20, 50, 5]
    assert assign_sizes(sizes, available, "given").tolist() == [50, 20, 5]
    assert assign_sizes(sizes, np.array([60, 60, 60]), "size").tolist() == [50, 20, 5]
    with pytest.raises(UserError, match="order=sise is unknown, did you mean 'size'"):
        assign_sizes(sizes, available, "sise")


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """Four classes of 12, 40, 40 and 3 training images, and a test split of 2 each."""
    for split, counts in (("train", (12, 40, 40, 3)), ("test", (2, 2, 2, 2))):
        for label, (name, count) in enumerate(zip(("ant", "bee", "cat|dog", "dab"), counts)):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (4, 4), (label * 60, index, 100)).save(folder / f"{index:02d}.png")
    return f"imagefolder:{tmp_path / 'photos'}"


def test_a_copy_has_the_rows_it_says(photos, tmp_path):
    cut = make_longtail(photos, tmp_path / "out", LongTail(imbalance_factor=10))
    assert cut.wanted.tolist() == class_sizes(4, 40, 10)[[2, 0, 1, 3]].tolist() == [8, 40, 18, 4]
    assert cut.kept.tolist() == [8, 40, 18, 3]
    assert cut.short() == ["dab: 3 instead of 4"]
    data = load_dataset(str(tmp_path / "out"))
    assert data["train"].column_names == ["image", "label", "class_name", "shot", "text", "source_row"]
    assert np.bincount(data["train"]["label"]).tolist() == [8, 40, 18, 3]
    assert (len(data["test"]), data["test"]["source_row"][:]) == (8, list(range(8)))
    assert data["train"].features["label"].names == ["ant", "bee", "cat|dog", "dab"]
    assert {(row["class_name"], row["shot"]) for row in data["train"]} == {
        ("ant", "few"), ("bee", "medium"), ("cat|dog", "few"), ("dab", "few"),
    }  # fmt: skip
    source = load_source(photos, "train", validation_fraction=0)
    for row in data["train"]:
        assert row["image"].tobytes() == source.images[row["source_row"]].tobytes()
        assert row["label"] == source.labels[row["source_row"]]
    assert load_source(str(tmp_path / "out"), "train", validation_fraction=0).class_counts().tolist() == [8, 40, 18, 3]


def test_images_are_taken_over_byte_for_byte(photos, tmp_path):
    make_longtail(photos, tmp_path / "out", LongTail(imbalance_factor=10))
    raw = load_dataset(str(tmp_path / "out"), split="test").cast_column("image", datasets.Image(decode=False))
    stored = raw[2]["image"]
    assert stored["path"] == "00.png"
    assert stored["bytes"] == (tmp_path / "photos/test/bee/00.png").read_bytes()


def test_the_card_tells_how_it_was_cut_but_not_where_it_lay(photos, tmp_path):
    make_longtail(photos, tmp_path / "out", LongTail(imbalance_factor=10, seed=5))
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "69 of the 95 labelled training images of `photos`" in card
    assert "type `exp`, imbalance factor 10, largest class 40, classes in the order `size`, seed 5." in card
    assert "4 classes of 40 … 3 training images (0 many, 1 medium, 3 few;" in card
    assert "- dab: 3 instead of 4" in card
    assert "| cat\\|dog | 40 | 18 | 18 |" in card
    assert str(tmp_path) not in card


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_copy_is_a_function_of_source_and_options(photos, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_longtail(photos, tmp_path / name, LongTail(imbalance_factor=10, seed=seed))
    one, other, third = (files_of(tmp_path / name) for name in "abc")
    assert one == other
    train, test = "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"
    assert one[train] != third[train] and one[test] == third[test]


def test_a_copy_of_a_copy_keeps_groups_and_texts(tmp_path):
    rows = datasets.Dataset.from_dict(
        {
            "picture": [{"bytes": None, "path": str(tmp_path / "one.png")}] * 9,
            "kind": ["x"] * 5 + ["y"] * 3 + [None],
            "caption": [f"number {index}" for index in range(9)],
            "group": [0, 0, 1, 2, 3, 4, 5, 6, 7],
        }
    ).cast_column("picture", datasets.Image())
    Image.new("RGB", (3, 3)).save(tmp_path / "one.png")
    (tmp_path / "source").mkdir()
    rows.to_parquet(tmp_path / "source" / "train.parquet")
    cut = make_longtail(
        str(tmp_path / "source"), tmp_path / "out", LongTail(5.0), {"image": "picture", "label": "kind"}
    )
    assert (cut.kept.tolist(), cut.unlabelled, cut.others) == ([5, 1], 1, {})
    data = load_dataset(str(tmp_path / "out"), split="train")
    assert [row["text"] for row in data] == [f"number {row}" for row in data["source_row"]]
    assert data["group"][:5] == [0, 0, 1, 2, 3]
    assert "- 1 training rows without a class were left out" in (tmp_path / "out/README.md").read_text()
    again = make_longtail(str(tmp_path / "out"), tmp_path / "again", LongTail(1.0, largest=1))
    assert again.kept.tolist() == [1, 1]


def test_a_missing_image_is_named_and_nothing_is_left_behind(tmp_path):
    rows = [{"image": {"bytes": None, "path": str(tmp_path / "gone.png")}, "label": label} for label in (0, 1)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    write_dataset({"train": rows}, features, tmp_path / "source", DatasetCardData(), str)
    with pytest.raises(UserError, match=r"gone\.png: the image cannot be read"):
        make_longtail(str(tmp_path / "source"), tmp_path / "out", LongTail(1.0))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["source"]


@pytest.fixture
def hf_vlr(capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(list(words))
        return caught.value.code, *capsys.readouterr()

    return run


def test_the_command_reports_counts_and_small_classes(hf_vlr, photos, tmp_path):
    out = str(tmp_path / "out")
    code, said, _ = hf_vlr("data", "make-longtail", photos, "--out", out, "imbalance_factor=10", "type=step")
    assert code == 0
    assert said.splitlines() == [
        "split train  87 of 95 images",
        "split test   8 images, as they were",
        "classes      4 of 40 … 3 training images",
        "classes with fewer images than their size: 1",
        "  dab: 3 instead of 4",
        f"written to {out}; train on it with --data {out}",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["imbalance=10"],
            "unknown option 'imbalance', did you mean 'imbalance_factor'; there are: imbalance_factor, ",
        ),
        (["seed=x"], "seed=x must be int"),
        (["type=3"], "type=3 must be a word"),
        (["type=expo"], "type=expo is unknown, did you mean 'exp'; there are: exp, step, pareto"),
        (["imbalance_factor=100"], "imbalance_factor=100 leaves the smallest class without an image, as the largest "),
        (["label=kind"], "no column 'kind' for the label; there are: image, label"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(hf_vlr, photos, tmp_path, words, said):
    code, out, err = hf_vlr("data", "make-longtail", photos, "--out", str(tmp_path / "out"), *words)
    assert (code, out) == (2, "")
    assert f"error: {said}" in err and err.count("error: ") == 1
    assert not (tmp_path / "out").exists()


def test_shapes_lt_and_a_full_folder_are_refused(photos, tmp_path):
    with pytest.raises(UserError, match=r"shapes-lt is drawn with a tail of its own; set data\.options\.imbalance"):
        make_longtail("shapes-lt", tmp_path / "out")
    with pytest.raises(UserError, match="exists already"):
        make_longtail(photos, tmp_path / "photos")


def test_a_streamed_source_gives_the_same_copy_and_its_texts_go_along(photos, tmp_path):
    make_longtail(photos, tmp_path / "whole", LongTail(1.0, largest=8))
    write_texts([TextRow(2, "a cat or a dog", "own", "CC0-1.0")], ["ant", "bee", "cat|dog", "dab"], tmp_path / "whole")
    for name, source in (("plain", f"{tmp_path / 'whole'}"), ("streamed", f"stream:{tmp_path / 'whole'}")):
        make_longtail(source, tmp_path / name, LongTail(imbalance_factor=4))
    plain, streamed = files_of(tmp_path / "plain"), files_of(tmp_path / "streamed")
    assert plain == streamed
    assert load_dataset(str(tmp_path / "plain"), "texts", split="train").to_list() == [
        {"label": 2, "class_name": "cat|dog", "text": "a cat or a dog", "source": "own", "license": "CC0-1.0"}
    ]
    assert str(tmp_path) not in streamed["README.md"].decode()
