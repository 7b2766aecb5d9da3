"""A vision tower as a feature-pyramid backbone for any torchvision detector.

Letters: `N` images, `K` channels of a stage, `P` channels of the pyramid, `H`, `W` sides in pixels, `s` a stride.
"""

import inspect
import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from hf_vlr.errors import UserError

# a feature pyramid has four levels; a stem at half the image's resolution is not one of them
LEVELS = 4


def stage_maps(tower: nn.Module, pixel_values: Tensor) -> list[Tensor]:
    """The maps [N, K_s, H/s, W/s] of a tower's stages, finest first: the last state of each resolution.

    A hierarchical tower (ResNet, ConvNeXt, Swin, FocalNet, CLIP's ResNet, most of timm) has several, a plain
    transformer (ViT, CLIP, SigLIP, DINOv2) has one, with its positions interpolated to the images' size. Raises
    `UserError` for a tower whose states cannot be laid out over the image.
    """
    timm_model = getattr(tower, "timm_model", None)
    if timm_model is not None:
        return last_of_each_resolution(timm_model.forward_intermediates(pixel_values, intermediates_only=True))
    before_merging: list[Tensor] = []
    hooks = [stage.register_forward_pre_hook(_keep(before_merging)) for stage in _mergings(tower)]
    try:
        outputs = tower(pixel_values, **_arguments(tower))
    finally:
        for hook in hooks:
            hook.remove()
    states = getattr(outputs, "reshaped_hidden_states", None) or outputs.hidden_states
    if before_merging:
        # these towers merge patches at a stage's end: what enters the merging is the stage's output
        return last_of_each_resolution([*before_merging, states[-1]])
    if states and states[-1].ndim == 4:
        return last_of_each_resolution(list(states))
    return [_laid_out(tower, outputs.last_hidden_state, pixel_values)]


def last_of_each_resolution(maps: list[Tensor]) -> list[Tensor]:
    """Of maps [N, K, H, W] in the order they were computed, the last one of each size; at most the last `LEVELS`."""
    kept = {tuple(part.shape[-2:]): part for part in maps}
    return list(kept.values())[-LEVELS:]


class RescaledMap(nn.Module):
    """Four maps at strides s/4, s/2, s and 2s from the one map of a plain transformer (Li et al., ECCV 2022, §3).

    Two transposed convolutions with a GELU between, one, none, and a max-pooling.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.finest = nn.Sequential(
            nn.ConvTranspose2d(channels, channels, 2, stride=2), nn.GELU(), nn.ConvTranspose2d(channels, channels, 2, 2)
        )
        self.finer = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.coarser = nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, states: Tensor) -> list[Tensor]:
        return [self.finest(states), self.finer(states), states, self.coarser(states)]


class PyramidBackbone(nn.Module):
    """Images [N, 3, H, W], normalised, to maps [N, P, H/s, W/s] named "0", "1" …, and "pool", half as fine as the last.

    It has what torchvision's detectors ask of a backbone: `out_channels` = P. The feature pyramid is torchvision's
    (Lin et al., CVPR 2017). `strides` are those of the named maps. `side` in pixels is the images' own, for the timm
    towers that are built for one size and have to be told another. Raises `UserError` as `stage_maps` does.
    """

    def __init__(self, tower: nn.Module, out_channels: int = 256, side: int = 128) -> None:
        super().__init__()
        self.tower, self.out_channels = tower, out_channels
        sized = getattr(getattr(tower, "timm_model", None), "set_input_size", None)
        if sized is not None:
            sized(img_size=(side, side))
        with torch.no_grad():
            training = tower.training
            maps = stage_maps(tower.eval(), torch.zeros(1, 3, side, side))
            tower.train(training)
            self.rescale = RescaledMap(maps[0].shape[1]) if len(maps) == 1 else None
            maps = self.rescale(maps[0]) if self.rescale else maps
        self.strides = [round(side / part.shape[-1]) for part in maps]
        self.pyramid = FeaturePyramidNetwork(
            [part.shape[1] for part in maps], out_channels, extra_blocks=LastLevelMaxPool()
        )
        self.strides.append(2 * self.strides[-1])

    @property
    def levels(self) -> list[str]:
        """The names of the maps that boxes are pooled from."""
        return [str(number) for number in range(len(self.strides) - 1)]

    def forward(self, pixel_values: Tensor) -> OrderedDict[str, Tensor]:
        maps = stage_maps(self.tower, pixel_values)
        maps = self.rescale(maps[0]) if self.rescale else maps
        return self.pyramid(OrderedDict(zip(self.levels, maps, strict=True)))


def _mergings(tower: nn.Module) -> list[nn.Module]:
    """The patch mergings between the stages of a Swin-like tower; none for other towers."""
    encoder = getattr(tower, "encoder", None)
    layers = [*(getattr(encoder, "layers", None) or []), *(getattr(encoder, "stages", None) or [])]
    found = [getattr(layer, "downsample", None) for layer in layers]
    return [merging for merging in found if isinstance(merging, nn.Module)]


def _keep(maps: list[Tensor]):
    def hook(_: nn.Module, arguments: tuple) -> None:
        states = arguments[0]
        if states.ndim == 3:  # tokens [N, H·W, K], with (H, W) beside them
            height, width = arguments[1]
            states = states.transpose(1, 2).unflatten(2, (height, width))
        maps.append(states)

    return hook


def _arguments(tower: nn.Module) -> dict[str, bool]:
    """What makes a tower return all its states, of images of any size."""
    accepted = inspect.signature(tower.forward).parameters
    interpolated = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in accepted else {}
    return {"output_hidden_states": True} | interpolated | ({"pool": False} if hasattr(tower, "attnpool") else {})


def _laid_out(tower: nn.Module, states: Tensor, pixel_values: Tensor) -> Tensor:
    """Tokens [N, L, K] of a plain transformer as a map; class and register tokens, which come first, are left out."""
    patch = getattr(tower.config, "patch_size", None)
    if states.ndim != 3 or not isinstance(patch, int):
        raise UserError(f"a {tower.config.model_type!r} tower has no states that can be laid out over the image")
    height, width = (side // patch for side in pixel_values.shape[-2:])
    if states.shape[1] < height * width:
        raise UserError(
            f"a {tower.config.model_type!r} tower gives {states.shape[1]} states for {height}x{width} patches"
        )
    return states[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))


def finest_anchor(strides: list[int]) -> int:
    """The side in pixels of the smallest anchor box: four of the finest map's steps, a power of two."""
    return 2 ** round(math.log2(4 * strides[0]))
