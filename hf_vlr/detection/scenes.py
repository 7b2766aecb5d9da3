"""Generated scenes with boxes and masks: several objects of `shapes-lt` on one canvas."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hf_vlr.data.shapes_lt import background, paint_object
from hf_vlr.data.shapes_text import COLOURS, COUNTS, SHAPES, TEXTURES, Combination
from hf_vlr.randomness import numpy_generator

# label 0 is the background, as torchvision's detectors have it
CATEGORIES = ("background", *SHAPES)
TRIES = 20


@dataclass(frozen=True)
class Scenes(Dataset):
    """`count` scenes of `size` x `size` pixels, each drawn from (seed, index, split) alone.

    A scene is (image, target). image: float32 [3, size, size] in 0 … 1. target: `boxes` float32 [B, 4] (x1, y1, x2, y2
    in pixels), `labels` int64 [B] (1 … , an index into `CATEGORIES`), `masks` uint8 [B, size, size]. One to
    `most` objects, each between 16 and 40 % of the side across, of any colour and texture; a later one may cover a
    part of an earlier one, and boxes are those of what is seen.
    """

    split: str
    count: int
    size: int = 96
    most: int = 4
    noise: float = 12.0
    seed: int = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        rng = numpy_generator(self.seed, 0, index, f"scene/{self.split}")
        picture = background(self.size, rng)
        labels, masks = self._objects(picture, rng)
        picture += rng.normal(0, self.noise, picture.shape) if self.noise else 0
        image = np.clip(picture, 0, 255).astype(np.uint8)
        return torch.from_numpy(image).permute(2, 0, 1).float() / 255, _target(labels, masks)

    def _objects(self, picture: np.ndarray, rng: np.random.Generator) -> tuple[list[int], list[np.ndarray]]:
        """Paint the objects; their labels and the masks of what is seen of each."""
        labels: list[int] = []
        masks: list[np.ndarray] = []
        circles: list[tuple[float, float, float]] = []
        for _ in range(rng.integers(1, self.most + 1)):
            circle = _free_place(circles, rng)
            if circle is None:
                continue
            shape = SHAPES[rng.integers(len(SHAPES))]
            drawn = Combination(_any(COLOURS, rng), _any(TEXTURES, rng), shape, COUNTS[0])
            covered = paint_object(picture, drawn, circle[:2], circle[2], rng) > 0.5
            masks = [mask & ~covered for mask in masks] + [covered]
            labels.append(CATEGORIES.index(shape))
            circles.append(circle)
        return labels, masks


def _free_place(
    circles: list[tuple[float, float, float]], rng: np.random.Generator
) -> tuple[float, float, float] | None:
    """A place (x, y, radius) whose object overlaps the others a little at most; None where none was found."""
    for _ in range(TRIES):
        radius = rng.uniform(0.08, 0.20)
        x, y = rng.uniform(1.05 * radius, 1 - 1.05 * radius, 2)
        if all(np.hypot(x - a, y - b) > 0.9 * (radius + other) for a, b, other in circles):
            return x, y, radius
    return None


def _any(values: tuple[str, ...], rng: np.random.Generator) -> str:
    return values[rng.integers(len(values))]


def _target(labels: list[int], masks: list[np.ndarray]) -> dict[str, Tensor]:
    rows = [(np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))) for mask in masks]
    boxes = [[x[0], y[0], x[-1] + 1, y[-1] + 1] for x, y in rows]
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.from_numpy(np.stack(masks).astype(np.uint8)),
    }
