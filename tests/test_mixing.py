"""Mixup and CutMix: shares of pixels and labels agree, and depend on the key alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vlr.data.batches import Collator, Key, TrainingSet
from hf_vlr.data.mixing import Mixing
from hf_vlr.data.source import ImageSource

DARK, LIGHT = torch.zeros(3, 20, 30), torch.ones(3, 20, 30)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_mixup_is_its_formula() -> None:
    for seed in range(20):
        mixed, share = Mixing(mixup=0.8).mix(DARK, LIGHT, generator(seed))
        assert share == generator(seed).beta(0.8, 0.8)
        torch.testing.assert_close(mixed, torch.full_like(DARK, 1 - share))


def test_mixed_bytes_are_rounded() -> None:
    mixed, share = Mixing(mixup=1.0).mix(DARK.byte(), LIGHT.byte() * 255, generator())
    assert mixed.dtype == torch.uint8
    assert mixed.unique().tolist() == [round(255 * (1 - share))]


def test_the_pasted_box_has_the_share_of_the_label() -> None:
    shares = []
    for seed in range(300):
        mixed, share = Mixing(cutmix=1.0).mix(DARK, LIGHT, generator(seed))
        assert mixed.mean().item() == pytest.approx(1 - share, abs=1e-6)
        rows, columns = mixed[0].any(1).sum(), mixed[0].any(0).sum()
        assert mixed[0].sum() == rows * columns, "what is pasted is one box"
        shares.append(share)
    assert 0.5 < np.mean(shares) < 0.7  # boxes are cut at the border
    assert DARK.sum() == 0, "the image itself is left alone"


def test_each_kind_takes_half() -> None:
    both = Mixing(mixup=1.0, cutmix=1.0)
    pasted = sum(both.mix(DARK, LIGHT, generator(seed))[0].unique().numel() == 2 for seed in range(400))
    assert 150 < pasted < 250


def test_a_mixed_sample_is_a_function_of_its_key() -> None:
    images = [Image.new("RGB", (8, 8), (40 * at, 0, 0)) for at in range(4)]
    source = ImageSource("toy", "train", images, np.array([0, 1, 0, 1]), [None] * 4, ["a", "b"])

    def sample(key: Key) -> dict:
        to_tensor = lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1)  # noqa: E731
        return TrainingSet(source, None, to_tensor, 0, mixing=Mixing(mixup=1.0))[key]

    first = sample(Key(0, 5, 1, partner=2))
    again, later = sample(Key(0, 5, 1, partner=2)), sample(Key(0, 6, 1, partner=2))
    assert torch.equal(first["image"], again["image"]) and first["share"] == again["share"] != later["share"]
    assert (first["label"], first["other"]) == (1, 0)
    assert first["image"][0, 0, 0] == round(40 * first["share"] + 80 * (1 - first["share"]))
    batch = Collator(None)([first, later])
    assert batch["other_labels"].tolist() == [0, 0]
    assert batch["shares"].tolist() == pytest.approx([first["share"], later["share"]])
    assert "other" not in sample(Key(0, 5, 1))
