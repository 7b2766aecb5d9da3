"""Learned positions of a vision tower, fitted to another image size."""

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import PreTrainedConfig

from hf_vlr.errors import UserError

NAMES = ("vision_model.embeddings.position_embedding.weight", "vision_model.attnpool.positional_embedding")


def position_name(name: str) -> bool:
    """Whether a tensor holds the learned positions of a vision tower."""
    return name.removeprefix("vlltr.") in NAMES


def leading_positions(vision: PreTrainedConfig) -> int:
    """Positions before those of the grid: a class token's or a mean's; SigLIP's tower has none."""
    return 0 if vision.model_type == "siglip_vision_model" else 1


def resize_positions(positions: Tensor, side: int, leading: int) -> Tensor:
    """Positions [leading + s², K] of a square grid as [leading + side², K], by bicubic interpolation.

    The first `leading` rows (a class token, a mean) are kept. Raises `UserError` where the grid is not square.
    """
    first, grid = positions[:leading], positions[leading:]
    old = math.isqrt(len(grid))
    if old * old != len(grid):
        raise UserError(f"{len(grid)} positions are no square grid: --image-size cannot be changed")
    if old == side:
        return positions
    grid = grid.float().t().reshape(1, -1, old, old)
    grid = interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    grid = grid.flatten(2)[0].t().to(positions.dtype)
    return torch.cat([first, grid])
