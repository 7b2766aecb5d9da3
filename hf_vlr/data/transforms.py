"""From an RGB picture to a normalised tensor, for training and for evaluation.

A picture is one of Pillow's or its pixels, uint8 [3, H, W] (`takes_pixels`). Both are cut alike, and the bicubic
filter is the same, but some of every thousand values are rounded otherwise, by one of 255 levels, rarely by two.
"""

from collections.abc import Sequence
from math import floor
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from hf_vlr.data.images import Picture, picture_for_model
from hf_vlr.errors import UserError

AUGMENTS = ("none", "light", "strong")
DECODERS = ("auto", "pillow")


def build_train_transform(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    augment: str = "light",
    *,
    min_scale: float = 0.08,
    flip: bool = True,
    decoder: str = "auto",
) -> v2.Compose:
    """A picture to float32 `[3, size, size]`, `(x/255 - mean) / std`.

    augment: "none" squeezes the whole picture to the size; "light" crops a random part (`min_scale` … 1 of
        the area, sides 3:4 … 4:3, bicubic) and mirrors half of them; "strong" adds RandAugment (magnitude 9)
        and puts noise of the pixels' own mean and deviation over a part of every fourth (VL-LTR, §4.1).
    flip: False where left and right carry meaning.
    decoder: "auto" takes pixels and pictures; "pillow" asks for pictures alone (`read_for`).

    It draws from torch's global generator, the same for pixels and pictures: run it inside `randomness.torch_seeded`.
    """
    if augment not in AUGMENTS:
        raise UserError(f"augment={augment!r} is unknown; there are: {', '.join(AUGMENTS)}")
    first, tensor = _first_steps(decoder), _to_tensor(mean, std)
    if augment == "none":
        return v2.Compose([*first, v2.Resize((size, size), InterpolationMode.BICUBIC, antialias=True), *tensor])
    crop = v2.RandomResizedCrop(size, scale=(min_scale, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True)
    steps: list[torch.nn.Module] = [*first, crop, *([v2.RandomHorizontalFlip()] if flip else [])]
    if augment == "light":
        return v2.Compose([*steps, *tensor])
    return v2.Compose([*steps, v2.RandAugment(), tensor[0], NoisyErasing(mean, std), *tensor[1:]])


class Pictures(torch.nn.Module):
    """A first step that leaves pictures as they are, and says that a transform is for Pillow's alone."""

    def forward(self, picture: Image.Image) -> Image.Image:
        return picture


class ToBytes(torch.nn.Module):
    """A picture or its pixels as pixels, uint8 `[3, H, W]`, each channel in one piece, as the next steps like them."""

    def forward(self, picture: Picture) -> torch.Tensor:
        return (picture if isinstance(picture, torch.Tensor) else v2.functional.pil_to_tensor(picture)).contiguous()


class Scaling(torch.nn.Module):
    """Bytes `[..., 3, H, W]` to float32, `(x/255 - mean) / std`: v2's `ToDtype` and `Normalize` in one new tensor."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = list(mean), list(std)
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        scaled = pixels.to(torch.float32).mul_(1 / 255)
        return scaled.sub_(self._mean.to(scaled.device)).div_(self._std.to(scaled.device))

    def extra_repr(self) -> str:
        return f"mean={self.mean}, std={self.std}"


def takes_pixels(transform: Any) -> bool:
    """Whether a transform may be given uint8 `[3, H, W]` in place of a picture of Pillow's."""
    return isinstance(transform, v2.Compose) and not isinstance(transform.transforms[0], Pictures)


def read_for(transform: Any, images: Sequence, index: int) -> Picture:
    """Picture `index` in the form that is the fastest for a transform: a JPEG's pixels where it takes them."""
    return picture_for_model(images, index) if takes_pixels(transform) else images[index]


class NoisyErasing(v2.RandomErasing):
    """Random erasing of every fourth picture, uint8 `[3, H, W]`, by noise of the given mean and deviation.

    In bytes, so that a batch stays small until it is normalised: the noise is rounded and cut to 0 … 255.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(p=0.25)
        self.mean, self.std = list(mean), list(std)

    def make_params(self, flat_inputs: list) -> dict:
        params = super().make_params(flat_inputs)
        if params["v"] is not None:
            mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
            noise = mean + std * torch.randn(len(self.mean), params["h"], params["w"])
            params["v"] = noise.mul(255).round().clamp(0, 255).to(torch.uint8)
        return params

    def extra_repr(self) -> str:
        return f"p={self.p}, mean={self.mean}, std={self.std}"


def split_scaling(transform: v2.Compose) -> tuple[v2.Compose, v2.Compose]:
    """A transform up to bytes, uint8 `[3, size, size]`, and the rest, which also takes batches of them on any device.

    One after the other they are the transform.
    """
    scaling = [step for step in transform.transforms if isinstance(step, Scaling | v2.ToDtype | v2.Normalize)]
    return v2.Compose([step for step in transform.transforms if step not in scaling]), v2.Compose(scaling)


def build_eval_transform(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    crop_pct: float | None = 0.875,
    interpolation: InterpolationMode = InterpolationMode.BICUBIC,
    *,
    decoder: str = "auto",
) -> v2.Compose:
    """A picture to float32 `[3, size, size]`: shorter side to `size / crop_pct`, centre crop, normalise.

    `crop_pct=1` keeps all of the shorter side, as CLIP does; 0.875 is 256 for 224; None squashes the picture to the
    square, as SigLIP does. `decoder` is as in `build_train_transform`.
    """
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise UserError(f"crop_pct={crop_pct}: choose a number above 0 and up to 1")
    side = [size, size] if crop_pct is None else floor(size / crop_pct)
    resize = v2.Resize(side, interpolation, antialias=True)
    return v2.Compose([*_first_steps(decoder), resize, v2.CenterCrop(size), *_to_tensor(mean, std)])


def _first_steps(decoder: str) -> list[torch.nn.Module]:
    if decoder not in DECODERS:
        raise UserError(f"decoder={decoder!r} is unknown; there are: {', '.join(DECODERS)}")
    return [Pictures()] if decoder == "pillow" else []


def _to_tensor(mean: Sequence[float], std: Sequence[float]) -> list[torch.nn.Module]:
    return [ToBytes(), Scaling(mean, std)]
