"""Microsoft's Swin Transformer (Liu et al., ICCV 2021) beside transformers' `SwinModel`: names, sizes, buffers."""

import math
import re
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from hf_vlr.convert.keymap import Rule, move, prefixed
from hf_vlr.errors import UserError

MASKED = -100.0
_BLOCK = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.")


class Tower(dict[str, Tensor]):
    """The tensors of one encoder by their names below `prefix`; errors give the full name.

    Looking up a name that is missing, or asking for the shape of a tensor with another number of axes, raises
    `UserError`.
    """

    def __init__(self, state: Mapping[str, Tensor], prefix: str) -> None:
        super().__init__({name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)})
        self.prefix = prefix

    def __missing__(self, name: str) -> Tensor:
        raise UserError(f"the checkpoint lacks {self.prefix}{name}, which says how large the model is")

    def sizes(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of a tensor of so many axes, none of them empty."""
        shape = tuple(self[name].shape)
        if len(shape) != axes or 0 in shape:
            raise UserError(f"{self.prefix}{name} must have {axes} axes, its shape is {shape}")
        return shape


def tower_rules(source: str, blocks: str, block: list[Rule], others: list[Rule]) -> list[Rule]:
    """Rules of a tower below `source` as `vision_model`, whose blocks transformers keeps at `encoder.<blocks>`.

    What is common to Swin and FocalNet, which was written after it, is here.
    """
    common = [
        move("patch_embed.proj.*", "embeddings.patch_embeddings.projection.*"),
        move("patch_embed.norm.*", "embeddings.norm.*"),
        move("norm.*", "layernorm.*"),
    ]
    block = [move("mlp.fc1.*", "mlp.fc1.*"), move("mlp.fc2.*", "mlp.fc2.*"), *block]
    return prefixed([*common, *others, *prefixed(block, "layers.*.blocks.*.", blocks)], source, "vision_model.")


def swin_rules(source: str) -> list[Rule]:
    """Swin below `source` as `vision_model`; the derived buffers have no rule."""
    table = "relative_position_bias_table"
    block = [
        Rule("attn.qkv.*", tuple(f"attention.{part}_proj.*" for part in "qkv")),
        move("attn.proj.*", "attention.o_proj.*"),
        move(f"attn.{table}", f"attention.relative_position_bias.{table}"),
        move("norm1.*", "layernorm_before.*"),
        move("norm2.*", "layernorm_after.*"),
    ]
    downsample = [
        move("layers.*.downsample.reduction.weight", "encoder.layers.*.downsample.reduction.weight"),
        move("layers.*.downsample.norm.*", "encoder.layers.*.downsample.norm.*"),
    ]
    return tower_rules(source, "encoder.layers.*.blocks.*.", block, downsample)


def depths(tower: Tower) -> list[int]:
    """Blocks of each stage, of which there is at least one; counted from 0 up to the first that is missing."""
    blocks = {match.groups() for name in tower if (match := _BLOCK.match(name))}
    found: list[int] = []
    while (stage := str(len(found)), "0") in blocks:
        found.append(next(number for number in count() if (stage, str(number)) not in blocks))
    return found or [0]


def swin_settings(tower: Tower) -> dict[str, Any]:
    """The `SwinConfig` settings that the tensors tell; all but the image size.

    A table of relative positions [(2w - 1)², heads] tells window w and heads of its stage. Raises `UserError` for
    stages of different windows, which transformers' Swin does not have.
    """
    width, channels, patch, _ = tower.sizes("patch_embed.proj.weight", 4)
    heads, windows = [], []
    for stage in range(len(depths(tower))):
        name = f"layers.{stage}.blocks.0.attn.relative_position_bias_table"
        rows, stage_heads = tower.sizes(name, 2)
        side = math.isqrt(rows)
        if side * side != rows or side % 2 == 0:
            raise UserError(f"{tower.prefix}{name} has {rows} rows, which is not (2w - 1)² for any window w")
        heads.append(stage_heads)
        windows.append((side + 1) // 2)
    if len(set(windows)) > 1:
        raise UserError(f"the stages of {tower.prefix}layers have windows {windows}; only one size is supported")
    return {
        "model_type": "swin",
        "num_channels": channels,
        "patch_size": patch,
        "embed_dim": width,
        "depths": depths(tower),
        "num_heads": heads,
        "window_size": windows[0],
        "mlp_ratio": tower.sizes("layers.0.blocks.0.mlp.fc1.weight", 2)[0] / width,
        "qkv_bias": "layers.0.blocks.0.attn.qkv.bias" in tower,
    }


def stored_image_size(tower: Tower, settings: Mapping[str, Any]) -> int | None:
    """The image size that the first stored shift mask [windows, w², w²] is for; None where none is stored."""
    name = "layers.0.blocks.1.attn_mask"
    if name not in tower:
        return None
    return math.isqrt(tower.sizes(name, 3)[0]) * settings["window_size"] * settings["patch_size"]


def smallest_image_size(settings: Mapping[str, Any]) -> int:
    """Pixels below which the grid of the last stage is smaller than a window, which changes the model."""
    return settings["window_size"] * settings["patch_size"] * 2 ** (len(settings["depths"]) - 1)


def derived_buffers(config: PreTrainedConfig | Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """The buffers of Microsoft's Swin that its sizes determine: (block below the tower, name, side of the grid).

    The side is 0 for a relative position index, which every block has. A shift mask belongs to every second block of
    a stage whose grid is larger than a window.
    """
    settings = config.to_dict() if isinstance(config, PreTrainedConfig) else config
    for stage, depth in enumerate(settings["depths"]):
        side = settings["image_size"] // settings["patch_size"] // 2**stage
        for block in range(depth):
            yield f"layers.{stage}.blocks.{block}.", "attn.relative_position_index", 0
            if block % 2 and side > settings["window_size"] > 1:
                yield f"layers.{stage}.blocks.{block}.", "attn_mask", side


def derived_buffer(side: int, window: int) -> Tensor:
    """A buffer named by `derived_buffers`."""
    return shift_mask(side, window) if side else relative_position_index(window)


def relative_position_index(window: int) -> Tensor:
    """Row [w², w²] int64 of the bias table for tokens i, j of a window: (Δy + w - 1) (2w - 1) + Δx + w - 1.

    Tokens are counted row by row; Δ = position of i - position of j (Liu et al., section 3.2, equation 4).
    """
    y, x = torch.arange(window).repeat_interleave(window), torch.arange(window).repeat(window)
    rows, columns = y[:, None] - y[None], x[:, None] - x[None]
    return (rows + window - 1) * (2 * window - 1) + columns + window - 1


def shift_mask(side: int, window: int) -> Tensor:
    """Float32 mask [(side / w)², w², w²] of the shifted windows of a grid: 0 where two tokens may attend, else -100.

    After the cyclic shift by ⌊w / 2⌋ (Liu et al., figure 4) the last window of an axis holds what came from both ends
    of the grid; only tokens of the same region attend to each other. Raises `UserError` where the windows do not fit.
    """
    if side % window:
        raise UserError(f"a grid of {side} cannot be cut into windows of {window}, so there is no shift mask for it")
    place = torch.arange(side)
    region = (place >= side - window).long() + (place >= side - window // 2).long()
    regions = region[:, None] * 3 + region[None]
    cut = regions.view(side // window, window, side // window, window).transpose(1, 2).reshape(-1, window * window)
    return torch.where(cut[:, :, None] == cut[:, None, :], 0.0, MASKED)


def check_derived(tower: Tower, settings: Mapping[str, Any]) -> list[str]:
    """Full names of the stored buffers that follow from the sizes; raises `UserError` for one that differs."""
    window = settings["window_size"]
    found = []
    for block, buffer, side in derived_buffers(settings):
        name = block + buffer
        if name not in tower:
            continue
        windows = [(side // window) ** 2] if side else []
        stored = tower[name]
        same = list(stored.shape) == [*windows, window**2, window**2]
        if not same or not bool((stored == derived_buffer(side, window)).all()):
            raise UserError(
                f"{tower.prefix}{name} differs from what images of {settings['image_size']} px, patches of "
                f"{settings['patch_size']} and windows of {window} determine: this is another model"
            )
        found.append(tower.prefix + name)
    return found
