"""Pixels by numpy and Pillow against those of the evaluation."""

import numpy as np
import pytest
from torchvision.transforms import InterpolationMode

from hf_vlr.data.transforms import build_eval_transform
from hf_vlr.export.preprocessing import preprocessing_of

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.7, None])
@pytest.mark.parametrize("interpolation", [InterpolationMode.BICUBIC, InterpolationMode.BILINEAR])
@pytest.mark.parametrize("size", [(97, 61), (61, 98), (32, 32), (20, 23), (31, 400)])
def test_pixels_are_the_evaluations(tiny, crop_pct, interpolation, size):
    transform = build_eval_transform(33, MEAN, STD, crop_pct, interpolation)
    picture = tiny.picture(1, size)
    found = preprocessing_of(transform).pixels(picture)
    wanted = transform(picture).numpy()
    assert found.shape == wanted.shape == (3, 33, 33)
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() <= 1e-6
