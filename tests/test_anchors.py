import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_vlr import anchors
from hf_vlr.anchors import (
    gather_anchor_features,
    limit_images_per_class,
    score_sentences,
    score_sentences_reference,
    select_anchors,
    unscored_order,
)
from hf_vlr.errors import UserError

GOLDEN = Path(__file__).parent / "golden"


def drawn(num_sentences=50, num_images=40, classes=6, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randn(num_sentences, width, generator=generator) * 3
    images = torch.randn(num_images, width, generator=generator) / 5
    text_labels = torch.randint(0, classes, (num_sentences,), generator=generator)
    image_labels = torch.cat(
        [torch.arange(classes), torch.randint(0, classes, (num_images - classes,), generator=generator)]
    )
    return texts, text_labels, images, image_labels


def test_scores_and_picks_of_the_original():
    vectors = np.load(GOLDEN / "vlltr_testvectors.npz")
    stored = {
        name: torch.from_numpy(vectors[f"anss/{name}"])
        for name in ("img", "img_label", "sent", "n_sent", "ce", "scale")
    }
    labels = torch.arange(3).repeat_interleave(stored["n_sent"])
    scores = score_sentences(stored["sent"], labels, stored["img"], stored["img_label"], stored["scale"])
    assert (scores - stored["ce"]).norm() / stored["ce"].norm() <= 1e-5
    selection = select_anchors(scores, labels, num_classes=3, num_anchors=3)
    first = torch.tensor([0, 5, 8]).unsqueeze(1)
    picks = json.loads((GOLDEN / "vlltr_testvectors.json").read_text(encoding="utf-8"))
    assert (selection.index - first).tolist() == picks["anss_selected_top3_within_class"]
    assert selection.mask.all()


@pytest.mark.parametrize("scale", [1.0, 20.0, 100.0])
@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_agrees_with_the_reference(scale, chunk_size):
    inputs = drawn()
    scores = score_sentences(*inputs, scale, chunk_size=chunk_size)
    expected = score_sentences_reference(*inputs, scale)
    assert scores.dtype == torch.float32
    assert (scores - expected).norm() / expected.norm() <= 1e-5


@pytest.mark.parametrize("block", [1, 5, 16])
def test_images_in_blocks(block, monkeypatch):
    inputs = drawn()
    monkeypatch.setattr(anchors, "IMAGES_CPU", block)
    scores = score_sentences(*inputs, 100.0, chunk_size=9)
    expected = score_sentences_reference(*inputs, 100.0)
    assert (scores - expected).norm() / expected.norm() <= 1e-5


def test_opposite_features_at_the_highest_temperature_stay_finite():
    direction = torch.ones(1, 8)
    scores = score_sentences(direction, torch.tensor([0]), -direction.expand(4, 8), torch.tensor([0, 0, 1, 1]), 100.0)
    assert scores.item() == pytest.approx(np.log(4), rel=1e-5)


def test_order_of_images_and_of_sentences_does_not_matter():
    texts, text_labels, images, image_labels = drawn()
    plain = score_sentences(texts, text_labels, images, image_labels, 100.0)
    sentences = torch.randperm(len(texts), generator=torch.Generator().manual_seed(1))
    moved = score_sentences(texts[sentences], text_labels[sentences], images, image_labels, 100.0)
    torch.testing.assert_close(moved, plain[sentences], rtol=1e-5, atol=1e-4)
    pictures = torch.randperm(len(images), generator=torch.Generator().manual_seed(2))
    moved = score_sentences(texts, text_labels, images[pictures], image_labels[pictures], 100.0)
    torch.testing.assert_close(moved, plain, rtol=1e-5, atol=1e-4)
    before = select_anchors(plain, text_labels, 6, 4).index
    after = select_anchors(plain[sentences], text_labels[sentences], 6, 4).index
    assert torch.equal(torch.where(after < 0, -1, sentences[after]), before)


def test_length_of_features_does_not_matter_and_gradients_are_not_kept():
    texts, text_labels, images, image_labels = drawn()
    plain = score_sentences(texts, text_labels, images, image_labels, 20.0)
    scaled = score_sentences((texts * 8).requires_grad_(), text_labels, images / 4, image_labels, 20.0)
    assert torch.equal(scaled, plain)
    assert not scaled.requires_grad


def test_low_precision_features_and_autocast_are_scored_in_float32():
    texts, text_labels, images, image_labels = drawn()
    half = score_sentences(texts.bfloat16(), text_labels, images.bfloat16(), image_labels, 100.0)
    exact = score_sentences_reference(
        texts.bfloat16().double(), text_labels, images.bfloat16().double(), image_labels, 100.0
    )
    assert (half - exact).norm() / exact.norm() <= 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = score_sentences(texts, text_labels, images, image_labels, 100.0)
    assert torch.equal(inside, score_sentences(texts, text_labels, images, image_labels, 100.0))


def test_a_class_without_images_scores_infinity_and_is_still_selected():
    texts, text_labels, images, image_labels = drawn()
    kept = image_labels != 5
    scores = score_sentences(texts, text_labels, images[kept], image_labels[kept], 20.0)
    assert torch.equal(scores.isposinf(), text_labels == 5)
    expected = score_sentences_reference(texts, text_labels, images[kept], image_labels[kept], 20.0)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    chosen = select_anchors(scores, text_labels, 6, 2).index[5]
    assert chosen.tolist() == (text_labels == 5).nonzero().flatten()[:2].tolist()


def test_the_sentence_that_shows_its_class_wins():
    images = torch.eye(4)[torch.tensor([0, 0, 1, 1, 2, 2])]
    texts = torch.eye(4)[torch.tensor([3, 0, 1, 1, 0, 2])]
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    scores = score_sentences(texts, labels, images, torch.tensor([0, 0, 1, 1, 2, 2]), 10.0)
    # Off-topic beats naming another class: it spreads over all images instead of over the wrong ones.
    assert select_anchors(scores, labels, 3, 3).index.tolist() == [[1, 0, 2], [3, -1, -1], [5, 4, -1]]


def test_the_first_sentences_are_the_corpus_s_own_order():
    labels = torch.tensor([1, 0, 1, 0, 1])
    selection = select_anchors(unscored_order(labels, "first", seed=3), labels, 2, 2)
    assert selection.index.tolist() == [[1, 3], [0, 2]]


def test_random_sentences_depend_on_seed_class_and_number_alone():
    labels = torch.arange(4).repeat_interleave(30)
    ranks = unscored_order(labels, "random", seed=0)
    assert torch.equal(ranks, unscored_order(labels, "random", seed=0))
    assert not torch.equal(ranks, unscored_order(labels, "random", seed=1))
    assert [part.sort().values.tolist() for part in ranks.split(30)] == [list(range(30))] * 4
    assert not torch.equal(ranks[:30], ranks[30:60])
    mixed = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    without = mixed[labels[mixed] != 2]
    apart = unscored_order(labels[without], "random", seed=0)
    for label in (0, 1, 3):
        assert torch.equal(apart[labels[without] == label], ranks[30 * label : 30 * label + 30])


def test_random_sentences_are_fair():
    labels = torch.zeros(20, dtype=torch.int64)
    kept = torch.zeros(20)
    for seed in range(400):
        kept[select_anchors(unscored_order(labels, "random", seed), labels, 1, 5).index[0]] += 1
    # 400 draws of a quarter of the sentences: a standard deviation of 8.7 around 100 for each
    assert kept.sum() == 2000 and kept.min() > 60 and kept.max() < 140


def test_an_unknown_order_is_an_error():
    with pytest.raises(UserError, match=r"anchors\.selection=scored is no order of its own"):
        unscored_order(torch.tensor([0]), "scored", seed=0)


def test_padding_ties_and_infinities():
    scores = torch.tensor([3.0, 1.0, 1.0, torch.inf, 2.0, 1.0])
    labels = torch.tensor([0, 1, 0, 0, 1, 0])
    selection = select_anchors(scores, labels, num_classes=2, num_anchors=5)
    assert selection.index.tolist() == [[2, 5, 0, 3, -1], [1, 4, -1, -1, -1]]
    assert torch.equal(selection.mask, selection.index >= 0)
    assert selection.index.dtype == torch.int64 and selection.mask.dtype == torch.bool
    assert select_anchors(scores, labels, 2, 2).index.tolist() == [[2, 5], [1, 4]]


def test_a_text_is_taken_once_for_each_class():
    scores = torch.tensor([2.0, 1.0, 1.0, 3.0, 0.5])
    labels = torch.tensor([0, 0, 0, 0, 1])
    selection = select_anchors(scores, labels, 2, 3, texts=["far", "near", "near", "other", "near"])
    assert selection.index.tolist() == [[1, 0, 3], [4, -1, -1]]


def test_gathered_features_are_the_rows_themselves():
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    features[0] = torch.nan
    selection = select_anchors(torch.arange(5.0), torch.tensor([1, 0, 0, 0, 2]), 3, 2)
    gathered = gather_anchor_features(features, selection)
    assert torch.equal(gathered[0], features[[1, 2]])
    assert torch.equal(gathered[2], torch.stack([features[4], torch.zeros(3)]))
    assert gathered.shape == (3, 2, 3) and gathered[1, 1].tolist() == [0, 0, 0]


def test_images_are_limited_by_class_and_by_seed():
    labels = np.random.default_rng(0).permutation(np.repeat([-1, 0, 1, 2], [30, 100, 50, 7]))
    chosen = limit_images_per_class(labels, 50, seed=0)
    assert np.bincount(labels[chosen], minlength=3).tolist() == [50, 50, 7]
    assert (np.diff(chosen) > 0).all()
    assert (chosen == limit_images_per_class(labels, 50, seed=0)).all()
    assert (chosen != limit_images_per_class(labels, 50, seed=1)).any()
    without = np.flatnonzero(labels != 1)
    apart = without[limit_images_per_class(labels[without], 50, seed=0)]
    assert (apart == chosen[labels[chosen] != 1]).all()
    assert limit_images_per_class([], 50, seed=0).tolist() == []
    counts = np.zeros(100)
    for seed in range(200):
        counts[limit_images_per_class(np.zeros(100, dtype=int), 50, seed)] += 1
    # 200 fair draws of half the images: a standard deviation of 7 around 100 for each.
    assert counts.sum() == 200 * 50 and counts.min() > 65 and counts.max() < 135


def test_bad_features_are_named():
    texts, text_labels, images, image_labels = drawn()
    with pytest.raises(UserError, match="no images to score"):
        score_sentences(texts, text_labels, images[:0], image_labels[:0], 1.0)
    with pytest.raises(UserError, match=r"text features .* do not fit"):
        score_sentences(texts, text_labels[1:], images, image_labels, 1.0)
    with pytest.raises(UserError, match="image label -1 is negative"):
        score_sentences(texts, text_labels, images, image_labels - 1, 1.0)
    images[3, 3] = torch.nan
    with pytest.raises(UserError, match="features are NaN"):
        score_sentences(texts, text_labels, images, image_labels, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 4}, r"class 2 has no sentence \(2 such\)"),
        ({"num_classes": 1}, r"outside 0\.\.0"),
        ({"num_anchors": 0}, "num_anchors is 0"),
        ({"texts": ["one"]}, "differ in length"),
        ({"scores": torch.zeros(2)}, "differ in length"),
        ({"scores": torch.tensor([0, torch.nan, 0])}, "sentence 1 is NaN"),
    ],
)
def test_bad_selections_are_named(change, message):
    good = {
        "scores": torch.zeros(3),
        "text_labels": torch.tensor([0, 1, 1]),
        "num_classes": 2,
        "num_anchors": 2,
    }
    with pytest.raises(UserError, match=message):
        select_anchors(**good | change)


def test_a_limit_below_one_is_an_error():
    with pytest.raises(UserError, match="images per class is 0"):
        limit_images_per_class([0, 1], 0, seed=0)
