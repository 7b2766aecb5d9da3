# SPDX-License-Identifier: MIT
"""CLIP's modified ResNet as a vision tower of any depth and width (Radford et al., ICML 2021, §2.4).

It differs from a ResNet in its stem of three convolutions, in average pooling before every convolution that would
stride, and in attention pooling. Parameter names are those of OpenAI's checkpoints below `visual.`; the last
projection of the attention pooling is the dual encoder's `visual_projection`, with a bias.

timm has the five published sizes; this one is built from what a checkpoint's tensors say.
Letters: `N` images, `H`, `W` their size, `K` width of the last stage, `P` = (H/32)·(W/32) positions.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, scaled_dot_product_attention
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel

from .configuration_clip_resnet import REDUCTION, CLIPResNetConfig

EXPANSION = 4


class Bottleneck(GradientCheckpointingLayer):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; a stride is an average pooling on both ways."""

    def __init__(self, channels: int, planes: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, planes * EXPANSION, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * EXPANSION)
        self.downsample = None
        if stride > 1 or channels != planes * EXPANSION:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, planes * EXPANSION, 1, bias=False), nn.BatchNorm2d(planes * EXPANSION)
            )

    def forward(self, states: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, 4·planes, H/stride, W/stride]."""
        shortcut = states if self.downsample is None else self.downsample(self.pool(states))
        states = relu(self.bn1(self.conv1(states)))
        states = relu(self.bn2(self.conv2(states)))
        states = self.bn3(self.conv3(self.pool(states)))
        return relu(states + shortcut)


class AttentionPool(nn.Module):
    """One query, the mean over positions, attends to itself and to all positions."""

    def __init__(self, config: CLIPResNetConfig):
        super().__init__()
        width, side = config.hidden_size, config.image_size // REDUCTION
        self.heads = config.num_attention_heads
        self.positional_embedding = nn.Parameter(torch.empty(side * side + 1, width))
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        """[N, K, H/32, W/32] -> [N, K]."""
        tokens = states.flatten(2).transpose(1, 2)
        if tokens.shape[1] + 1 != len(self.positional_embedding):
            raise ValueError(
                f"the attention pooling has {len(self.positional_embedding) - 1} positions, the image gives "
                f"{tokens.shape[1]}: resize images to the configured image_size"
            )
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.positional_embedding
        query, key, value = self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens)
        query, key, value = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (query, key, value))
        return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(1)


class CLIPResNetModel(PreTrainedModel):
    """Feature map [N, K, H/32, W/32] and attention-pooled feature [N, K] of images [N, 3, H, W]."""

    config: CLIPResNetConfig
    base_model_prefix = "clip_resnet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Bottleneck"]

    def __init__(self, config: CLIPResNetConfig):
        super().__init__(config)
        width = config.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.pool = nn.AvgPool2d(2)
        self.layer1 = stage(width, width, config.layers[0], 1)
        self.layer2 = stage(width * 4, width * 2, config.layers[1], 2)
        self.layer3 = stage(width * 8, width * 4, config.layers[2], 2)
        self.layer4 = stage(width * 16, width * 8, config.layers[3], 2)
        self.attnpool = AttentionPool(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Convolutions as in He et al., the attention pooling normal with deviation K^-½, last norms of blocks zero."""
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, Bottleneck):
            init.zeros_(module.bn3.weight)
        elif isinstance(module, AttentionPool):
            deviation = module.positional_embedding.shape[1] ** -0.5
            init.normal_(module.positional_embedding, std=deviation)
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                init.normal_(projection.weight, std=deviation)

    def forward(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """`last_hidden_state` [N, K, H/32, W/32] and `pooler_output` [N, K].

        With `output_hidden_states=True` also `hidden_states`, the four stages' maps at strides 4, 8, 16 and 32; and
        with `pool=False` no pooled feature, for images of other sizes than the attention pooling has positions for.
        """
        states = relu(self.bn1(self.conv1(pixel_values)))
        states = relu(self.bn2(self.conv2(states)))
        states = self.pool(relu(self.bn3(self.conv3(states))))
        stages = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            states = layer(states)
            stages.append(states)
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=self.attnpool(states) if kwargs.get("pool", True) else None,
            hidden_states=tuple(stages) if kwargs.get("output_hidden_states") else None,
        )


def stage(channels: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    """A stage of `blocks` bottlenecks, the first of which strides."""
    later = [Bottleneck(planes * EXPANSION, planes) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(channels, planes, stride), *later)


__all__ = ["CLIPResNetModel"]
