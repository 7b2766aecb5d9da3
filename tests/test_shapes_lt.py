import time

import numpy as np
import pytest
import torch

from hf_vlr.data import shapes_lt
from hf_vlr.data.corpus import build_corpus
from hf_vlr.data.shapes_lt import DrawnImages, ShapesOptions, shapes_classes, training_counts
from hf_vlr.data.shapes_text import (
    COLOURS,
    COUNTS,
    SHAPES,
    TEXTURES,
    Combination,
    from_name,
    shapes_sentences,
)
from hf_vlr.data.source import ImageSource, check_source, load_source
from hf_vlr.errors import UserError

SMALL = {"classes": 20, "unseen": 4, "max_count": 30, "imbalance": 10}


def pixels(source: ImageSource) -> np.ndarray:
    return np.stack([np.asarray(image) for image in source.images])


def test_counts_follow_the_exponential_profile() -> None:
    counts = training_counts(ShapesOptions())
    assert (counts[0], counts[-1], len(counts)) == (200, 2, 108)
    reference = [max(1, int(200 * (1 / 100) ** (index / 107))) for index in range(108)]
    assert counts.tolist() == reference
    assert training_counts(ShapesOptions(classes=3, max_count=5, imbalance=100)).tolist() == [5, 1, 1]


def test_splits_have_the_promised_sizes() -> None:
    train = load_source("shapes-lt", "train", options=SMALL)
    assert train.class_counts().tolist() == training_counts(ShapesOptions(**SMALL)).tolist()
    check_source(train)
    assert load_source("shapes-lt", "validation", options=SMALL).class_counts().tolist() == [5] * 20
    assert load_source("shapes-lt", "test", options=SMALL | {"test": 3}).class_counts().tolist() == [3] * 20
    unseen = load_source("shapes-lt", "unseen", options=SMALL)
    assert unseen.class_counts().tolist() == [10] * 4
    assert not set(unseen.class_names) & set(train.class_names)


@pytest.mark.parametrize("classes", [2, 20, 108, 300, 1200])
def test_any_number_of_classes_with_every_unseen_attribute_seen(classes: int) -> None:
    seen, unseen = shapes_classes(ShapesOptions(classes=classes, unseen=12 if classes > 2 else 0))
    assert (len(set(seen)), len(set(seen) | set(unseen))) == (classes, classes + len(unseen))
    values = {value for name in seen for value in from_name(name)}
    assert all(values.issuperset(from_name(name)) for name in unseen)


def test_frequency_does_not_go_with_an_attribute() -> None:
    seen, _ = shapes_classes(ShapesOptions())
    for position in range(3):
        ranks: dict[str, list[int]] = {}
        for rank, name in enumerate(seen):
            ranks.setdefault(from_name(name)[position], []).append(rank)
        assert all(30 < np.mean(group) < 77 for group in ranks.values())


def test_pictures_depend_on_seed_split_and_index_alone() -> None:
    train = pixels(load_source("shapes-lt", "train", options=SMALL))
    assert np.array_equal(train, pixels(load_source("shapes-lt", "train", options=SMALL)))
    more = load_source("shapes-lt", "train", options=SMALL | {"max_count": 40})
    assert np.array_equal(train[:30], pixels(more)[:30])
    assert not np.array_equal(train[:5], pixels(load_source("shapes-lt", "test", options=SMALL))[:5])
    assert not np.array_equal(train[0], pixels(load_source("shapes-lt", "train", seed=1, options=SMALL))[0])
    assert len({picture.tobytes() for picture in train}) == len(train)


def test_pictures_too_large_to_keep_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (["red plain star", "two blue striped rings"], np.array([0, 1, 1]), "train", 0, 32, 12.0)
    kept = DrawnImages(*arguments)
    monkeypatch.setattr(shapes_lt, "EAGER_BYTES", 0)
    drawn = DrawnImages(*arguments)
    assert drawn._pixels is None
    assert all(np.array_equal(kept[index], drawn[index]) for index in range(3))
    assert kept.identity() == drawn.identity()


def test_fingerprints_tell_options_apart() -> None:
    prints = {
        load_source("shapes-lt", "train", seed=seed, options=SMALL | extra).fingerprint()
        for seed in (0, 1)
        for extra in ({}, {"size": 24}, {"noise": 5.0}, {"max_count": 31})
    }
    assert len(prints) == 8


@pytest.mark.parametrize("position", [0, 1, 2])
def test_every_attribute_can_be_seen_in_the_pixels(position: int) -> None:
    # Nearest class mean on features that ignore place tells each attribute's values apart better than chance:
    # so the drawing shows what the name says.
    rng = np.random.default_rng(0)
    values = (COLOURS, TEXTURES, SHAPES)[position]
    features, answers = [], []
    for at in range(60 * len(values)):
        chosen = ["red", "plain", "circle", "one"]
        chosen[position] = values[at % len(values)]
        picture = shapes_lt.draw_shape(Combination(*chosen), 32, 0.0, rng).astype(np.float64)
        spectrum = np.abs(np.fft.fft2(picture.mean(2)))[:16, :16].ravel()
        hue = (picture - picture.mean(2, keepdims=True)).reshape(-1, 3)
        extremes = np.sort(hue, axis=0)[[5, 40, -40, -5]].ravel()
        features.append(np.concatenate([np.log1p(spectrum), extremes / 10]))
        answers.append(at % len(values))
    x, y = np.stack(features), np.array(answers)
    half = len(y) // 2
    means = np.stack([x[:half][y[:half] == value].mean(0) for value in range(len(values))])
    guessed = ((x[half:, None] - means) ** 2).sum(2).argmin(1)
    assert np.mean(guessed == y[half:]) > 2 / len(values)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_objects_can_be_counted(count: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        picture = shapes_lt.draw_shape(Combination("red", "plain", "circle", COUNTS[count - 1]), 64, 0.0, rng)
        red = picture[:, :, 0].astype(int) - picture[:, :, 1:].max(2) > 90
        quarters = [red[y : y + 32, x : x + 32].sum() > 10 for y in (0, 32) for x in (0, 32)]
        assert sum(quarters) == count


def test_names_and_attributes_are_two_spellings_of_one_thing() -> None:
    for combination in (
        Combination("red", "plain", "cross", "two"),
        Combination("cyan", "hollow", "circle", "one"),
        Combination("black", "dotted", "ring", "four"),
    ):
        assert from_name(combination.name) == combination
    assert from_name("two red plain crosses").shape == "cross"
    for wrong in (
        "red plain crosses",
        "red star",
        "pink plain star",
        "two red plain star",
        "one red plain star",
    ):
        with pytest.raises(UserError, match="is not a class of shapes-lt"):
            from_name(wrong)


def test_sentences_are_full_partial_and_off_topic() -> None:
    striped = shapes_sentences("red striped triangle")
    assert "it is a striped triangle in red." in striped
    assert "the object is red." in striped
    assert "the object has a striped surface." in striped
    shared = set(striped) & set(shapes_sentences("blue plain star"))
    assert len(shared) == 8
    assert not shared & set(shapes_sentences("red striped triangle", off_topic=False))
    assert any("two" in text for text in shapes_sentences("two red striped triangles"))


def test_the_corpus_covers_seen_and_unseen_classes() -> None:
    for split in ("train", "unseen"):
        source = load_source("shapes-lt", split, options=SMALL)
        corpus = build_corpus(None, source)
        corpus.require_every_class(source.class_names)
        assert len({tuple(corpus.of(label)) for label in range(source.num_classes)}) == source.num_classes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clases": 3}, "unknown option 'clases'"),
        ({"classes": 1}, "classes=1 of shapes-lt must be at least 2"),
        ({"classes": 5000}, "5012 classes are too many"),
        ({"classes": 2.5}, "classes=2.5 of shapes-lt must be a number"),
        ({"size": "32"}, "size='32' of shapes-lt must be a number"),
        ({"imbalance": 0.5}, "imbalance=0.5 of shapes-lt must be at least 1"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_source("shapes-lt", "train", options=options)


def test_folds_and_a_missing_unseen_split_are_refused() -> None:
    with pytest.raises(UserError, match="has its own test split"):
        load_source("shapes-lt", "test", folds=4, fold=0)
    with pytest.raises(UserError, match="no unseen classes"):
        load_source("shapes-lt", "unseen", options={"unseen": 0})


def test_drawing_is_cheap() -> None:
    start = time.process_time()
    source = load_source("shapes-lt", "train", options={"max_count": 50})
    assert (time.process_time() - start) / len(source) < 2e-3
    assert torch.from_numpy(pixels(source)).dtype == torch.uint8
