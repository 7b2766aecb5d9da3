"""Microsoft's FocalNet (Yang et al., NeurIPS 2022) beside transformers' `FocalNetModel`: names and sizes."""

from collections.abc import Mapping
from itertools import count
from typing import Any

from hf_vlr.convert.keymap import Rule, move
from hf_vlr.convert.swin_keys import Tower, depths, tower_rules
from hf_vlr.errors import UserError

# the overlapping stem: kernel 7, stride 4
STEM_KERNEL, STEM_STRIDE = 7, 4
FOCAL_FACTOR = 2


def focalnet_rules(source: str) -> list[Rule]:
    """FocalNet below `source` as `vision_model`."""
    block = [
        move("modulation.f.*", "modulation.projection_in.*"),
        move("modulation.h.*", "modulation.projection_context.*"),
        move("modulation.proj.*", "modulation.projection_out.*"),
        move("modulation.ln.*", "modulation.layernorm.*"),
        move("modulation.focal_layers.*.0.weight", "modulation.focal_layers.*.0.weight"),
        move("gamma_1", "gamma_1"),
        move("gamma_2", "gamma_2"),
        move("norm1.*", "norm1.*"),
        move("norm2.*", "norm2.*"),
    ]
    downsample = [
        move("layers.*.downsample.proj.*", "encoder.stages.*.downsample.projection.*"),
        move("layers.*.downsample.norm.*", "encoder.stages.*.downsample.norm.*"),
    ]
    return tower_rules(source, "encoder.stages.*.layers.*.", block, downsample)


def focalnet_settings(tower: Tower, said: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The `FocalNetConfig` settings but the image size, and notes on those that no tensor tells.

    `said` is what the checkpoint's configuration says about its FocalNet. Raises `UserError` for kernels that do not
    grow by 2 from level to level, which transformers' FocalNet does not have.
    """
    width, channels, kernel, _ = tower.sizes("patch_embed.proj.weight", 4)
    overlapping = kernel == STEM_KERNEL
    stages = depths(tower)
    kernels = [focal_kernels(tower, stage) for stage in range(len(stages))]
    inner_norm = "layers.0.blocks.0.modulation.ln.weight" in tower
    scaled = "layers.0.blocks.0.gamma_1" in tower
    post_norm, reason = norm_after_block(said, inner_norm, scaled)
    normalised = bool(said.get("NORMALIZE_MODULATOR", False))
    settings = {
        "model_type": "focalnet",
        "num_channels": channels,
        "patch_size": STEM_STRIDE if overlapping else kernel,
        "embed_dim": width,
        # widths after each stage's downsampling, which the last stage has not
        "hidden_sizes": [width * 2 ** min(stage + 1, len(stages) - 1) for stage in range(len(stages))],
        "depths": stages,
        "focal_levels": [len(sizes) for sizes in kernels],
        "focal_windows": [sizes[0] for sizes in kernels],
        "mlp_ratio": tower.sizes("layers.0.blocks.0.mlp.fc1.weight", 2)[0] / width,
        "use_conv_embed": overlapping,
        "use_layerscale": scaled,
        "use_post_layernorm": post_norm,
        "use_post_layernorm_in_modulation": inner_norm,
        "normalize_modulator": normalised,
    }
    origin = "its configuration" if "NORMALIZE_MODULATOR" in said else "the default; no tensor tells"
    return settings, [
        f"FocalNet blocks normalise {'after' if post_norm else 'before'} modulation and MLP ({reason})",
        f"FocalNet modulators are {'' if normalised else 'not '}divided by their number of levels ({origin})",
    ]


def focal_kernels(tower: Tower, stage: int) -> list[int]:
    """Kernel sizes of a stage's focal levels: w, w + 2, w + 4, …"""
    name = f"layers.{stage}.blocks.0.modulation.focal_layers.{{}}.0.weight".format
    levels = next(level for level in count(1) if name(level) not in tower)
    sizes = [tower.sizes(name(level), 4)[-1] for level in range(levels)]
    if sizes != [sizes[0] + FOCAL_FACTOR * level for level in range(levels)]:
        raise UserError(f"{tower.prefix}{name(0)} and on have kernels {sizes}; each must be {FOCAL_FACTOR} larger")
    return sizes


def norm_after_block(said: Mapping[str, Any], inner_norm: bool, scaled: bool) -> tuple[bool, str]:
    """Whether blocks normalise after modulation and MLP, and how that is known: no tensor tells.

    UniCL's FocalNet calls the norm inside the modulation USE_POSTLN and has no other; later versions tell the two
    apart. Without a configuration: all published models that normalise after have a layer scale, and no others do.
    """
    if "USE_POSTLN" not in said:
        return scaled, "as those with a layer scale do" if scaled else "as those without a layer scale do"
    inside_only = inner_norm and "USE_POSTLN_IN_MODULATION" not in said
    return bool(said["USE_POSTLN"]) and not inside_only, "its configuration"
