import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from hf_vlr.data.batches import Collator, EpochBatches, Key, TrainingSet
from hf_vlr.data.corpus import ClassTextCorpus, TextRow
from hf_vlr.data.source import ImageSource
from hf_vlr.data.transforms import build_eval_transform, build_train_transform, split_scaling
from hf_vlr.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
LABELS = np.array([0, 0, 0, 0, 1, 1, 2, -1, -1, 2])
CORPUS = ClassTextCorpus([TextRow(label, f"c{label} s{number}") for label in range(3) for number in range(5)], 3)


def make_source() -> ImageSource:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)) for _ in LABELS]
    captions = [f"own {index}" for index in range(len(LABELS))]
    captions[2] = ""
    return ImageSource("toy", "train", images, LABELS, captions, ["a", "b", "c"])


def make_set(augment: str = "light", seed: int = 0, **options: float) -> TrainingSet:
    return TrainingSet(make_source(), CORPUS, build_train_transform(8, MEAN, STD, augment), seed, **options)


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = [
        "[PAD]",
        "[UNK]",
        "own",
        *(f"c{label}" for label in range(3)),
        *(f"s{number}" for number in range(5)),
    ]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


@pytest.mark.parametrize("augment", ["light", "strong"])
def test_a_sample_is_a_function_of_its_key(augment: str) -> None:
    data = make_set(augment)
    first = data[Key(1, 5, 3)]
    torch.rand(3)
    data[Key(0, 0, 0)]
    again = make_set(augment)[Key(1, 5, 3)]
    assert torch.equal(first["image"], again["image"])
    assert first["text"] == again["text"]
    assert (first["label"], first["index"]) == (0, 3)


def test_repetitions_of_an_image_differ_and_the_callers_generator_is_untouched() -> None:
    data = make_set()
    state = torch.get_rng_state()
    samples = [data[Key(0, position, 3)] for position in range(40)]
    assert torch.equal(state, torch.get_rng_state())
    assert len({sample["image"].sum().item() for sample in samples}) == 40
    assert {sample["text"] for sample in samples} == set(CORPUS.of(0))
    assert not torch.equal(samples[0]["image"], make_set(seed=1)[Key(0, 0, 3)]["image"])
    assert not torch.equal(samples[0]["image"], data[Key(1, 0, 3)]["image"])


def test_the_own_caption_is_spoken_as_often_as_asked() -> None:
    own = [make_set(caption_probability=0.3)[Key(0, at, 3)]["text"] == "own 3" for at in range(1000)]
    assert 0.25 < np.mean(own) < 0.35
    assert all(make_set(caption_probability=1.0)[Key(0, at, 3)]["text"] == "own 3" for at in range(10))
    assert make_set(caption_probability=1.0)[Key(0, 0, 2)]["text"] in CORPUS.of(0)
    with pytest.raises(UserError, match="caption_probability=2"):
        make_set(caption_probability=2)


def test_image_text_pairs_speak_their_own_text() -> None:
    data = make_set()
    assert data[Key(0, 0, 7)]["text"] == "own 7"
    data.source.captions[7] = None
    with pytest.raises(UserError, match="toy row 7: an image-text pair without a text"):
        data[Key(0, 0, 7)]


def test_without_a_corpus_labelled_rows_say_nothing() -> None:
    data = TrainingSet(make_source(), None, build_train_transform(8, MEAN, STD, "none"), 0)
    assert data[Key(0, 0, 0)]["text"] == ""


def test_a_corpus_with_a_gap_is_refused() -> None:
    with pytest.raises(UserError, match="no text for class b"):
        TrainingSet(make_source(), ClassTextCorpus([TextRow(0, "x"), TextRow(2, "y")], 3), lambda image: image, 0)


def test_the_collator_tokenises_unique_texts_once() -> None:
    texts = ["c1 s2", "c0 s1", "c1 s2", "own own own own own own own own own", "c0 s1"]
    samples = [
        {"image": torch.full((3, 2, 2), float(at)), "text": text, "label": at - 1, "blank": False}
        for at, text in enumerate(texts)
    ]
    batch = Collator(make_tokenizer(), max_length=77)(samples)
    assert batch["pixel_values"].shape == (5, 3, 2, 2)
    assert batch["labels"].tolist() == [-1, 0, 1, 2, 3]
    assert batch["text_index"].tolist() == [0, 1, 0, 2, 1]
    assert batch["input_ids"].shape == (3, 16)
    assert batch["input_ids"][0, :3].tolist() == [4, 8, 0]
    assert batch["attention_mask"].sum(1).tolist() == [2, 2, 9]
    assert set(Collator(None)(samples)) == {"pixel_values", "labels"}


@pytest.mark.parametrize(("words", "length"), [(3, 8), (8, 8), (9, 13), (40, 13)])
def test_texts_are_cut_and_padded_within_the_maximum(words: int, length: int) -> None:
    encoded = Collator(make_tokenizer(), max_length=13).tokenize(["own " * words, "c1"])
    assert encoded["input_ids"].shape == (2, length)
    assert encoded["attention_mask"].sum(1).tolist() == [min(words, 13), 1]


@pytest.mark.parametrize("strategy", ["instance", "sqrt"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_together_make_the_global_batches(strategy: str, world_size: int) -> None:
    whole = list(EpochBatches(LABELS, 4, strategy, 7))
    ranks = [list(EpochBatches(LABELS, 4, strategy, 7, rank=r, world_size=world_size)) for r in range(world_size)]
    assert [len(rank) for rank in ranks] == [3] * world_size
    for number in range(3):
        assert [key for rank in ranks for key in rank[number] if not key.blank] == whole[number]


def test_a_rank_without_a_row_gets_a_blank_one() -> None:
    ranks = [list(EpochBatches(LABELS[:9], 4, "instance", 0, rank=rank, world_size=4)) for rank in range(4)]
    last = [rank[-1] for rank in ranks]
    assert [len(keys) for keys in last] == [1] * 4
    assert [keys[0].blank for keys in last] == [True, True, True, False]
    batch = Collator(make_tokenizer())([make_set()[last[0][0]]])
    assert batch["blank"] and batch["pixel_values"].shape[0] == 1
    assert "blank" not in Collator(make_tokenizer())([make_set()[last[3][0]]])


@pytest.mark.parametrize("world_size", [1, 2])
def test_partners_are_drawn_within_the_global_batch(world_size: int) -> None:
    whole = list(EpochBatches(LABELS, 4, "instance", 7, partners=True))
    ranks = [
        list(EpochBatches(LABELS, 4, "instance", 7, rank=r, world_size=world_size, partners=True))
        for r in range(world_size)
    ]
    for number, batch in enumerate(whole):
        assert sorted(key.partner for key in batch) == sorted(key.index for key in batch)
        assert [key for rank in ranks for key in rank[number]] == batch
    assert EpochBatches(LABELS, 4, "instance", 7).rows_of(0, 2) == [key.index for key in whole[2]]


def test_resuming_in_mid_epoch_gives_the_rest() -> None:
    batches = EpochBatches(LABELS, 3, "class-balanced", 0, num_samples=20)
    batches.set_epoch(4)
    whole = list(batches)
    batches.set_epoch(4, start_batch=5)
    assert list(batches) == whole[5:]
    assert len(batches) == 2
    assert [key[:2] for batch in whole for key in batch] == [(4, position) for position in range(20)]


def test_the_incomplete_batch() -> None:
    sizes = [len(batch) for batch in EpochBatches(LABELS, 4, "instance", 0)]
    assert sizes == [4, 4, 2]
    assert len(list(EpochBatches(LABELS, 4, "instance", 0, drop_last=True))) == 2
    with pytest.raises(UserError, match="batch_size=16 is larger than the 10 rows"):
        EpochBatches(LABELS, 16, "instance", 0, drop_last=True)
    with pytest.raises(UserError, match="batch_size=4 must be a multiple of the number of processes, 3"):
        EpochBatches(LABELS, 4, "instance", 0, world_size=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_counts_do_not_change_the_batches(workers: int) -> None:
    keys = EpochBatches(LABELS, 4, "sqrt", 0, num_samples=12)
    loader = DataLoader(make_set(), batch_sampler=keys, collate_fn=Collator(make_tokenizer()), num_workers=workers)
    reference = [Collator(make_tokenizer())([make_set()[key] for key in batch]) for batch in keys]
    batches = list(loader)
    assert len(batches) == 3
    for batch, expected in zip(batches, reference):
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in batch)


def test_none_and_evaluation_transforms_are_the_plain_formula() -> None:
    picture = make_source().images[0].resize((8, 8))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).double() / 255
    expected = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    for transform in (
        build_train_transform(8, MEAN, STD, "none"),
        build_eval_transform(8, MEAN, STD, crop_pct=1),
    ):
        assert torch.allclose(transform(picture).double(), expected, atol=1e-6)


def test_evaluation_crops_the_centre() -> None:
    picture = Image.new("RGB", (400, 256))
    picture.paste((255, 255, 255), (88, 16, 312, 240))
    image = build_eval_transform(224, (0, 0, 0), (1, 1, 1))(picture)
    assert image.shape == (3, 224, 224)
    assert image.min() == 1


def test_flipping_is_optional() -> None:
    # right half white: mirrored or not shows in the left half, whatever the crop of its height
    picture = Image.new("RGB", (64, 64))
    picture.paste((255, 255, 255), (32, 0, 64, 64))
    mirrored = set()
    for flip in (False, True):
        transform = build_train_transform(16, (0, 0, 0), (1, 1, 1), min_scale=1.0, flip=flip)
        torch.manual_seed(0)
        images = [transform(picture) for _ in range(30)]
        mirrored.add((flip, any(image[:, :, 0].mean() > image[:, :, -1].mean() for image in images)))
    assert mirrored == {(False, False), (True, True)}


def test_unknown_settings_of_the_transforms_are_named() -> None:
    with pytest.raises(UserError, match="augment='hard' is unknown; there are: none, light, strong"):
        build_train_transform(8, MEAN, STD, "hard")
    with pytest.raises(UserError, match=r"crop_pct=1\.5"):
        build_eval_transform(8, MEAN, STD, crop_pct=1.5)


@pytest.mark.parametrize("augment", ["none", "light", "strong"])
def test_bytes_first_and_their_scaling_are_the_transform(augment: str) -> None:
    picture = make_source().images[0].resize((24, 20))
    whole = build_train_transform(16, MEAN, STD, augment)
    to_bytes, scaling = split_scaling(whole)
    for seed in range(12):
        torch.manual_seed(seed)
        expected = whole(picture)
        torch.manual_seed(seed)
        stored = to_bytes(picture)
        assert (stored.dtype, tuple(stored.shape)) == (torch.uint8, (3, 16, 16))
        assert torch.equal(scaling(torch.stack([stored, stored]))[1], expected)


def test_strong_augmentation_puts_noise_over_a_part_of_every_fourth_picture() -> None:
    grey = Image.new("RGB", (32, 32), (128, 128, 128))
    to_bytes, _ = split_scaling(build_train_transform(32, (0.5, 0.5, 0.5), (0.1, 0.1, 0.1), "strong", flip=False))
    erase = next(step for step in to_bytes.transforms if type(step).__name__ == "NoisyErasing")
    pixels = torch.from_numpy(np.array(grey)).permute(2, 0, 1)
    torch.manual_seed(0)
    erased = [found for found in (erase(pixels.clone()) for _ in range(400)) if not torch.equal(found, pixels)]
    assert 70 < len(erased) < 130
    noise = torch.cat([found[found != pixels].double() for found in erased])
    assert noise.mean().item() == pytest.approx(127.5, abs=1)
    assert noise.std().item() == pytest.approx(25.5, abs=1)
