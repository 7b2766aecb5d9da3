"""`shapes-lt`: a long-tailed dataset drawn at run time, whose classes are combinations of attributes.

A class is shape × colour × texture (× number of objects). Its description tells all of it, so what language
knows of a rare or unseen combination is carried by the sentences of frequent ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from hf_vlr.data.shapes_text import COLOURS, COUNTS, SHAPES, TEXTURES, Combination, from_name
from hf_vlr.errors import UserError
from hf_vlr.randomness import numpy_generator, seed_for

# Shapes, colours, textures and counts in use: the first grid that is large enough, so that it stays densely
# filled.
GRIDS = ((4, 4, 2, 1), (6, 6, 3, 1), (6, 6, 4, 1), (8, 8, 4, 1), (8, 8, 5, 1), (8, 8, 5, 2), (8, 8, 5, 4))
RGB = {
    "red": (210, 40, 40),
    "green": (50, 160, 60),
    "blue": (50, 80, 210),
    "yellow": (230, 210, 50),
    "purple": (140, 50, 160),
    "orange": (240, 140, 30),
    "cyan": (60, 200, 210),
    "black": (25, 25, 30),
}
EAGER_BYTES = 2**28


@dataclass(frozen=True)
class ShapesOptions:
    """classes: C; unseen: combinations that occur in no training image; size: pixels of a side;
    max_count: training images of the most frequent class; imbalance: IF, so class i has max_count ·
    IF^(-i/(C-1));
    validation, test: images per class of those splits (`test` of the split unseen too); noise: standard
    deviation of the pixel noise in grey levels.
    """

    classes: int = 108
    unseen: int = 12
    size: int = 32
    max_count: int = 200
    imbalance: float = 100.0
    validation: int = 5
    test: int = 10
    noise: float = 12.0

    @classmethod
    def from_mapping(cls, options: dict[str, Any]) -> "ShapesOptions":
        """Options by name; `UserError` for an unknown name, a wrong type or a value outside its range."""
        known = {entry.name: entry.type for entry in fields(cls)}
        for name, value in options.items():
            if name not in known:
                raise UserError(f"unknown option {name!r} of shapes-lt; there are: {', '.join(known)}")
            if isinstance(value, bool) or not isinstance(value, int if known[name] is int else int | float):
                raise UserError(f"{name}={value!r} of shapes-lt must be a number ({known[name].__name__})")
        chosen = cls(**options)
        limits = {"classes": 2, "unseen": 0, "size": 8, "max_count": 1, "imbalance": 1, "noise": 0}
        for name, least in (limits | {"validation": 1, "test": 1}).items():
            if getattr(chosen, name) < least:
                raise UserError(f"{name}={getattr(chosen, name)} of shapes-lt must be at least {least}")
        return chosen


def training_counts(options: ShapesOptions) -> np.ndarray:
    """Images per class, int64 `[C]`: n_i = int(n_max · (1/IF)^(i/(C-1))), at least 1 (Cui et al., 2019)."""
    share = np.arange(options.classes) / (options.classes - 1)
    return np.maximum(1, options.max_count * (1 / options.imbalance) ** share).astype(np.int64)


def shapes_classes(options: ShapesOptions) -> tuple[list[str], list[str]]:
    """The names of the seen classes, the most frequent first, and of the unseen combinations.

    The order is a fixed shuffle, so that no attribute goes with frequency; every attribute value of an unseen
    combination also occurs in a seen one.
    """
    needed = options.classes + options.unseen
    grid = next((grid for grid in GRIDS if math.prod(grid) >= needed), None)
    if grid is None:
        raise UserError(f"shapes-lt has {math.prod(GRIDS[-1])} combinations; {needed} classes are too many")
    shapes, colours, textures, counts = (
        SHAPES[: grid[0]],
        COLOURS[: grid[1]],
        TEXTURES[: grid[2]],
        COUNTS[: grid[3]],
    )
    every = [Combination(*values) for values in product(colours, textures, shapes, counts)]
    order = numpy_generator(0, 0, 0, f"shapes-lt/{grid}").permutation(len(every))
    shuffled = [every[index] for index in order]
    seen, rest = shuffled[: options.classes], shuffled[options.classes :]
    values = {value for combination in seen for value in combination}
    unseen = [combination for combination in rest if values.issuperset(combination)][: options.unseen]
    if len(unseen) < options.unseen:
        raise UserError(f"unseen={options.unseen}: {options.classes} classes leave only {len(unseen)} combinations")
    return [combination.name for combination in seen], [combination.name for combination in unseen]


def load_shapes(split: str, *, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """The fields of an `ImageSource` for one split: images, labels, captions (none) and class names."""
    chosen = ShapesOptions.from_mapping(options)
    seen, unseen = shapes_classes(chosen)
    names = unseen if split == "unseen" else seen
    if not names:
        raise UserError("shapes-lt has no unseen classes; set data.options.unseen above 0")
    per_class = chosen.validation if split == "validation" else chosen.test
    counts = training_counts(chosen) if split == "train" else np.full(len(names), per_class)
    labels = np.repeat(np.arange(len(names), dtype=np.int64), counts)
    images = DrawnImages(names, labels, split, seed, chosen.size, chosen.noise)
    return {"images": images, "labels": labels, "captions": [None] * len(labels), "class_names": names}


class DrawnImages(Sequence):
    """Pictures drawn from (seed, split, index, class) alone.

    They are kept as uint8 `[N, size, size, 3]` where that is at most 256 MiB, and drawn at each access
    otherwise.
    """

    def __init__(self, names: list[str], labels: np.ndarray, split: str, seed: int, size: int, noise: float) -> None:
        self._classes = [from_name(name) for name in names]
        self._labels, self._split, self._seed, self._size, self._noise = labels, split, seed, size, noise
        self._pixels: np.ndarray | None = None
        if len(labels) * size * size * 3 <= EAGER_BYTES:
            self._pixels = np.stack([self._draw(index) for index in range(len(labels))])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self._draw(index) if self._pixels is None else self._pixels[index])

    def identity(self) -> str:
        names = [combination.name for combination in self._classes]
        return f"{names}/{self._labels.tolist()}/{self._split}/{self._seed}/{self._size}/{self._noise}"

    def _draw(self, index: int) -> np.ndarray:
        rng = np.random.Generator(np.random.PCG64(seed_for(self._seed, 0, index, f"shapes-lt/{self._split}")))
        return draw_shape(self._classes[self._labels[index]], self._size, self._noise, rng)


def draw_shape(combination: Combination, size: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    """One picture, uint8 `[size, size, 3]`: objects of the class at random places, scales and angles on a
    dull background with a gradient and Gaussian noise of standard deviation `noise`.
    """
    picture = background(size, rng)
    number = COUNTS.index(combination.count) + 1
    cells = [(0.5, 0.5)] if number == 1 else [(0.27, 0.27), (0.73, 0.73), (0.73, 0.27), (0.27, 0.73)][:number]
    for x, y in cells:
        room = 1.0 if number == 1 else 0.5
        radius = room * rng.uniform(0.24, 0.40)
        shift = rng.uniform(-1, 1, 2) * (0.48 * room - radius)
        paint_object(picture, combination, (x + shift[0], y + shift[1]), radius, rng)
    picture += rng.normal(0, noise, picture.shape) if noise else 0
    return np.clip(picture, 0, 255).astype(np.uint8)


def background(size: int, rng: np.random.Generator) -> np.ndarray:
    """A dull colour with a gradient, float64 `[size, size, 3]` in grey levels."""
    base = rng.uniform(60, 200) + rng.uniform(-25, 25, 3)
    slope = rng.uniform(-30, 30, 2)
    ramp = np.linspace(-0.5, 0.5, size)
    picture = np.empty((size, size, 3))
    picture[:] = base
    picture += (slope[0] * ramp[:, None] + slope[1] * ramp)[:, :, None]
    return picture


def paint_object(
    picture: np.ndarray,
    combination: Combination,
    centre: tuple[float, float],
    radius: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Paint one object into a picture `[size, size, 3]` and return its coverage `[size, size]` in 0 … 1.

    `centre` (x, y) and `radius` are shares of the picture's side.
    """
    colour = np.clip(np.array(RGB[combination.colour]) + rng.normal(0, 14, 3), 0, 255)
    angle = rng.uniform(-0.45, 0.45)
    alpha, inside = _object(combination, len(picture), centre, radius, angle, rng)
    # The pattern's second tone is the colour, lightened: hue stays readable in every texture.
    light = 0.35 * colour + 0.65 * 255 if colour.sum() < 420 else 0.45 * colour
    ink = light + inside[:, :, None] * (colour - light)
    picture += alpha[:, :, None] * (ink - picture)
    return alpha


def _object(
    combination: Combination,
    size: int,
    centre: tuple[float, float],
    radius: float,
    angle: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The object's coverage and the share of its own colour, both `[size, size]` in 0 … 1."""
    fine = 2 * size
    mask = Image.new("L", (fine, fine), 0)
    draw = ImageDraw.Draw(mask)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    for points, fill in _outlines(combination.shape):
        placed = (points * radius) @ turn + centre
        draw.polygon((placed * fine).ravel().tolist(), fill=fill)
        if combination.texture == "hollow":
            inner = (points * radius * 0.62) @ turn + centre
            draw.polygon((inner * fine).ravel().tolist(), fill=0)
    alpha = np.asarray(mask.reduce(2), dtype=np.float64) / 255
    grid = (np.arange(size) + 0.5) / size
    across = ((grid[None, :] - centre[0]) * turn[0, 0] + (grid[:, None] - centre[1]) * turn[0, 1]) / radius
    along = ((grid[:, None] - centre[1]) * turn[0, 0] - (grid[None, :] - centre[0]) * turn[0, 1]) / radius
    return alpha, _pattern(combination.texture, across, along, rng.uniform(0, 2 * math.pi, 2))


def _pattern(texture: str, across: np.ndarray, along: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """The share of the object's own colour at each pixel; coordinates are in units of the radius."""
    if texture == "striped":
        return (np.sin(9 * across + phase[0]) > -0.2).astype(np.float64)
    if texture == "dotted":
        return (np.cos(8 * across + phase[0]) + np.cos(8 * along + phase[1]) < 0.9).astype(np.float64)
    if texture == "chequered":
        return (np.sin(6 * across + phase[0]) * np.sin(6 * along + phase[1]) > 0).astype(np.float64)
    return np.ones_like(across)


def _circle(radius: float, shift: float = 0.0) -> np.ndarray:
    turn = np.linspace(0, 2 * math.pi, 28, endpoint=False)
    return np.stack([radius * np.cos(turn) + shift, radius * np.sin(turn)], 1)


def _star() -> np.ndarray:
    turn = np.arange(10) * math.pi / 5 - math.pi / 2
    reach = np.where(np.arange(10) % 2 == 0, 1.1, 0.45)
    return np.stack([reach * np.cos(turn), reach * np.sin(turn)], 1)


def _heart() -> np.ndarray:
    turn = np.linspace(0, 2 * math.pi, 28, endpoint=False)
    up = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
    return np.stack([np.sin(turn) ** 3, -up / 16], 1)


_OUTLINES = {
    "circle": [(_circle(0.95), 255)],
    "square": [(np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.85, 255)],
    "triangle": [(np.array([[0, -1.05], [1, 0.75], [-1, 0.75]]), 255)],
    "star": [(_star(), 255)],
    "cross": [
        (np.array([[-1, -0.34], [1, -0.34], [1, 0.34], [-1, 0.34]]), 255),
        (np.array([[-0.34, -1], [0.34, -1], [0.34, 1], [-0.34, 1]]), 255),
    ],
    "ring": [(_circle(1.0), 255), (_circle(0.5), 0)],
    "heart": [(_heart(), 255)],
    "crescent": [(_circle(1.0), 255), (_circle(0.8, 0.5), 0)],
}


def _outlines(shape: str) -> list[tuple[np.ndarray, int]]:
    """Polygons `[K, 2]` in units of the radius, drawn in turn: filled with 255, cut out with 0."""
    return _OUTLINES[shape]
