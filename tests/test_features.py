"""States of frozen towers: what they are, that a cache finds them again, and only where nothing changed."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPVisionConfig

from hf_vlr.data.batches import Collator
from hf_vlr.data.images import SelectedImages
from hf_vlr.data.transforms import build_eval_transform, build_train_transform
from hf_vlr.features import (
    StateCache,
    Tower,
    base_rows,
    digest_of,
    image_states,
    settings_of,
    text_states,
    vision_states,
)
from hf_vlr.modeling import UniCLConfig, UniCLModel
from hf_vlr.training.tokenizer import train_tokenizer

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SENTENCES = ["a dog", "a very small dog on a red square", "a cat", "a dog"]
TOKENIZER = train_tokenizer(SENTENCES, 300, 24)
COLLATOR = Collator(TOKENIZER, 24)
EVALUATION = build_eval_transform(16, [0.5] * 3, [0.5] * 3, crop_pct=1)
AUGMENTATION = build_train_transform(16, [0.5] * 3, [0.5] * 3)


class Pictures(list):
    """Pictures that count how often one is looked at, and know who they are."""

    def __init__(self, count: int = 7, name: str = "mine") -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)
        super().__init__(Image.fromarray(part) for part in pixels)
        self.looked, self.name = 0, name

    def __getitem__(self, index: int) -> Image.Image:
        self.looked += 1
        return super().__getitem__(index)

    def identity(self) -> str:
        return f"{self.name}/{len(self)}"


def encoder(seed: int = 0, **settings) -> UniCLModel:
    torch.manual_seed(seed)
    words = {"vocab_size": len(TOKENIZER), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = CLIPTextConfig(**SMALL, **words, attention_dropout=0.5).to_dict()
    vision = CLIPVisionConfig(**SMALL, image_size=16, patch_size=8, attention_dropout=0.5).to_dict()
    return UniCLModel(UniCLConfig(text_config=text, vision_config=vision, projection_dim=8, **settings))


@pytest.fixture
def cache(tmp_path) -> StateCache:
    return StateCache(str(tmp_path / "cache"))


def test_the_first_view_is_the_evaluations_and_others_are_augmented():
    model, images = encoder().train(), Pictures()
    states = vision_states(model, images, EVALUATION, AUGMENTATION, views=3, batch_size=4)
    assert states.shape == (3, 7, 16)
    assert model.training
    pixels = torch.stack([EVALUATION(image) for image in images])
    torch.testing.assert_close(states[0], model.eval().vision_model(pixels).pooler_output.detach())
    assert all(not torch.allclose(states[a], states[b], atol=1e-3) for a, b in ((0, 1), (1, 2), (0, 2)))
    torch.manual_seed(5)
    again = vision_states(model, images, EVALUATION, AUGMENTATION, views=3, batch_size=7)
    torch.testing.assert_close(again, states)
    # fewer views are the first of more
    torch.testing.assert_close(vision_states(model, images, EVALUATION, AUGMENTATION, views=2), states[:2])


def test_texts_come_in_the_order_they_were_given():
    model = encoder().train()
    states = text_states(model, SENTENCES, COLLATOR.tokenize, batch_size=2)
    assert model.training
    assert torch.equal(states[0], states[3])
    for row, sentence in zip(states, SENTENCES, strict=True):
        tokens = COLLATOR.tokenize([sentence])
        alone = model.eval().text_model(tokens["input_ids"], tokens["attention_mask"]).pooler_output[0]
        torch.testing.assert_close(row, alone.detach(), atol=1e-5, rtol=1e-4)


def test_texts_are_encoded_in_the_number_format_of_the_tower(cache):
    model = encoder()
    exact = text_states(model, SENTENCES, COLLATOR.tokenize, cache=cache)
    rounded = text_states(model.bfloat16(), SENTENCES, COLLATOR.tokenize, cache=cache)
    assert rounded.dtype == torch.float32
    assert rounded.equal(rounded.bfloat16().float())
    assert 1e-4 < (rounded - exact).norm() / exact.norm() < 0.02
    # kept apart
    assert len(list(cache.folder.iterdir())) == 2


def test_padding_to_a_fixed_length_changes_no_text():
    def padded(texts: list[str]) -> dict[str, torch.Tensor]:
        return dict(TOKENIZER(texts, padding="max_length", max_length=24, return_tensors="pt"))

    model = encoder().double()
    many = [f"{sentence} {'dog ' * count}" for sentence in SENTENCES for count in range(5)]
    expected = text_states(model, many, COLLATOR.tokenize)
    torch.testing.assert_close(text_states(model, many, padded), expected, rtol=1e-6, atol=1e-6)


def test_a_cache_gives_back_the_same_bits_without_looking(cache):
    model, images = encoder(), Pictures()
    first = vision_states(model, images, EVALUATION, AUGMENTATION, views=2, cache=cache)
    looked = images.looked
    assert looked == 14
    assert torch.equal(vision_states(model, images, EVALUATION, AUGMENTATION, views=2, cache=cache), first)
    assert images.looked == looked
    texts = text_states(model, SENTENCES, COLLATOR.tokenize, cache=cache)
    assert torch.equal(text_states(model, SENTENCES, COLLATOR.tokenize, cache=cache), texts)
    assert not list(cache.folder.glob("*.partial"))


def test_folds_of_one_set_share_its_states(cache):
    model, images = encoder(), Pictures()
    half = SelectedImages(images, np.array([5, 1, 3]))
    part = SelectedImages(half, np.array([2, 0]))
    states = vision_states(model, part, EVALUATION, cache=cache)
    assert (images.looked, len(list(cache.folder.iterdir()))) == (7, 1)
    assert torch.equal(vision_states(model, images, EVALUATION, cache=cache)[:, [3, 5]], states)
    assert images.looked == 7
    # without a cache only what is asked for is encoded
    torch.testing.assert_close(vision_states(model, part, EVALUATION), states)
    assert images.looked == 9


def test_base_rows_go_through_nested_selections():
    images = Pictures()
    base, rows = base_rows(SelectedImages(SelectedImages(images, np.array([6, 4, 2, 0])), np.array([3, 1, 1])))
    assert base is images
    assert rows.tolist() == [0, 4, 4]
    assert base_rows(images)[1].tolist() == list(range(7))


@pytest.mark.parametrize(
    ("change", "files"),
    # a view that is the same as before is found again
    [("weights", 4), ("pooling", 4), ("images", 4), ("transform", 3), ("augmentation", 3), ("views", 3)],
)
def test_what_changes_a_state_changes_its_place(change, files, cache):
    arguments = {"images": Pictures(), "evaluation": EVALUATION, "augmentation": AUGMENTATION, "views": 2}
    vision_states(encoder(), cache=cache, **arguments)
    other = {
        "images": {"images": Pictures(name="other")},
        "transform": {"evaluation": build_eval_transform(16, [0.4] * 3, [0.5] * 3, crop_pct=1)},
        "augmentation": {"augmentation": build_train_transform(16, [0.5] * 3, [0.5] * 3, min_scale=0.9)},
        "views": {"views": 3},
    }.get(change, {})
    model = encoder(1) if change == "weights" else encoder(vision_pooling="mean") if change == "pooling" else encoder()
    found = vision_states(model, cache=cache, **arguments | other)
    assert len(list(cache.folder.iterdir())) == files
    assert torch.equal(found, vision_states(model, **arguments | other))


def test_texts_cut_elsewhere_have_another_place(cache):
    model = encoder()
    long = text_states(model, SENTENCES, COLLATOR.tokenize, cache=cache)
    short = text_states(model, SENTENCES, Collator(TOKENIZER, 5).tokenize, cache=cache)
    assert not torch.allclose(long, short)
    other = train_tokenizer(["dogs and cats"], 300, 24)
    text_states(model, SENTENCES, Collator(other, 24).tokenize, cache=cache)
    assert len(list(cache.folder.iterdir())) == 3


@pytest.mark.parametrize("damage", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", None])
def test_a_damaged_file_is_computed_anew(damage, cache):
    model, images = encoder(), Pictures()
    states = vision_states(model, images, EVALUATION, cache=cache)
    (path,) = cache.folder.iterdir()
    path.write_bytes(path.read_bytes()[:-9] if damage is None else damage)
    assert torch.equal(vision_states(model, images, EVALUATION, cache=cache), states)
    assert torch.equal(load_file(path)["states"], states[0])


def test_without_a_folder_nothing_is_kept_and_no_key_is_made():
    cache = StateCache(None)

    def key() -> list[str]:
        raise AssertionError("a key is expensive")

    assert cache.get(key, lambda: torch.ones(2)).tolist() == [1.0, 1.0]


def test_off_is_no_folder_and_parts_are_kept_alone_where_that_is_asked_for(tmp_path):
    assert StateCache("off").folder is None
    assert not StateCache("off").whole
    model, images = encoder(), Pictures()
    part = SelectedImages(images, np.array([5, 1]))
    cache = StateCache(str(tmp_path), whole=False)
    states = vision_states(model, part, EVALUATION, cache=cache)
    assert images.looked == 2
    assert torch.equal(vision_states(model, part, EVALUATION, cache=cache), states)
    assert images.looked == 2
    # another part is another file
    vision_states(model, SelectedImages(images, np.array([1, 5])), EVALUATION, cache=cache)
    assert len(list(cache.folder.iterdir())) == 2


def test_the_same_weights_with_another_activation_are_another_tower(cache):
    plain, other = encoder(), encoder()
    other.vision_model.config.hidden_act = "relu"
    assert digest_of(plain.vision_model) == digest_of(other.vision_model)
    assert settings_of(plain.vision_model) != settings_of(other.vision_model)
    for model in (plain, other):
        vision_states(model, Pictures(), EVALUATION, cache=cache)
    assert len(list(cache.folder.iterdir())) == 2
    # names and places say nothing about states
    other.vision_model.config.hidden_act = plain.vision_model.config.hidden_act
    other.vision_model.config.id2label = {0: "a", 1: "b"}
    other.vision_model.config._name_or_path = "elsewhere"
    assert settings_of(plain.vision_model) == settings_of(other.vision_model)


def test_any_module_can_be_a_tower_and_is_left_in_its_mode(cache):
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.9), torch.nn.Linear(3 * 16 * 16, 4)).train()
    tower, images = Tower(module, module, "mine"), Pictures()
    found = image_states(tower, images, EVALUATION, batch_size=3, cache=cache)[0]
    assert module.training
    pixels = torch.stack([EVALUATION(image) for image in list(images)])
    torch.testing.assert_close(found, module.eval()(pixels).detach())
    looked = images.looked
    assert torch.equal(image_states(Tower(module, module, "mine"), images, EVALUATION, cache=cache)[0], found)
    assert images.looked == looked
    image_states(Tower(module, module, "other"), images, EVALUATION, cache=cache)
    assert images.looked > looked


def test_a_digest_knows_every_weight_and_buffer():
    model = torch.nn.BatchNorm1d(3)
    before = digest_of(model)
    assert digest_of(torch.nn.BatchNorm1d(3)) == before
    model.running_mean[1] += 1e-6
    assert digest_of(model) != before
    assert digest_of(model.bfloat16()) != before
