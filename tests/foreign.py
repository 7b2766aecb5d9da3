"""Tiny models of transformers and timm with random weights, written as anybody's checkpoint would be.

The fixture `foreign` of the tests that need it is this module.
"""

import json
from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    ConvNextImageProcessor,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_vlr.training.tokenizer import train_tokenizer

SIDE, LENGTH = 32, 24
LAYERS = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**LAYERS, "image_size": SIDE, "patch_size": 8}
SMALL_DATA = [
    "data.options.classes=6",
    "data.options.unseen=2",
    "data.options.max_count=6",
    "data.options.imbalance=3",
    "data.options.size=40",
    "data.options.test=3",
    "data.options.validation=2",
]
SENTENCES = ["a photo of a red square", "a blue circle", "a green star with stripes", "plain yellow triangle"]


def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(SENTENCES, 300, LENGTH)


def words() -> dict:
    made = tokenizer()
    ids = {f"{name}_token_id": getattr(made, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return {**LAYERS, **ids, "vocab_size": len(made), "max_position_embeddings": LENGTH}


def labels(names: list[str]) -> dict:
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def save_clip(folder: Path) -> Path:
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=words(), vision_config=VISION, projection_dim=16)).save_pretrained(folder)
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    CLIPProcessor(CLIPImageProcessor(**size), tokenizer()).save_pretrained(folder)
    return folder


def save_siglip(folder: Path) -> Path:
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config={**words(), "projection_size": 32}, vision_config=VISION))
    model.logit_bias.data.fill_(-7.0)
    model.logit_scale.data.fill_(2.0)
    model.save_pretrained(folder)
    SiglipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_vit(folder: Path, names: list[str]) -> Path:
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**VISION, **labels(names))).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def save_resnet(folder: Path, names: list[str]) -> Path:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], **labels(names))
    ResNetForImageClassification(config).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": SIDE}).save_pretrained(folder)
    return folder


def save_timm(folder: Path, names: list[str]) -> Path:
    """A checkpoint as timm's repositories are: `pretrained_cfg` says the preprocessing."""
    torch.manual_seed(0)
    sizes = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 32], "stem_width": 8}
    config = TimmWrapperConfig(architecture="resnet18", model_args=sizes, **labels(names))
    TimmWrapperForImageClassification(config).save_pretrained(folder)
    path = folder / "config.json"
    stated = {"input_size": [3, SIDE, SIDE], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3], "crop_pct": 0.875}
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"pretrained_cfg": stated | {"interpolation": "bicubic"}})
    )
    return folder
