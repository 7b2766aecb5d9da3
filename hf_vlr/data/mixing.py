"""Mixup and CutMix: a training image made of two, and how much of it is the first."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixing:
    """How images are mixed: α of Beta(α, α) for each kind, 0 leaves it out; with both, each takes half of the images.

    Mixup (Zhang et al., ICLR 2018): λ x + (1 − λ) x'. CutMix (Yun et al., ICCV 2019): a box of x' with a share 1 − λ
    of the area, centred anywhere and cut at the border, is pasted into x. The label is y with weight λ (for CutMix
    the share of x that is left) and y' with 1 − λ.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def active(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def mix(self, image: Tensor, other: Tensor, rng: np.random.Generator) -> tuple[Tensor, float]:
        """Two images [3, H, W] of one type as one of that type (bytes are rounded), and λ in [0, 1]."""
        paste = self.cutmix > 0 and (self.mixup == 0 or rng.random() < 0.5)
        if paste:
            return self._paste(image, other, rng)
        share = float(rng.beta(self.mixup, self.mixup))
        mixed = share * image.float() + (1 - share) * other.float()
        return (mixed if image.is_floating_point() else mixed.round()).to(image.dtype), share

    def _paste(self, image: Tensor, other: Tensor, rng: np.random.Generator) -> tuple[Tensor, float]:
        height, width = image.shape[-2:]
        side = float(np.sqrt(1 - rng.beta(self.cutmix, self.cutmix)))
        top, bottom = _span(height, side, rng)
        left, right = _span(width, side, rng)
        mixed = torch.clone(image)
        mixed[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _span(length: int, share: float, rng: np.random.Generator) -> tuple[int, int]:
    """From and to of a span of `share` of a length around a random centre, cut at both ends."""
    centre, half = int(rng.integers(length)), round(length * share) / 2
    return max(0, int(centre - half)), min(length, int(centre + half))
