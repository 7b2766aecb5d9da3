"""Patch dropout: a seeded random part of the patches in training, everything in evaluation, and nothing saved."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING

from hf_vlr import UniCLModel
from hf_vlr.errors import UserError
from hf_vlr.modeling.configuration_unicl import tower_config
from hf_vlr.modeling.towers import build_tower, encode_image
from hf_vlr.training.patch_dropout import apply_patch_dropout
from hf_vlr.training.tower_specs import SCRATCH_VISION

SIDE, PATCH = 32, 4
PATCHES = (SIDE // PATCH) ** 2
LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = {**LAYERS, "image_size": SIDE, "patch_size": PATCH}
TIMM = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 32, "depth": 2, "num_heads": 2}
# each tower with the number of tokens before its patches
TOWERS = {
    "scratch": ({**SCRATCH_VISION["vit"], "image_size": SIDE}, 1),
    "clip": ({"model_type": "clip_vision_model", **SMALL}, 1),
    "metaclip2": ({"model_type": "metaclip_2_vision_model", **SMALL}, 1),
    "siglip": ({"model_type": "siglip_vision_model", **SMALL}, 0),
    "vit": ({"model_type": "vit", **SMALL}, 1),
    "deit": ({"model_type": "deit", **SMALL}, 2),
    "dinov2": ({"model_type": "dinov2", **SMALL}, 1),
    "registers": ({"model_type": "dinov2_with_registers", **SMALL, "num_register_tokens": 3}, 4),
    "timm": ({"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224", "model_args": TIMM}, 1),
    "timm-registers": (
        {
            "model_type": "timm_wrapper",
            "architecture": "vit_tiny_patch16_224",
            "model_args": {**TIMM, "reg_tokens": 3, "class_token": False, "global_pool": "avg"},
        },
        3,
    ),
    "timm-rotary": ({"model_type": "timm_wrapper", "architecture": "eva02_tiny_patch14_224", "model_args": TIMM}, 1),
}
PICTURES = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def build(kind: str) -> torch.nn.Module:
    """A tower in training mode, its weights as no initialisation leaves them, without dropout of its own."""
    torch.manual_seed(0)
    tower = build_tower(tower_config(TOWERS[kind][0], "vit"))
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return tower.train()


def seen(tower: torch.nn.Module, seed: int = 0, pictures: torch.Tensor = PICTURES) -> torch.Tensor:
    """The last states [N, tokens, K] under a seed."""
    torch.manual_seed(seed)
    return tower(pictures).last_hidden_state


def patches_with_gradient(tower: torch.nn.Module, pictures: torch.Tensor = PICTURES) -> torch.Tensor:
    """Which patches [N, P] of the pictures the pooled feature depends on."""
    pictures = pictures.clone().requires_grad_()
    torch.manual_seed(1)
    encode_image(tower, pictures, "pooler").square().sum().backward()
    cells = pictures.grad.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    return cells.abs().sum(dim=(1, 4, 5)).flatten(1) > 0


@pytest.mark.parametrize("kind", TOWERS)
def test_training_sees_a_part_and_evaluation_everything(kind):
    tower, prefix = build(kind), TOWERS[kind][1]
    before = tower.eval()(PICTURES)
    apply_patch_dropout(tower, 0.75)
    after = tower(PICTURES)
    assert after.last_hidden_state.shape[1] == prefix + PATCHES
    assert after.last_hidden_state.equal(before.last_hidden_state)
    assert encode_image(tower, PICTURES, "pooler").equal(encode_image(tower, PICTURES, "pooler"))
    tower.train()
    assert seen(tower).shape[1] == prefix + PATCHES // 4
    assert encode_image(tower, PICTURES, "pooler").shape == encode_image(tower.eval(), PICTURES, "pooler").shape


@pytest.mark.parametrize("kind", TOWERS)
def test_the_same_seed_sees_the_same_patches(kind):
    tower = build(kind)
    apply_patch_dropout(tower, 0.5)
    assert seen(tower, 3).equal(seen(tower, 3))
    assert not seen(tower, 3).allclose(seen(tower, 4))
    with torch.no_grad():
        without_gradient = seen(tower, 3)
    assert without_gradient.equal(seen(tower, 3))


@pytest.mark.parametrize("kind", TOWERS)
def test_the_gradient_reaches_the_kept_patches_alone(kind):
    """Each image keeps a set of its own, also where two images are the same."""
    tower = build(kind)
    assert patches_with_gradient(tower).all()
    apply_patch_dropout(tower, 0.75)
    kept = patches_with_gradient(tower, PICTURES[:1].repeat(4, 1, 1, 1))
    assert kept.sum(dim=1).tolist() == [PATCHES // 4] * 4
    assert len({tuple(row) for row in kept.tolist()}) == 4


@pytest.mark.parametrize("kind", ["clip", "siglip", "registers"])
def test_what_is_kept_stands_where_it_stood(kind):
    """Kept tokens are those of the whole image, positions included, and the tokens before the patches come first."""
    tower, prefix = build(kind), TOWERS[kind][1]
    with torch.no_grad():
        whole = tower.embeddings(PICTURES)
        apply_patch_dropout(tower, 0.5)
        part = tower.embeddings(PICTURES)
    assert part[:, :prefix].equal(whole[:, :prefix])
    distances = torch.cdist(part[:, prefix:], whole[:, prefix:])
    index = distances.argmin(dim=2)
    assert all(len(set(row.tolist())) == PATCHES // 2 for row in index)
    assert part[:, prefix:].equal(whole[:, prefix:].gather(1, index[..., None].expand(-1, -1, part.shape[2])))


def test_every_patch_is_kept_equally_often():
    tower = build("clip")
    apply_patch_dropout(tower, 0.75)
    marked = torch.arange(PATCHES + 1.0).expand(2000, -1)[..., None]
    hook = next(iter(tower.embeddings._forward_hooks.values()))
    torch.manual_seed(0)
    kept = hook(tower.embeddings, (), marked).flatten(1)
    counts = kept.long().flatten().bincount(minlength=PATCHES + 1)
    assert counts[0] == 2000
    # 500 expected of each, with a deviation of 19
    assert (counts[1:] - 500).abs().max() < 5 * 19


@pytest.mark.parametrize("kind", ["clip", "vit", "siglip", "timm"])
@pytest.mark.parametrize("probability", [0.5, 0.75])
def test_the_work_falls_by_the_part_that_is_dropped(kind, probability):
    """The blocks' linear maps cost as many tokens as there are, their attention the square of it."""
    tower, prefix = build(kind), TOWERS[kind][1]
    blocks = {"clip": "encoder", "siglip": "encoder", "timm": "timm_model.blocks", "vit": "layers.0"}[kind]
    counts = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            tower(PICTURES)
        flops = counter.get_flop_counts()
        counts.append(sum(flops[f"{type(tower).__name__}.{blocks}"].values()))
        apply_patch_dropout(tower, probability)
    tokens = (prefix + (1 - probability) * PATCHES) / (prefix + PATCHES)
    assert tokens**2 < counts[1] / counts[0] <= tokens


@pytest.mark.parametrize("kind", ["clip", "timm", "timm-rotary"])
def test_removing_it_leaves_the_tower_as_it_was(kind):
    tower = build(kind)
    before, names = seen(tower), set(tower.state_dict())
    config = copy.deepcopy(tower.config.to_dict())
    handle = apply_patch_dropout(tower, 0.5)
    assert set(tower.state_dict()) == names
    assert tower.config.to_dict() == config
    assert seen(tower).shape != before.shape
    handle.remove()
    assert seen(tower).equal(before)


@pytest.mark.parametrize("vision", ["clip", "timm"])
def test_a_saved_model_knows_nothing_of_it(tiny, tmp_path, vision):
    model = tiny.model(UniCLModel, vision_config=dict(TOWERS[vision][0]))
    model.save_pretrained(tmp_path / "before")
    apply_patch_dropout(model.vision_model, 0.5)
    model.save_pretrained(tmp_path / "after")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()
    again = UniCLModel.from_pretrained(tmp_path / "after").train()
    pictures = tiny.pixel_values()
    assert again.get_image_features(pictures).equal(model.eval().get_image_features(pictures))


def test_a_copy_in_evaluation_mode_sees_everything(tiny):
    """As the frozen teacher of a distillation is."""
    model = tiny.model(vision="clip")
    pictures = tiny.pixel_values()
    expected = model.get_image_features(pictures)
    apply_patch_dropout(model.vision_model, 0.5)
    teacher = copy.deepcopy(model).eval()
    model.train()
    assert teacher.get_image_features(pictures).equal(expected)
    assert not model.get_image_features(pictures).allclose(expected)


def test_activation_checkpointing_repeats_the_draw(tiny):
    model = tiny.model(vision="clip").train()
    apply_patch_dropout(model.vision_model, 0.5)
    gradients = []
    for _ in range(2):
        torch.manual_seed(5)
        model.get_image_features(tiny.pixel_values()).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.vision_model.parameters() if p.grad is not None])
        model.zero_grad()
        model.gradient_checkpointing_enable()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_at_least_one_patch_is_kept():
    tower = build("clip")
    apply_patch_dropout(tower, 0.999)
    assert seen(tower).shape[1] == 2


@pytest.mark.parametrize("kind", ["resnet", "swin", "focalnet", "clip_resnet", "timm_resnet18", "timm_swin"])
def test_a_tower_without_patches_to_drop_is_refused(tiny, kind):
    tower = tiny.model(vision=kind).vision_model
    with pytest.raises(UserError, match=r"^model\.patch_dropout=0\.5: a \w+ vision tower has no patches that can be"):
        apply_patch_dropout(tower, 0.5)


@pytest.mark.parametrize("model_type", ["beit", "dinov3_vit"])
def test_a_transformer_whose_attention_knows_the_places_is_refused(model_type):
    tower = build_tower(CONFIG_MAPPING[model_type](**SMALL))
    with pytest.raises(UserError, match=f"a {model_type} vision tower has no patches that can be dropped"):
        apply_patch_dropout(tower, 0.5)
