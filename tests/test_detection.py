"""A tower as a feature pyramid, generated scenes, and a detector that learns from them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    FocalNetConfig,
    FocalNetModel,
    ResNetConfig,
    ResNetModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    TimmWrapperConfig,
    TimmWrapperModel,
)

from hf_vlr.detection.detector import build_detector
from hf_vlr.detection.finetuning import average_precision, compare_towers, finetune
from hf_vlr.detection.pyramid import PyramidBackbone, finest_anchor, last_of_each_resolution, stage_maps
from hf_vlr.detection.scenes import CATEGORIES, Scenes
from hf_vlr.detection.settings import DetectionSettings
from hf_vlr.errors import UserError
from hf_vlr.modeling.modeling_clip_resnet import CLIPResNetConfig, CLIPResNetModel

PLAIN = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
SWIN = {"image_size": 32, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}


def resnet() -> ResNetModel:
    torch.manual_seed(0)
    return ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1] * 4, layer_type="basic"))


TOWERS = {
    "resnet": (resnet, [8, 16, 16, 32]),
    "convnext": (lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16, 16, 32], depths=[1] * 4)), [8, 16, 16, 32]),
    "swin": (lambda: SwinModel(SwinConfig(**SWIN)), [16, 32]),
    "focalnet": (lambda: FocalNetModel(FocalNetConfig(image_size=32, embed_dim=16, depths=[1, 1])), [16, 32]),
    "clip-resnet": (
        lambda: CLIPResNetModel(CLIPResNetConfig(width=4, layers=(1, 1, 1, 1), image_size=64)),
        [16, 32, 64, 128],
    ),
    "timm": (lambda: TimmWrapperModel(TimmWrapperConfig(architecture="resnet10t")), [64, 128, 256, 512]),
    "clip": (lambda: CLIPVisionModel(CLIPVisionConfig(**PLAIN)), [32]),
    "siglip": (lambda: SiglipVisionModel(SiglipVisionConfig(**PLAIN)), [32]),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**PLAIN)), [32]),
    "timm-vit": (
        lambda: TimmWrapperModel(
            TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args={"depth": 1, "embed_dim": 48})
        ),
        [48],
    ),
}


@pytest.mark.parametrize("name", TOWERS)
def test_every_kind_of_tower_gives_a_pyramid(name: str) -> None:
    make, widths = TOWERS[name]
    backbone = PyramidBackbone(make().eval(), out_channels=8, side=64)
    images = torch.randn(2, 3, 64, 64)
    maps = stage_maps(backbone.tower, images)
    assert [part.shape[1] for part in maps] == widths
    levels = backbone(images)
    assert list(levels) == [*backbone.levels, "pool"]
    strides = backbone.strides
    assert [tuple(part.shape) for part in levels.values()] == [(2, 8, 64 // s, 64 // s) for s in strides]
    assert all(after == 2 * before for before, after in pairwise(strides))
    sum(part.square().mean() for part in levels.values()).backward()
    assert all(p.grad is not None for p in backbone.pyramid.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.tower.parameters())


def test_the_finest_map_of_swin_is_what_enters_the_first_merging() -> None:
    tower = SwinModel(SwinConfig(**SWIN)).eval()
    images = torch.randn(1, 3, 64, 64)
    blocks: list[torch.Tensor] = []
    tower.encoder.layers[0].blocks[-1].register_forward_hook(
        lambda module, arguments, output: blocks.append(output[0] if isinstance(output, tuple) else output)
    )
    finest = stage_maps(tower, images)[0]
    assert torch.equal(finest.flatten(2).transpose(1, 2), blocks[0])


def test_the_map_of_a_plain_transformer_keeps_the_places_of_its_patches() -> None:
    tower = CLIPVisionModel(CLIPVisionConfig(**PLAIN)).eval()
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        (states,) = stage_maps(tower, images)
        tokens = tower(images, interpolate_pos_encoding=True).last_hidden_state
    assert states.shape == (1, 32, 4, 6)
    assert torch.equal(states[0, :, 2, 5], tokens[0, 1 + 2 * 6 + 5])


def test_hooks_do_not_stay_on_the_tower() -> None:
    tower = SwinModel(SwinConfig(**SWIN)).eval()
    stage_maps(tower, torch.zeros(1, 3, 64, 64))
    assert not any(module._forward_pre_hooks for module in tower.modules())


def test_the_last_map_of_each_resolution_counts() -> None:
    sizes = [32, 16, 16, 8, 4, 2, 2]
    maps = [torch.full((1, 1, size, size), float(number)) for number, size in enumerate(sizes)]
    kept = last_of_each_resolution(maps)
    assert [int(part[0, 0, 0, 0]) for part in kept] == [2, 3, 4, 6]


def test_a_tower_without_places_is_refused() -> None:
    class Pooled(nn.Module):
        config = SwinConfig()

        def forward(self, pixel_values, output_hidden_states=False):
            states = torch.zeros(len(pixel_values), 3)
            return type("Output", (), {"hidden_states": (), "last_hidden_state": states})()

    with pytest.raises(UserError, match="no states that can be laid out over the image"):
        PyramidBackbone(Pooled())


@pytest.mark.parametrize(("strides", "anchor"), [([4, 8], 16), ([2, 4], 8), ([3, 6], 16)])
def test_the_smallest_anchor_follows_the_finest_map(strides: list[int], anchor: int) -> None:
    assert finest_anchor(strides) == anchor


def test_scenes_are_a_function_of_seed_split_and_index() -> None:
    scenes, again = Scenes("train", 5), Scenes("train", 500)
    for index in (4, 0):
        (image, target), (same, other) = scenes[index], again[index]
        assert torch.equal(image, same)
        assert all(torch.equal(target[key], other[key]) for key in target)
    assert not torch.equal(Scenes("test", 5)[0][0], scenes[0][0])
    assert not torch.equal(Scenes("train", 5, seed=1)[0][0], scenes[0][0])


def test_boxes_are_those_of_the_masks_and_hold_the_objects() -> None:
    seen, numbers = set(), set()
    for image, target in (Scenes("train", 60)[index] for index in range(60)):
        assert image.shape == (3, 96, 96) and image.min() >= 0 and image.max() <= 1
        numbers.add(len(target["labels"]))
        seen.update(target["labels"].tolist())
        assert (target["masks"].sum(0) <= 1).all(), "a pixel is seen of one object only"
        for box, mask in zip(target["boxes"].int(), target["masks"]):
            x1, y1, x2, y2 = box.tolist()
            assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0
            assert all(mask[edge].any() for edge in ((y1,), (y2 - 1,)))
            assert mask[:, x1].any() and mask[:, x2 - 1].any()
    assert numbers == {1, 2, 3, 4}
    assert seen == set(range(1, len(CATEGORIES)))


def test_a_scene_shows_its_objects() -> None:
    image, target = Scenes("train", 1, noise=0.0)[0]
    inside = target["masks"].bool().any(0)
    outside = image[:, ~inside].numpy()
    # the background is one colour and a gradient, so it lies on a plane, and objects do not
    rows, columns = np.nonzero(~inside.numpy())
    plane = np.stack([rows, columns, np.ones_like(rows)], 1).astype(np.float64)
    residual = outside[0] - plane @ np.linalg.lstsq(plane, outside[0], rcond=None)[0]
    assert np.median(np.abs(residual)) < 0.005


@pytest.mark.parametrize("word", ["steps", "batch_size", "scenes", "test_scenes", "size", "lr", "channels"])
def test_settings_that_train_nothing_are_refused(word: str) -> None:
    with pytest.raises(UserError, match=word):
        DetectionSettings(**{word: 0}).check()


def test_a_perfect_detector_has_average_precision_one() -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("pycocotools")
    scenes = Scenes("test", 6)
    answers = iter([scenes[index][1] for index in range(6)])

    def oracle(images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        targets = [next(answers) for _ in images]
        return [
            {
                "boxes": target["boxes"],
                "labels": target["labels"],
                "scores": torch.ones(len(target["labels"])),
                "masks": target["masks"][:, None].float(),
            }
            for target in targets
        ]

    assert average_precision(oracle, scenes, batch_size=4) == dict.fromkeys(
        ("box_ap", "box_ap50", "mask_ap", "mask_ap50"), pytest.approx(1.0)
    )


def test_the_detector_resizes_and_normalises_as_the_tower_expects() -> None:
    detector = build_detector(PyramidBackbone(resnet(), 8, 64), 3, 64, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]).eval()
    images, _ = detector.transform([torch.full((3, 64, 64), 0.4)])
    wanted = torch.tensor([0.3 / 0.5, 0.2 / 0.6, 0.1 / 0.7])
    assert images.tensors.shape == (1, 3, 64, 64)
    assert torch.allclose(images.tensors[0, :, 0, 0], wanted)


def test_training_twice_gives_the_same_detector() -> None:
    settings = DetectionSettings(steps=2, batch_size=2, scenes=4, size=64, channels=8)
    first, second = (finetune(resnet(), [0.5] * 3, [0.25] * 3, settings).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["backbone.tower.embedder.embedder.convolution.weight"], _first_weight())


def test_a_tower_with_the_rate_0_stays_as_it_is() -> None:
    settings = DetectionSettings(steps=3, batch_size=2, scenes=4, size=64, channels=8, tower_lr=0)
    tower, before = resnet(), resnet().state_dict()
    detector = finetune(tower, [0.5] * 3, [0.25] * 3, settings)
    after = tower.state_dict()
    assert any(key.endswith("running_mean") for key in after)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(parameter.grad is None for parameter in tower.parameters())
    fresh = finetune(resnet(), [0.5] * 3, [0.25] * 3, replace(settings, steps=1, lr=1e-12))
    weights, others = (dict(one.named_parameters()) for one in (detector, fresh))
    own = [key for key in weights if not key.startswith("backbone.tower.")]
    assert sum(not torch.equal(weights[key], others[key]) for key in own) > len(own) / 2


def test_a_tower_with_a_rate_learns_and_follows_its_batches() -> None:
    settings = DetectionSettings(steps=2, batch_size=2, scenes=4, size=64, channels=8, tower_lr=1e-5)
    tower, before = resnet(), resnet().state_dict()
    finetune(tower, [0.5] * 3, [0.25] * 3, settings)
    after = tower.state_dict()
    assert not any(torch.equal(after[key], before[key]) for key in before if "running" in key)
    assert not torch.equal(after["embedder.embedder.convolution.weight"], _first_weight())


def _first_weight() -> torch.Tensor:
    return resnet().state_dict()["embedder.embedder.convolution.weight"]


@pytest.mark.slow
def test_a_detector_learns_to_find_shapes() -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("pycocotools")
    towers = {"resnet": resnet}
    few = DetectionSettings(steps=1, test_scenes=24, channels=32)
    many = DetectionSettings(steps=250, test_scenes=24, channels=32)
    before, after = (compare_towers(towers, [0.5] * 3, [0.25] * 3, s)["rows"]["resnet"] for s in (few, many))
    assert before["box_ap50"] < 0.02
    assert after["box_ap50"] > 0.1
    assert after["mask_ap50"] > 0.05
