"""From a picture to a model's pixels with numpy and Pillow alone, as the evaluation's transform computes them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from hf_vlr.data.transforms import Scaling
from hf_vlr.features import Transform

PILLOW = {
    InterpolationMode.NEAREST: Image.Resampling.NEAREST,
    InterpolationMode.BILINEAR: Image.Resampling.BILINEAR,
    InterpolationMode.BICUBIC: Image.Resampling.BICUBIC,
    InterpolationMode.BOX: Image.Resampling.BOX,
    InterpolationMode.HAMMING: Image.Resampling.HAMMING,
    InterpolationMode.LANCZOS: Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocessing:
    """What `preprocessor.json` says.

    shortest_edge: pixels of the shorter side after resizing, None: the picture is squashed to the square. resample:
    Pillow's number of the filter. size: S, the side of the square that is cut from the middle. mean, std: per channel,
    of values from 0 to 1.
    """

    shortest_edge: int | None
    resample: int
    size: int
    mean: Sequence[float]
    std: Sequence[float]

    def pixels(self, picture: Image.Image) -> npt.NDArray[np.float32]:
        """An RGB picture to float32 [3, S, S]."""
        width, height = picture.size
        size, edge, short = self.size, self.shortest_edge, min(picture.size)
        # as torchvision rounds: the longer side down, half a margin to the even number
        sides = (size, size) if edge is None else (int(edge * width / short), int(edge * height / short))
        left, top = (round((side - size) / 2) for side in sides)
        cut = picture.resize(sides, self.resample).crop((left, top, left + size, top + size))
        values = np.asarray(cut, dtype=np.float32) / np.float32(255)
        mean, std = (np.asarray(numbers, dtype=np.float32) for numbers in (self.mean, self.std))
        return np.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def preprocessing_of(transform: Transform) -> Preprocessing:
    """The settings of a transform of `hf_vlr.data.transforms.build_eval_transform`."""
    steps = {type(step): step for step in transform.transforms}
    resize, crop, scaling = steps[v2.Resize], steps[v2.CenterCrop], steps[Scaling]
    sides = [resize.size] if isinstance(resize.size, int) else list(resize.size)
    return Preprocessing(
        shortest_edge=sides[0] if len(sides) == 1 else None,
        resample=int(PILLOW[resize.interpolation]),
        size=crop.size[0],
        mean=list(scaling.mean),
        std=list(scaling.std),
    )
