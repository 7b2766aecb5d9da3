"""Test-time ensembles: the mean prediction over several crops of an image."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any

import numpy as np
import torch
from torchvision import transforms as v1
from torchvision.transforms import v2

from hf_vlr.errors import UserError
from hf_vlr.evaluation.predictors import Scores, log_softmax
from hf_vlr.features import Transform

CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))
# the part of a resized picture that a crop shows, where the model's own transform would show all of it
SHARE = 0.875


@dataclass(frozen=True)
class CropViews:
    """The transforms of an ensemble, and what it costs in words (None: one view, the model's own)."""

    transforms: Sequence[Transform]
    cost: str | None = None


class Crop(torch.nn.Module):
    """The crop of `size` (height, width) at a corner: down and right are 0 or 1."""

    def __init__(self, size: Sequence[int], down: int, right: int) -> None:
        super().__init__()
        self.size, self.down, self.right = tuple(size), down, right

    def forward(self, image: Any) -> Any:
        (height, width), (tall, wide) = self.size, v2.functional.get_size(image)
        return v2.functional.crop(image, self.down * (tall - height), self.right * (wide - width), height, width)

    def extra_repr(self) -> str:
        return f"{self.size}, down={self.down}, right={self.right}"


class Mirror(torch.nn.Module):
    """The picture with left and right exchanged."""

    def forward(self, image: Any) -> Any:
        return v2.functional.horizontal_flip(image)


def crop_views(transform: Transform, crops: str) -> CropViews:
    """The views of `eval.crops`: `none`, `five` (four corners and the centre) or `ten` (also mirrored).

    They are crops of the picture as the transform resizes it, of the size that it crops, so that the centre is the
    view without crops. Where it keeps the whole of a square picture, all crops would be the same: there the picture is
    resized to 8/7 of that, and the cost says so. Raises `UserError` for a transform without a resizing to crop from.
    """
    if crops == "none":
        return CropViews([transform])
    steps = list(getattr(transform, "transforms", []))
    resized = next((index for index, step in enumerate(steps) if isinstance(step, v1.Resize | v2.Resize)), None)
    if resized is None:
        raise UserError(
            f"eval.crops={crops}: this model's preprocessing has no resizing to take crops of; leave it out"
        )
    cropped = next((index for index, step in enumerate(steps) if isinstance(step, v1.CenterCrop | v2.CenterCrop)), None)
    side = _sides(steps[resized].size)
    size = _square(side) if cropped is None else _square(_sides(steps[cropped].size))
    note = ""
    if min(side) <= min(size):
        side = [floor(edge / SHARE) for edge in (size if len(side) == 2 else size[:1])]
        steps[resized] = copy.copy(steps[resized])
        steps[resized].size = side
        note = f", resized to {side[0]} px"
    # a cut after the resizing, where the transform had none
    place, rest = (resized + 1, resized + 1) if cropped is None else (cropped, cropped + 1)
    cuts: list[torch.nn.Module] = [Crop(size, *corner) for corner in CORNERS]
    cuts.append(v2.CenterCrop(size) if cropped is None else steps[cropped])
    variants = [[cut] for cut in cuts] + ([[cut, Mirror()] for cut in cuts] if crops == "ten" else [])
    compose = type(transform)
    views = [compose([*steps[:place], *variant, *steps[rest:]]) for variant in variants]
    return CropViews(views, f"{crops} crops, {len(views)} forward passes{note}")


def ensemble(transforms: Sequence[Transform], scores: Callable[[Transform], Scores]) -> Scores:
    """The predictors' scores of one view as they are, or the log of the mean softmax over several views."""
    if len(transforms) == 1:
        return scores(transforms[0])
    return mean_probabilities(map(scores, transforms))


def mean_probabilities(views: Iterable[Scores]) -> Scores:
    """log((1/V) Σ_v softmax(s_v)) of each predictor, [N, C], from its logits or log-probabilities of V views."""
    sums: Scores = {}
    count = 0
    for scores in views:
        count += 1
        for name, values in scores.items():
            probabilities = np.exp(log_softmax(values))
            sums[name] = sums[name] + probabilities if name in sums else probabilities
    return {name: np.log(np.maximum(total / count, np.finfo(total.dtype).tiny)) for name, total in sums.items()}


def _sides(size: Any) -> list[int]:
    return [size] if isinstance(size, int) else list(size)


def _square(sides: list[int]) -> list[int]:
    return sides * 2 if len(sides) == 1 else sides
