"""Test-time crops: where they lie, what they cost, and what their mean is."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import v2

from hf_vlr.data.transforms import build_eval_transform
from hf_vlr.errors import UserError
from hf_vlr.evaluation.crops import crop_views, ensemble, mean_probabilities

PLAIN = ([0.5] * 3, [0.5] * 3)


def photo(width: int = 60, height: int = 48) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("package", [v1, v2])
def test_five_crops_are_torchvisions(package):
    resize, crop = package.Resize(40), package.CenterCrop(32)
    rest = [v1.ToTensor()] if package is v1 else [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    views = crop_views(package.Compose([resize, crop, *rest]), "five")
    expected = package.FiveCrop(32)(resize(photo()))
    assert views.cost == "five crops, 5 forward passes"
    for view, cut in zip(views.transforms, expected, strict=True):
        for step in rest:
            cut = step(cut)
        assert torch.equal(torch.as_tensor(view(photo())), torch.as_tensor(cut))
    # the centre is the view without crops, so that a cache has it already
    assert repr(views.transforms[-1]) == repr(package.Compose([resize, crop, *rest]))
    assert len({repr(view) for view in views.transforms}) == 5


def test_ten_are_five_and_their_mirror_images():
    transform = build_eval_transform(32, *PLAIN, crop_pct=0.8)
    views = crop_views(transform, "ten")
    assert views.cost == "ten crops, 10 forward passes"
    seen = [view(photo()) for view in views.transforms]
    for plain, mirrored in zip(seen[:5], seen[5:], strict=True):
        assert torch.equal(plain.flip(-1), mirrored)
        assert not torch.equal(plain, mirrored)


@pytest.mark.parametrize("crop_pct", [1.0, None])
def test_where_the_model_sees_all_the_picture_is_made_larger(crop_pct):
    views = crop_views(build_eval_transform(28, *PLAIN, crop_pct=crop_pct), "five")
    assert views.cost == "five crops, 5 forward passes, resized to 32 px"
    seen = [view(photo(50, 50)) for view in views.transforms]
    assert all(pixels.shape == (3, 28, 28) for pixels in seen)
    assert all(not torch.equal(one, other) for number, one in enumerate(seen) for other in seen[:number])
    larger = build_eval_transform(32, *PLAIN, crop_pct=crop_pct)(photo(50, 50))
    assert torch.equal(seen[0], larger[:, :28, :28])
    assert torch.equal(seen[3], larger[:, 4:, 4:])


def test_one_view_is_the_model_own_and_costs_nothing():
    transform = build_eval_transform(32, *PLAIN)
    views = crop_views(transform, "none")
    assert (views.transforms, views.cost) == ([transform], None)
    assert ensemble(views.transforms, lambda view: {"visual": view}) == {"visual": transform}


def test_without_a_resizing_there_is_nothing_to_crop():
    with pytest.raises(UserError, match="no resizing"):
        crop_views(lambda image: image, "five")


def test_the_mean_is_of_probabilities():
    rng = np.random.default_rng(1)
    views = [{"a": rng.normal(size=(6, 4)).astype(np.float32) * 5} for _ in range(3)]
    found = mean_probabilities(iter(views))["a"]
    probabilities = np.mean([np.exp(v["a"]) / np.exp(v["a"]).sum(1, keepdims=True) for v in views], axis=0)
    np.testing.assert_allclose(np.exp(found), probabilities, rtol=1e-5)
    assert not np.allclose(found, np.mean([torch.tensor(v["a"]).log_softmax(-1).numpy() for v in views], axis=0))
    # a class that no view believes in stays finite
    assert np.isfinite(mean_probabilities([{"a": np.array([[0.0, -1e4]], dtype=np.float32)}])["a"]).all()
