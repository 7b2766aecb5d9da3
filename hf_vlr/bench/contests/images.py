"""Line 8: from JPEG files to normalised pixels, on one core."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO

import torch
from PIL import Image, ImageOps
from torch import Tensor

from hf_vlr.bench.contest import Answers, Contest, Contestant
from hf_vlr.bench.goals import Goal
from hf_vlr.bench.setting import Setting
from hf_vlr.data.images import decode_for_model, decode_image
from hf_vlr.data.transforms import build_eval_transform, build_train_transform
from hf_vlr.timing import Turns, torch_threads

OURS, PILLOW = "hf_vlr", "hf_vlr by Pillow"
OPEN_CLIP, TRANSFORMERS, TIMM = "open_clip transform", "transformers CLIPImageProcessor", "timm transform"
SIDE = 224
# of CLIP's pictures
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# the smallest area of a random crop
MIN_SCALE = 0.4
QUALITY = 92


def photographs(count: int, width: int, height: int) -> list[bytes]:
    """At most 8 JPEG files: scikit-learn's two photographs, mirrored and turned over for more, in that size."""
    from sklearn.datasets import load_sample_images

    pictures = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    pictures += [ImageOps.mirror(picture) for picture in pictures]
    pictures += [ImageOps.flip(picture) for picture in pictures]
    return [_encoded(picture.resize((width, height), Image.Resampling.LANCZOS)) for picture in pictures[:count]]


def _encoded(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _files(setting: Setting) -> list[bytes]:
    return photographs(setting["photographs"], setting["width"], setting["height"])


def _opened(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data))


def _ours(transform: Callable[..., Tensor]) -> Callable[[bytes], Tensor]:
    return lambda data: transform(decode_for_model(data, "a photograph"))


def _contestant(name: str, pixels: Callable[[bytes], Tensor], files: Sequence[bytes]) -> Contestant:
    """All files on one thread; random crops are the same at every call and, where they are drawn alike, for all."""

    def call() -> Answers:
        with torch_threads(1), torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            return {f"photograph {number}": pixels(data) for number, data in enumerate(files, start=1)}

    return Contestant(name, call, ours=name == OURS, items=len(files))


def _evaluation(setting: Setting) -> Sequence[Contestant]:
    from open_clip import image_transform
    from timm.data import create_transform
    from transformers import CLIPImageProcessor

    files = _files(setting)
    transform = build_eval_transform(SIDE, MEAN, STD, crop_pct=1)
    open_clip = image_transform(SIDE, is_train=False, mean=MEAN, std=STD)
    processor = CLIPImageProcessor()
    timm = create_transform(SIDE, interpolation="bicubic", mean=MEAN, std=STD, crop_pct=1.0)
    return [
        _contestant(OURS, _ours(transform), files),
        _contestant(PILLOW, lambda data: transform(decode_image(data, "a photograph")), files),
        _contestant(OPEN_CLIP, lambda data: open_clip(_opened(data)), files),
        _contestant(TRANSFORMERS, lambda data: processor(_opened(data), return_tensors="pt")["pixel_values"][0], files),
        _contestant(TIMM, lambda data: timm(_opened(data).convert("RGB")), files),
    ]


def _training(setting: Setting) -> Sequence[Contestant]:
    from open_clip import AugmentationCfg, image_transform

    files = _files(setting)
    # open_clip does not mirror
    transform = build_train_transform(SIDE, MEAN, STD, "light", min_scale=MIN_SCALE, flip=False)
    crops = AugmentationCfg(scale=(MIN_SCALE, 1.0))
    open_clip = image_transform(SIDE, is_train=True, mean=MEAN, std=STD, aug_cfg=crops)
    return [
        _contestant(OURS, _ours(transform), files),
        _contestant(OPEN_CLIP, lambda data: open_clip(_opened(data)), files),
    ]


EVALUATION = Contest(
    name="images",
    row=8,
    title="JPEG of {width} × {height} to normalised pixels of 224 × 224, on one core",
    item="image",
    sizes={
        "full": {"photographs": 8, "width": 500, "height": 375},
        "quick": {"photographs": 2, "width": 500, "height": 375},
    },
    enter=_evaluation,
    goals={"cpu": (Goal("speed", 2.2, OPEN_CLIP), Goal("speed", 1.5, TRANSFORMERS), Goal("speed", 1.5, TIMM))},
    floors={OPEN_CLIP: 1.3, TIMM: 1.3, TRANSFORMERS: 1.0},
    turns=Turns(runs=30, warmup=2, untimed=1, timed=3),
    devices=("cpu",),
    needs=("open_clip", "timm"),
    note="Pixels differ by rounding alone: both libraries decode to the same bytes, and resizing differs by one of 255 "
    "levels, seldom two, in under 1 % of the values. In normalised pixels a level is 0.015.",
)

LARGE = replace(
    EVALUATION,
    name="images-large",
    sizes={
        "full": {"photographs": 4, "width": 1024, "height": 768},
        "quick": {"photographs": 1, "width": 1024, "height": 768},
    },
    goals={},
    turns=Turns(runs=15, warmup=2, untimed=1, timed=3),
)

TRAINING = replace(
    EVALUATION,
    name="images-training",
    title="JPEG of {width} × {height} to a random crop of 224 × 224, normalised, on one core",
    enter=_training,
    goals={},
    floors={OPEN_CLIP: 1.1},
    needs=("open_clip",),
)
