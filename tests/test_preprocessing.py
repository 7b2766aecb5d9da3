"""Transforms read from image processors give the processors' own pixels."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import (
    AutoImageProcessor,
    BlipImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hf_vlr.data.source import load_source
from hf_vlr.data.transforms import takes_pixels
from hf_vlr.errors import UserError
from hf_vlr.evaluation.preprocessing import ProcessorTransform, transform_of
from hf_vlr.training.options import DataOptions
from hf_vlr.training.run_data import transforms
from hf_vlr.views import View

SQUARE = {"height": 32, "width": 32}
PROCESSORS = {
    "clip": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE),
    "clip, odd margin": CLIPImageProcessor(size={"shortest_edge": 37}, crop_size=SQUARE),
    "clip by Pillow": CLIPImageProcessorPil(size={"shortest_edge": 37}, crop_size=SQUARE),
    "siglip": SiglipImageProcessor(size=SQUARE),
    "vit": ViTImageProcessor(size=SQUARE, image_mean=[0.1, 0.2, 0.3]),
    "vit, other scale": ViTImageProcessor(size=SQUARE, rescale_factor=1 / 127.5, image_mean=[1.0] * 3),
    "vit, not normalised": ViTImageProcessor(size=SQUARE, do_normalize=False),
    "deit": DeiTImageProcessor(size={"height": 40, "width": 40}, crop_size=SQUARE),
    "convnext": ConvNextImageProcessor(size={"shortest_edge": 32}),
    "convnext, large": ConvNextImageProcessor(size={"shortest_edge": 384}),
    "blip": BlipImageProcessor(size=SQUARE),
}


def photos() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((50, 81), (64, 64), (133, 40))
    ]


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_transform_gives_the_processors_own_pixels(name):
    processor = PROCESSORS[name]
    transform, side = transform_of(processor)
    assert isinstance(transform, v2.Compose)
    assert side == (384 if "large" in name else 32)
    for photo in photos():
        expected = processor(images=photo, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(transform(photo), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")
def test_a_jpeg_is_read_in_the_form_that_gives_the_processors_own_pixels(name, tmp_path):
    processor = PROCESSORS[name]
    transform, _ = transform_of(processor)
    assert takes_pixels(transform) is (name != "clip by Pillow")
    (tmp_path / "class").mkdir()
    for number, photo in enumerate(photos()):
        photo.save(tmp_path / "class" / f"{number}.jpg")
    images = load_source(f"imagefolder:{tmp_path}", "train", validation_fraction=0).images
    for number in range(len(images)):
        expected = processor(images=images[number], return_tensors="pt")["pixel_values"][0]
        found = View(images, transform, None, 0)[number]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_what_no_transform_can_say_is_left_to_the_processor():
    class Inverted(CLIPImageProcessor):
        def rescale_and_normalize(self, images: torch.Tensor, *settings) -> torch.Tensor:
            return -super().rescale_and_normalize(images, *settings)

    processor = Inverted(size={"shortest_edge": 32}, crop_size=SQUARE)
    transform, side = transform_of(processor)
    assert isinstance(transform, ProcessorTransform)
    assert side == 32
    photo = photos()[0]
    expected = processor(images=photo, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(transform(photo), expected)
    # in a cache it goes by its settings
    other = Inverted(size={"shortest_edge": 33}, crop_size=SQUARE)
    assert repr(transform) == repr(ProcessorTransform(Inverted(size={"shortest_edge": 32}, crop_size=SQUARE)))
    assert repr(transform) != repr(ProcessorTransform(other))


def test_pictures_of_many_sizes_are_refused():
    with pytest.raises(UserError, match="not give pictures of one size"):
        transform_of(ViTImageProcessor(do_resize=False))


def test_timms_own_transform_is_taken(tmp_path):
    folder = load_foreign().save_timm(tmp_path, ["a", "b"])
    processor = AutoImageProcessor.from_pretrained(folder)
    transform, side = transform_of(processor)
    assert (transform, side) == (processor.val_transforms, 32)


def load_foreign() -> ModuleType:
    spec = importlib.util.spec_from_file_location("foreign", Path(__file__).with_name("foreign.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("decoder", "pixels"), [("auto", True), ("pillow", False)])
def test_a_run_says_what_reads_jpeg_files(tiny, decoder, pixels):
    made = transforms(DataOptions(decoder=decoder), tiny.processor().image_processor)
    assert [takes_pixels(transform) for transform in made] == [pixels, pixels]
