"""The preprocessing that came with somebody else's model, as a transform of torchvision where it can be said as one.

Whether it can is measured: a transform stands for a processor only where both give the same pixels on test pictures.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from hf_vlr.data.transforms import Pictures
from hf_vlr.errors import UserError
from hf_vlr.features import Transform

# wide, tall, and smaller than any model's input; odd margins tell roundings of the crop apart
PROBES = ((301, 178), (97, 160), (21, 24))
# of normalised pixels: rounding to float32, where another crop or kernel makes more than 1e-2
TOLERANCE = 1e-4


def transform_of(processor: Any) -> tuple[Transform, int]:
    """(transform of a picture to float32 pixels [3, H, W], side of the picture) of an image processor.

    A `v2.Compose` where one gives the processor's own pixels, else the processor itself. Raises `UserError` for a
    processor whose pixels are not of one size.
    """
    # timm's is a transform already
    own = getattr(processor, "val_transforms", None)
    pictures = [probe(size) for size in PROBES]
    wanted = [ProcessorTransform(processor)(picture) for picture in pictures]
    shapes = {tuple(pixels.shape) for pixels in wanted}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3:
        raise UserError(
            f"the image processor {type(processor).__name__} does not give pictures of one size, which eval needs; "
            "measure logits that you compute yourself with --logits"
        )
    candidates = [own] if own is not None else candidates_of(processor)
    for candidate in candidates:
        if same_pixels(candidate, pictures, wanted):
            return candidate, max(next(iter(shapes))[1:])
    return ProcessorTransform(processor), max(next(iter(shapes))[1:])


class ProcessorTransform:
    """An image processor as a transform; its settings are its name in caches."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.as_tensor(self.processor(images=image, return_tensors="pt")["pixel_values"][0])

    def __repr__(self) -> str:
        settings = json.dumps(self.processor.to_dict(), sort_keys=True, default=str)
        return f"{type(self.processor).__name__}({settings})"


class CentreCrop(v2.CenterCrop):
    """A centre crop whose odd margin is one pixel larger below and to the right, as transformers cuts it."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        (height, width), (tall, wide) = self.size, v2.functional.get_size(inpt)
        if tall < height or wide < width:
            return super().transform(inpt, params)
        return v2.functional.crop(inpt, (tall - height) // 2, (wide - width) // 2, height, width)


def candidates_of(processor: Any) -> Iterator[v2.Compose]:
    """The transforms that the processor's settings could mean: resized as a tensor, or by Pillow.

    The second takes no pixels, which it would resize otherwise than the processor does.
    """
    geometry = geometry_of(processor)
    if geometry is None:
        return
    rescale = getattr(processor, "do_rescale", None)
    unit = 255 * processor.rescale_factor if rescale else 255.0
    normalize = getattr(processor, "do_normalize", None)
    mean = np.array(processor.image_mean if normalize else [0.0] * 3) / unit
    std = np.array(processor.image_std if normalize else [1.0] * 3) / unit
    scaling = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean.tolist(), std.tolist()), v2.ToPureTensor()]
    yield v2.Compose([v2.ToImage(), *geometry, *scaling])
    yield v2.Compose([Pictures(), *geometry, v2.ToImage(), *scaling])


def geometry_of(processor: Any) -> list[torch.nn.Module] | None:
    """Resizing and cropping as the processor's settings say; None where they say something else."""
    steps: list[torch.nn.Module] = []
    size, crop = getattr(processor, "size", None) or {}, getattr(processor, "crop_size", None) or {}
    side, exact = size.get("shortest_edge"), (size.get("height"), size.get("width"))
    if getattr(processor, "do_resize", False):
        interpolation = InterpolationMode[Image.Resampling(processor.resample).name]
        share = getattr(processor, "crop_pct", None)
        if share and side and side < 384:
            # ConvNeXt's: the size is what is left after a crop
            return [v2.Resize(int(side / share), interpolation, antialias=True), CentreCrop([side, side])]
        if share and side:
            return [v2.Resize([side, side], interpolation, antialias=True)]
        if not side and None in exact:
            return None
        steps.append(v2.Resize(side or list(exact), interpolation, antialias=True))
    if getattr(processor, "do_center_crop", False):
        if None in (crop.get("height"), crop.get("width")):
            return None
        steps.append(CentreCrop([crop["height"], crop["width"]]))
    return steps


def probe(size: tuple[int, int]) -> Image.Image:
    """A picture full of edges, always the same."""
    width, height = size
    values = np.arange(width * height * 3, dtype=np.int64) * 7919 % 65521 % 256
    return Image.fromarray(values.astype(np.uint8).reshape(height, width, 3))


def same_pixels(transform: Transform, pictures: list[Image.Image], wanted: list[Tensor]) -> bool:
    """Whether a transform gives the wanted pixels of all pictures."""
    found = [transform(picture) for picture in pictures]
    return all(
        one.shape == other.shape and bool((one - other).abs().max() <= TOLERANCE)
        for one, other in zip(found, wanted, strict=True)
    )
