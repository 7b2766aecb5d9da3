"""From an RGB picture to a normalised tensor, for training and for evaluation."""

from collections.abc import Sequence
from math import floor

import torch
from torchvision.transforms import InterpolationMode, v2

from hf_vlr.errors import UserError

AUGMENTS = ("none", "light", "strong")


def build_train_transform(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    augment: str = "light",
    *,
    min_scale: float = 0.08,
    flip: bool = True,
) -> v2.Compose:
    """A `PIL.Image` to float32 `[3, size, size]`, `(x/255 - mean) / std`.

    augment: "none" squeezes the whole picture to the size; "light" crops a random part (`min_scale` … 1 of
        the area, sides 3:4 … 4:3, bicubic) and mirrors half of them; "strong" adds RandAugment (magnitude 9)
        and erases a part of every fourth (VL-LTR, §4.1).
    flip: False where left and right carry meaning.

    It draws from torch's global generator: run it inside `randomness.torch_seeded`.
    """
    if augment not in AUGMENTS:
        raise UserError(f"augment={augment!r} is unknown; there are: {', '.join(AUGMENTS)}")
    tensor = _to_tensor(mean, std)
    if augment == "none":
        return v2.Compose([v2.Resize((size, size), InterpolationMode.BICUBIC, antialias=True), *tensor])
    crop = v2.RandomResizedCrop(size, scale=(min_scale, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True)
    steps: list[torch.nn.Module] = [crop, *([v2.RandomHorizontalFlip()] if flip else [])]
    if augment == "light":
        return v2.Compose([*steps, *tensor])
    return v2.Compose([*steps, v2.RandAugment(), *tensor, v2.RandomErasing(p=0.25, value="random")])


def build_eval_transform(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    crop_pct: float | None = 0.875,
    interpolation: InterpolationMode = InterpolationMode.BICUBIC,
) -> v2.Compose:
    """A `PIL.Image` to float32 `[3, size, size]`: shorter side to `size / crop_pct`, centre crop, normalise.

    `crop_pct=1` keeps all of the shorter side, as CLIP does; 0.875 is 256 for 224; None squashes the picture to the
    square, as SigLIP does.
    """
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise UserError(f"crop_pct={crop_pct}: choose a number above 0 and up to 1")
    side = [size, size] if crop_pct is None else floor(size / crop_pct)
    resize = v2.Resize(side, interpolation, antialias=True)
    return v2.Compose([resize, v2.CenterCrop(size), *_to_tensor(mean, std)])


def _to_tensor(mean: Sequence[float], std: Sequence[float]) -> list[torch.nn.Module]:
    return [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(mean), list(std)),
        v2.ToPureTensor(),
    ]
