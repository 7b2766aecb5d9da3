"""Batches from pictures and from states of frozen towers follow one law."""

from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vlr.data.batches import Collator, EpochBatches, Key, TrainingSet
from hf_vlr.data.corpus import ClassTextCorpus, TextRow
from hf_vlr.data.source import ImageSource
from hf_vlr.data.transforms import build_train_transform
from hf_vlr.errors import UserError
from hf_vlr.training.loaders import Batches, ImageBatches, StateBatches, spoken_sentences
from hf_vlr.training.tokenizer import train_tokenizer

LABELS = np.array([0] * 6 + [1] * 3 + [2], dtype=np.int64)
SENTENCES = [["a0", "b0", "c0"], ["a1", "shared"], ["shared"]]
# the caption of row 1 is in the corpus, that of row 2 is not, row 3 has none
CAPTIONS = ["a0", "b0", "its own", None, "", "c0", "a1", None, "shared", "last"]


def corpus(scheme: str = "uniform") -> ClassTextCorpus:
    rows = [TextRow(label, text) for label, texts in enumerate(SENTENCES) for text in texts]
    return ClassTextCorpus(rows, 3).weighted(scheme)


def source(labels: np.ndarray = LABELS) -> ImageSource:
    images = [Image.new("RGB", (12, 12), (20 * i, 250 - 20 * i, 60)) for i in range(len(labels))]
    return ImageSource("mine", "train", images, labels, CAPTIONS, ["x", "y", "z"])


def keys(size: int = 4, strategy: str = "class-balanced", **settings) -> EpochBatches:
    return EpochBatches(LABELS, size, strategy, 0, **settings)


def picture_batches(workers: int = 0, probability: float = 0.0, scheme: str = "uniform", **settings) -> ImageBatches:
    dataset = TrainingSet(source(), corpus(scheme), build_train_transform(8, [0.5] * 3, [0.5] * 3), 0, probability)
    tokenizer = train_tokenizer([text for texts in SENTENCES for text in texts], 300, 12)
    return ImageBatches(dataset, Collator(tokenizer, 12), keys(**settings), workers)


def state_batches(
    views: int = 3, probability: float = 0.0, scheme: str = "uniform", labels: np.ndarray = LABELS, **settings
) -> StateBatches:
    # a state tells its view and its row, a sentence's state its number
    grid = torch.stack(torch.meshgrid(torch.arange(views), torch.arange(len(labels)), indexing="ij"), -1).float()
    texts, own = spoken_sentences(source(), corpus(scheme))
    sentences = torch.arange(len(texts)).float()[:, None]
    return StateBatches(source(labels), grid, keys(**settings), 0, corpus(scheme), sentences, own, probability)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def spoken(batches: StateBatches, epochs: int) -> list[tuple[int, int]]:
    """(row, number of the sentence) of every draw."""
    return [
        (int(batch["vision_states"][i, 1]), int(batch["text_states"][batch["text_index"][i], 0]))
        for epoch in range(epochs)
        for batch in batches.epoch(epoch)
        for i in range(len(batch["labels"]))
    ]


def test_loader_processes_give_the_same_batches():
    alone, helped = picture_batches(probability=0.5), picture_batches(2, probability=0.5)
    for epoch in range(2):
        pairs = list(zip(alone.epoch(epoch), helped.epoch(epoch), strict=True))
        assert len(pairs) == alone.batches_per_epoch == 3
        assert all(same(one, other) for one, other in pairs)


@pytest.mark.parametrize("make", [picture_batches, state_batches])
def test_an_epoch_can_be_entered_anywhere(make):
    whole = list(make(probability=0.5).epoch(1))
    for start in range(4):
        assert [
            same(one, other) for one, other in zip(whole[start:], make(probability=0.5).epoch(1, start), strict=True)
        ] == [True] * (3 - start)
    assert not any(same(one, other) for one, other in zip(whole, make(probability=0.5).epoch(2), strict=True))


@pytest.mark.parametrize("make", [picture_batches, state_batches])
def test_two_ranks_share_the_batches_of_one(make):
    for whole, *parts in zip(make().epoch(0), *(make(rank=r, world_size=2).epoch(0) for r in (0, 1)), strict=True):
        assert torch.equal(whole["labels"], torch.cat([part["labels"] for part in parts]))
        images = "pixel_values" if "pixel_values" in whole else "vision_states"
        assert torch.equal(whole[images], torch.cat([part[images] for part in parts]))


def test_both_draw_the_same_rows():
    pictures, cached = picture_batches(), state_batches()
    for one, other in zip(pictures.epoch(3), cached.epoch(3), strict=True):
        assert torch.equal(one["labels"], other["labels"])
        assert one["text_index"].shape == other["text_index"].shape


def test_views_are_drawn_evenly_and_belong_to_the_row():
    batches = state_batches(views=4)
    drawn = torch.cat([batch["vision_states"] for epoch in range(200) for batch in batches.epoch(epoch)]).long()
    counts = drawn[:, 0].bincount(minlength=4) / len(drawn)
    assert (counts - 0.25).abs().max() < 4 * (0.25 * 0.75 / len(drawn)) ** 0.5
    assert set(drawn[:, 1].tolist()) == set(range(len(LABELS)))
    batch = next(iter(batches.epoch(0)))
    assert torch.equal(torch.from_numpy(LABELS)[batch["vision_states"][:, 1].long()], batch["labels"])


@pytest.mark.parametrize("probability", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("scheme", ["uniform", "distinctive"])
def test_cached_states_speak_as_pictures_do(probability, scheme):
    """Frequencies of each row's sentences agree with those of `TrainingSet`."""
    batches, epochs = state_batches(probability=probability, scheme=scheme, strategy="instance"), 400
    texts, _ = spoken_sentences(source(), corpus())
    found = np.zeros((len(LABELS), len(texts)))
    for row, number in spoken(batches, epochs):
        found[row, number] += 1
    pictures = TrainingSet(source(), corpus(scheme), lambda image: torch.zeros(1), 1, probability)
    expected = np.zeros_like(found)
    for epoch in range(epochs):
        for row in range(len(LABELS)):
            text = pictures[Key(epoch, row, row)]["text"]
            own = [n for n, known in enumerate(texts) if known == text]
            first = sum(map(len, SENTENCES[: LABELS[row]]))
            within = [n for n in own if first <= n < first + len(SENTENCES[LABELS[row]]) or n >= 6]
            expected[row, within[0]] += 1
    assert found.sum() == expected.sum() == epochs * len(LABELS)
    # two counts of one law: five deviations of their difference
    assert (np.abs(found - expected) <= 5 * np.sqrt(found + expected) + 1e-9).all()


def test_every_row_knows_its_own_caption():
    texts, own = spoken_sentences(source(), corpus())
    assert texts[:6] == corpus().texts
    assert texts[6:] == ["its own", "last"]
    assert [texts[i] if i >= 0 else None for i in own.tolist()] == [caption or None for caption in CAPTIONS]
    # the same words in two classes are two sentences
    assert (texts.count("shared"), own[8].item()) == (2, 4)


def test_states_are_of_labelled_images_only():
    labels = LABELS.copy()
    labels[3] = -1
    with pytest.raises(UserError, match="set it to 0 for image-text pairs"):
        state_batches(labels=labels)


def test_without_a_corpus_there_are_no_texts():
    batches = StateBatches(source(), torch.zeros(1, len(LABELS), 2), keys(), 0)
    assert next(iter(batches.epoch(0))).keys() == {"vision_states", "labels", "rows"}


@pytest.mark.parametrize("accumulation", [1, 2, 3, 5])
def test_the_parts_of_a_step_add_up(accumulation):
    batches = Batches(EpochBatches(np.zeros(17, dtype=np.int64), 3, "instance", 0))
    sizes = [3, 3, 3, 3, 3, 2]
    assert batches.batches_per_epoch == len(sizes)
    step: list[int] = []
    for number in range(len(sizes)):
        share, last = batches.share_of_step(number, accumulation)
        step.append(number)
        assert last == (len(step) == accumulation or number == len(sizes) - 1)
        first = number - number % accumulation
        assert share == pytest.approx(sizes[number] / sum(sizes[first : first + accumulation]))
        step = [] if last else step


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_mistake_in_a_loader_process_is_one_line(workers):
    dataset = TrainingSet(source(np.full(10, -1)), corpus(), build_train_transform(8, [0.5] * 3, [0.5] * 3), 0)
    batches = ImageBatches(dataset, Collator(None), keys(strategy="instance"), workers)
    with pytest.raises(UserError) as caught:
        list(islice(batches.epoch(0), 3))
    message = str(caught.value)
    assert message.startswith("mine row ")
    assert message.endswith(": an image-text pair without a text; add or remove it")
