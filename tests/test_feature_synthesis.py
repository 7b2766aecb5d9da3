"""Synthetic states: points of the right class at the right place, drawn alike however an epoch is read."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hf_vlr.data.batches import EpochBatches
from hf_vlr.data.corpus import ClassTextCorpus, TextRow
from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.feature_synthesis import (
    SmoteStates,
    TransferredStates,
    build_synthesis,
    class_neighbours,
    class_neighbours_reference,
    donor_classes,
    repetitions,
)
from hf_vlr.training.loaders import StateBatches, spoken_sentences

# class 3 has no rows, class 4 one
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 4], [25, 6, 3, 1]))
CLASSES = torch.from_numpy(LABELS)
SIZES = CLASSES.bincount()


def states(views: int = 3, width: int = 8) -> Tensor:
    """States [K, N, W] around their class's own mean, far from the origin."""
    generator = torch.Generator().manual_seed(0)
    means = 20 * torch.randn(5, width, generator=generator)
    return means[CLASSES] + torch.randn(views, len(LABELS), width, generator=generator)


def chance(count: int) -> Tensor:
    return torch.rand(2, count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def source(captions: list[str] | None = None, labels: np.ndarray = LABELS) -> ImageSource:
    images = [Image.new("RGB", (4, 4))] * len(labels)
    return ImageSource("mine", "train", images, labels, captions or [""] * len(labels), list("abcde"))


def batches(kind: str, size: int = 10, views: Tensor | None = None, **settings) -> StateBatches:
    views = states() if views is None else views
    keys = EpochBatches(LABELS, size, settings.pop("sampler", "over"), 0, **settings)
    return StateBatches(source(), views, keys, 0, synthesis=build_synthesis(kind, views, LABELS, 3))


def whole_epoch(loader: StateBatches, epoch: int = 0) -> tuple[Tensor, Tensor]:
    read = list(loader.epoch(epoch))
    return torch.cat([batch["vision_states"] for batch in read]), torch.cat([batch["labels"] for batch in read])


@pytest.mark.parametrize("count", [1, 3, 5, 40])
@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_neighbours_are_the_nearest_of_the_class(count: int, chunk: int) -> None:
    first = states()[0]
    found = class_neighbours(first, CLASSES, count, chunk)
    assert found.dtype == torch.int64 and found.shape == (len(LABELS), min(count, 24))
    for row, expected in enumerate(class_neighbours_reference(first, CLASSES, count)):
        assert found[row, : len(expected)].tolist() == expected
        assert set(found[row, len(expected) :].tolist()) <= {row}
        assert len(expected) == min(count, SIZES[LABELS[row]] - 1)


def test_neighbours_where_every_class_has_one_row() -> None:
    assert class_neighbours(torch.randn(3, 4), torch.tensor([2, 0, 1]), 5).tolist() == [[0], [1], [2]]


def test_smote_points_lie_between_a_row_and_one_of_its_neighbours() -> None:
    views, rows = states(), torch.arange(len(LABELS)).repeat(40)
    view = torch.arange(len(rows)) % 3
    drawn = chance(len(rows))
    made = SmoteStates(views, CLASSES, 3)(view, rows, drawn)
    near = class_neighbours_reference(views[0], CLASSES, 3)
    met: dict[int, set[int]] = {}
    for at, (row, number) in enumerate(zip(rows.tolist(), view.tolist())):
        others = near[row] or [row]
        other = others[int(drawn[0, at] * len(others))]
        met.setdefault(row, set()).add(other)
        start, end, share = views[number, row].double(), views[number, other].double(), drawn[1, at]
        torch.testing.assert_close(made[at].double(), start + share * (end - start), rtol=1e-6, atol=1e-5)
        assert CLASSES[row] == CLASSES[other]
    assert all(met[row] == set(others or [row]) for row, others in enumerate(near))
    alone = (CLASSES[rows] == 4).nonzero()[:, 0]
    assert torch.equal(made[alone], views[view[alone], rows[alone]])


def test_transfer_moves_a_donors_deviation_to_the_mean_of_the_class() -> None:
    views, rows = states(), torch.arange(len(LABELS))
    view = rows % 3
    drawn = chance(len(rows))
    made = TransferredStates(views, CLASSES)(view, rows, drawn)
    means = [views[:, label == CLASSES].double().mean((0, 1)) for label in range(5)]
    head = (CLASSES == 0).nonzero()[:, 0]  # the only class of at least 20 images
    for at in range(len(rows)):
        donor = views[view[at], head[int(drawn[1, at] * len(head))]].double()
        expected = means[LABELS[at]] + donor - means[0]
        torch.testing.assert_close(made[at].double(), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("label", [0, 2, 4])
def test_transferred_states_have_the_mean_of_their_class_and_the_spread_of_the_donor(label: int) -> None:
    views, count = states(), 20000
    generator = torch.Generator().manual_seed(2)
    view = torch.randint(3, (count,), generator=generator)
    row = int((label == CLASSES).nonzero()[0, 0])
    made = TransferredStates(views, CLASSES)(view, torch.full((count,), row), chance(count))
    own, head = views[:, label == CLASSES].flatten(0, 1), views[:, CLASSES == 0].flatten(0, 1)
    spread = head.std(0, correction=0)
    assert torch.all((made.mean(0) - own.mean(0)).abs() < 5 * spread / count**0.5)
    torch.testing.assert_close(made.std(0), spread, rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("counts", "donors"),
    [([100, 20, 19, 0], [0, 1]), ([19, 3, 0, 7, 1], [0, 1, 3]), ([1, 1], [0, 1]), ([0, 5], [1])],
)
def test_the_donors_are_common_classes(counts: list[int], donors: list[int]) -> None:
    assert donor_classes(torch.tensor(counts)).tolist() == donors


def test_every_donor_class_lends_equally_often() -> None:
    labels = torch.tensor([0] * 40 + [1] * 20 + [2])
    generator = torch.Generator().manual_seed(0)
    # rows of class 0 differ from their mean along the first direction, those of class 1 along the second
    views = torch.zeros(1, 61, 2)
    views[0, :40, 0] = torch.randn(40, generator=generator)
    views[0, 40:60, 1] = torch.randn(20, generator=generator)
    count = 4000
    rows = torch.full((count,), 60)
    made = TransferredStates(views, labels)(torch.zeros_like(rows), rows, chance(count))
    from_second = (made[:, 1].abs() > 1e-6).double().mean()
    assert abs(from_second - 0.5) < 5 * 0.5 / count**0.5


def test_repetitions_are_all_but_the_first() -> None:
    order = np.array([4, 2, 4, 4, 0, 2])
    seen: set[int] = set()
    expected = [row in seen or bool(seen.add(row)) for row in order.tolist()]
    assert repetitions(order).tolist() == expected
    assert repetitions(np.empty(0, dtype=np.int64)).tolist() == []


@pytest.mark.parametrize("kind", ["smote", "transfer"])
def test_an_epoch_holds_every_row_once_and_fills_up_with_synthetic_ones(kind: str) -> None:
    views = states(views=1)
    made, labels = whole_epoch(batches(kind, views=views))
    assert labels.bincount(minlength=5).tolist() == [25, 25, 25, 0, 25]
    real = (made[:, None] == views[0][None]).all(2)
    assert real.sum(0).tolist() == [25 if label == 4 and kind == "smote" else 1 for label in LABELS.tolist()]
    assert torch.equal(CLASSES[real[real.any(1)].double().argmax(1)], labels[real.any(1)])


@pytest.mark.parametrize("kind", ["smote", "transfer"])
def test_draws_depend_on_seed_epoch_and_position_alone(kind: str) -> None:
    made, labels = whole_epoch(batches(kind), 1)
    assert torch.equal(made, whole_epoch(batches(kind), 1)[0])
    assert not torch.equal(made, whole_epoch(batches(kind), 2)[0])
    ranks = [list(batches(kind, rank=rank, world_size=2).epoch(1)) for rank in (0, 1)]
    shared = [part for pair in zip(*ranks, strict=True) for part in pair]
    assert torch.equal(made, torch.cat([part["vision_states"] for part in shared]))
    assert torch.equal(labels, torch.cat([part["labels"] for part in shared]))
    assert torch.equal(made, whole_epoch(batches(kind, size=7), 1)[0])
    rest = torch.cat([batch["vision_states"] for batch in batches(kind).epoch(1, 4)])
    assert torch.equal(made[40:], rest)


@pytest.mark.parametrize("kind", ["smote", "transfer"])
def test_the_first_draws_of_a_row_are_those_without_synthesis(kind: str) -> None:
    plain, made = batches("none"), batches(kind)
    new = torch.from_numpy(repetitions(plain.keys.order(2)))
    (before, labels), (after, _) = whole_epoch(plain, 2), whole_epoch(made, 2)
    assert torch.equal(before[~new], after[~new])
    changed = (before != after).any(1)
    # a class of one row has nothing to go towards, but takes a donor's spread
    assert torch.equal(changed, new & (labels != 4) if kind == "smote" else new)
    # under an order without repetitions nothing is synthetic
    once = [whole_epoch(batches(made, sampler="instance"))[0] for made in (kind, "none")]
    assert torch.equal(*once)


@pytest.mark.parametrize("kind", ["smote", "transfer"])
def test_the_second_view_of_a_synthetic_row_is_the_same_row_made_of_another_view(kind: str) -> None:
    # view number v of a row is its first view plus v in every direction: so is what is made of it, but for the mean
    views = states(views=1) + torch.arange(3.0)[:, None, None]
    keys = EpochBatches(LABELS, 10, "over", 0)
    made = StateBatches(source(), views, keys, 0, synthesis=build_synthesis(kind, views, LABELS, 3), second_view=True)
    for batch in made.epoch(0):
        moved = batch["second_vision_states"] - batch["vision_states"]
        torch.testing.assert_close(moved, moved[:, :1].round().expand_as(moved), rtol=0, atol=1e-4)
        assert set(moved[:, 0].round().abs().tolist()) <= {1.0, 2.0}


def test_a_synthetic_row_speaks_for_its_class_and_not_its_own_caption() -> None:
    rows = [TextRow(label, f"class {label}") for label in range(5)]
    corpus = ClassTextCorpus(rows, 5)
    spoken = source([f"own {row}" for row in range(len(LABELS))])
    texts, own = spoken_sentences(spoken, corpus)
    views = states()
    loader = StateBatches(
        spoken,
        views,
        EpochBatches(LABELS, 10, "over", 0),
        0,
        corpus,
        torch.arange(len(texts)).float()[:, None],
        own,
        caption_probability=1.0,
        synthesis=build_synthesis("smote", views, LABELS, 3),
    )
    order = loader.keys.order(0)
    said = [texts[int(batch["text_states"][at, 0])] for batch in loader.epoch(0) for at in batch["text_index"]]
    expected = [
        f"class {LABELS[row]}" if new else f"own {row}" for row, new in zip(order, repetitions(order), strict=True)
    ]
    assert said == expected


@pytest.mark.parametrize("kind", ["smote", "transfer"])
def test_image_text_pairs_are_refused(kind: str) -> None:
    labels = LABELS.copy()
    labels[3] = -1
    with pytest.raises(UserError, match=f"data.synthesis={kind} works on labelled images only"):
        build_synthesis(kind, states(), labels, 3)
    assert build_synthesis("none", states(), labels, 3) is None
