"""Models, processors and inputs small enough to build anew in every test: width 32, two layers, images of 32 px.

The fixture `tiny` is this module.
"""

import torch
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

from hf_vlr import UniCLConfig, UniCLModel, VLLTRForImageClassification
from hf_vlr.modeling.modeling_unicl import UniCLPreTrainedModel

IMAGE_SIZE, WIDTH, POSITIONS = 32, 32, 40
_LAYERS = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_PATCHES = {**_LAYERS, "image_size": IMAGE_SIZE, "patch_size": 16}
_WINDOWS = {"image_size": IMAGE_SIZE, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "drop_path_rate": 0.0}

# the width of each tower's pooled feature stands beside its configuration
VISION_TOWERS: dict[str, tuple[int, dict]] = {
    "clip": (32, {"model_type": "clip_vision_model", **_PATCHES}),
    "vit": (32, {"model_type": "vit", **_PATCHES}),
    "swin": (32, {"model_type": "swin", **_WINDOWS, "num_heads": [2, 2], "window_size": 4}),
    "focalnet": (32, {"model_type": "focalnet", **_WINDOWS, "focal_levels": [1, 1], "focal_windows": [3, 3]}),
    "resnet": (24, {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 1]}),
    "convnext": (24, {"model_type": "convnext", "num_stages": 2, "hidden_sizes": [16, 24], "depths": [1, 1]}),
    "clip_resnet": (
        128,
        {
            "model_type": "clip_resnet",
            "layers": [1, 1, 1, 1],
            "width": 4,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE,
        },
    ),
    "timm_resnet18": (
        32,
        {
            "model_type": "timm_wrapper",
            "architecture": "resnet18",
            "model_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 32], "stem_width": 8},
        },
    ),
    "timm_resnet50_clip": (
        256,
        {
            "model_type": "timm_wrapper",
            "architecture": "resnet50_clip",
            "model_args": {"img_size": IMAGE_SIZE, "width_factor": 0.125, "stem_chs": 8},
        },
    ),
    # its last linear layer comes after the pooling, so its feature is wider than its last map
    "timm_mobilenetv3": (1024, {"model_type": "timm_wrapper", "architecture": "mobilenetv3_small_050"}),
    "timm_swin": (
        32,
        {
            "model_type": "timm_wrapper",
            "architecture": "swin_tiny_patch4_window7_224",
            "model_args": {
                "img_size": IMAGE_SIZE,
                "window_size": 4,
                "embed_dim": 16,
                "depths": [2, 1],
                "num_heads": [2, 2],
            },
        },
    ),
}
TEXT_TOWERS: dict[str, dict] = {
    "clip": {
        "model_type": "clip_text_model",
        **_LAYERS,
        "vocab_size": 514,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": 512,
        "eos_token_id": 513,
        "pad_token_id": 513,
    },
    "bert": {
        "model_type": "bert",
        **_LAYERS,
        "vocab_size": 514,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
    },
}
CLASS_NAMES = ("red fox", "arctic fox", "grey wolf", "lynx", "wildcat")
SENTENCES = (
    ("a fox with red fur", "it hunts at dusk", "Vulpes vulpes, 狐 🦊"),
    ("a white fox of the far north", "thick fur on its paws"),
    ("a grey wolf in a pack",),
    ("tufted ears", "a spotted coat, 4–7 kg", "it pounces"),
    (),
)


def config(kind: type = UniCLConfig, vision: str = "clip", text: str | None = "clip", **overrides) -> UniCLConfig:
    """A configuration of `kind` around two towers of the tables above; `text=None` leaves the text tower out."""
    settings = {"projection_dim": 16, "vision_config": dict(VISION_TOWERS[vision][1]), "has_text_model": bool(text)}
    if text:
        settings["text_config"] = dict(TEXT_TOWERS[text])
        settings["text_pooling"] = "pooler" if text == "clip" else "mean"
    return kind(**{**settings, **overrides})


def model(kind: type[UniCLPreTrainedModel] = UniCLModel, **options) -> UniCLPreTrainedModel:
    """A model of `kind` in evaluation mode whose weights and batch statistics all differ from their defaults."""
    if kind is VLLTRForImageClassification:
        names = dict(enumerate(CLASS_NAMES))
        options = {"id2label": names, "label2id": {name: i for i, name in names.items()}, "num_anchors": 3} | options
    torch.manual_seed(0)
    made = kind(config(kind.config_class, **options)).eval()
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and not name.endswith("logit_scale"):
                tensor.add_(torch.randn_like(tensor), alpha=0.2)
    return made


def recogniser(**options) -> VLLTRForImageClassification:
    """A recogniser of five classes with anchors (the last class has none), sentences and training counts."""
    made = model(VLLTRForImageClassification, **options)
    made.head.class_counts.copy_(torch.tensor([120, 60, 25, 7, 1]))
    if made.config.num_anchors:
        sentences = [[*row, "", "", ""][: made.config.num_anchors] for row in SENTENCES]
        mask = torch.tensor([[bool(text) for text in row] for row in sentences])
        features = torch.randn(made.head.anchors.shape) * mask[..., None]
        made.set_anchors(features, mask, sentences, {"split": "train", "images_per_class": 50})
    return made


def processor() -> CLIPProcessor:
    """CLIP's processor around a byte-level tokenizer without merges, of 514 tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return CLIPProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size), tokenizer=tokenizer
    )


def pixel_values(count: int = 3) -> torch.Tensor:
    """Images [count, 3, H, W], always the same."""
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))


def texts(count: int = 4, length: int = 12, eos: int = 513) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` [count, length] of framed texts, each shorter than the one before."""
    ids = torch.randint(3, 500, (count, length), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    ids[:, 0] = 512
    for row in range(count):
        ids[row, length - 1 - row :] = eos
        mask[row, length - row :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def picture(seed: int = 0, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """An RGB image of noise in large blocks."""
    blocks = torch.randint(0, 256, (6, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(blocks.numpy()).resize(size)
