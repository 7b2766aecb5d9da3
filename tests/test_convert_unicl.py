"""UniCL's checkpoints: what the original computed with them, their spellings, the way back, and what is refused."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.models.focalnet import FocalNet, checkpoint_filter_fn
from torch.nn.functional import normalize

from hf_vlr import UniCLConfig, UniCLModel
from hf_vlr.convert.archive import read_archive
from hf_vlr.convert.conversion import build
from hf_vlr.convert.plan import BICUBIC, IMAGENET_MEAN, IMAGENET_STD, Options
from hf_vlr.convert.swin_keys import relative_position_index, shift_mask
from hf_vlr.convert.unicl import plan_unicl, restore_unicl, unicl_keys
from hf_vlr.errors import UserError
from hf_vlr.modeling import image_text_label_loss

GOLDEN = Path(__file__).with_name("golden")
TOLERANCE = 1e-5
TABLE = "image_encoder.layers.0.blocks.1.attn.relative_position_bias_table"
MASK = "image_encoder.layers.0.blocks.1.attn_mask"
INDEX = "image_encoder.layers.1.blocks.0.attn.relative_position_index"
TEXT = {
    "model_type": "clip_text_model",
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"vocab_size": 64, "max_position_embeddings": 12, "bos_token_id": 62, "eos_token_id": 63, "pad_token_id": 63},
    **{"hidden_act": "quick_gelu", "layer_norm_eps": 1e-12},
}
PLAIN = {"use_conv_embed": False, "use_layerscale": False, "use_post_layernorm": False}
LARGE = {"use_conv_embed": True, "use_layerscale": True, "use_post_layernorm": True}
INNER = {"use_post_layernorm_in_modulation": True}
FOCALNETS = {
    "plain": (PLAIN, {}),
    "conv stem, layer scale, norm after": (LARGE, {}),
    "also a norm in the modulation": (LARGE | INNER, {"USE_POSTLN": True, "USE_POSTLN_IN_MODULATION": True}),
    "only a norm in the modulation": (PLAIN | INNER, {"USE_POSTLN": True}),
    "divided modulators": (PLAIN | {"normalize_modulator": True}, {"NORMALIZE_MODULATOR": True}),
    "layer scale, norm before": (LARGE | {"use_post_layernorm": False}, {"USE_POSTLN": False}),
}


def error(ours, other):
    """‖a − b‖ / ‖b‖ in float64."""
    ours, other = ours.detach().double().flatten(), other.detach().double().flatten()
    assert ours.shape == other.shape
    return ((ours - other).norm() / other.norm()).item()


def checkpoint():
    """State dict and configuration of the golden checkpoint."""
    archive = read_archive(GOLDEN / "unicl_swin_tiny.pth")
    return archive.weights(), archive.settings("config")


def converted(plan):
    """The model of a plan."""
    return build(plan, plan.keys.forward(plan.state)[0], torch.float32).eval()


def parity_rows():
    """(architecture, output, relative error) of everything that the original computed with the golden checkpoint."""
    golden = load_file(GOLDEN / "unicl_swin_tiny.io.safetensors")
    plan = plan_unicl(*checkpoint(), Options())
    model = converted(plan)
    image, text = model.get_image_features(golden["pixel_values"]), model.get_text_features(golden["input_ids"])
    labels, scale = golden["labels"], model.logit_scale.exp()
    found = {
        "image_features": image,
        "text_features": text,
        "image_embeds": normalize(image, dim=-1),
        "text_embeds": normalize(text, dim=-1),
        "logits_per_image": model(golden["input_ids"], golden["pixel_values"]).logits_per_image,
        "loss_i2t": image_text_label_loss(image, text, labels, scale, direction="image_to_text"),
        "loss_t2i": image_text_label_loss(image, text, labels, scale, direction="text_to_image"),
        "loss_unicl": image_text_label_loss(image, text, labels, scale),
    }
    found["loss_unicl"].backward()
    gradients = plan.keys.backward({name: parameter.grad for name, parameter in model.named_parameters()})
    found |= {name: gradients[name.removeprefix("grad.")] for name in golden if name.startswith("grad.")}
    assert found.keys() == golden.keys() - {"pixel_values", "input_ids", "labels"}
    return [("UniCL, Swin", name, error(tensor, golden[name])) for name, tensor in found.items()]


def focalnet(settings):
    """A UniCL model around a small FocalNet of two stages, all weights random."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "depths": [2, 1], "focal_levels": [2, 1], "focal_windows": [3, 5], "mlp_ratio": 3.0}
    vision = {"model_type": "focalnet", "image_size": 32, "hidden_sizes": [16, 16], **sizes, **settings}
    model = UniCLModel(UniCLConfig(vision_config=vision, text_config=TEXT, projection_dim=12)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def test_the_golden_checkpoint_computes_what_the_original_did():
    errors = {name: value for _, name, value in parity_rows()}
    assert len(errors) == 11
    assert max(errors.values()) <= TOLERANCE, errors


def test_the_way_back_is_bit_exact_with_all_buffers():
    state, settings = checkpoint()
    plan = plan_unicl(state, settings, Options())
    back = restore_unicl(converted(plan).state_dict(), plan.config)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name


def test_a_part_of_a_state_dict_goes_back_with_the_buffers_of_its_blocks():
    state, settings = checkpoint()
    plan = plan_unicl(state, settings, Options())
    ours, _ = plan.keys.forward({name: tensor.half() for name, tensor in plan.state.items() if "layers.0." in name})
    back = restore_unicl(ours, plan.config)
    assert back.keys() == {name for name in state if "layers.0." in name}
    assert back[MASK].dtype == torch.float16 and torch.equal(back[MASK].float(), state[MASK])
    assert not restore_unicl({"logit_scale": torch.ones(())}, plan.config).keys() - {"logit_scale"}


def test_the_plan_says_what_the_checkpoint_is():
    plan = plan_unicl(*checkpoint(), Options())
    vision, text = plan.config.vision_config, plan.config.text_config
    assert (vision.image_size, vision.patch_size, vision.window_size, vision.embed_dim) == (32, 4, 4, 16)
    assert (list(vision.depths), list(vision.num_heads), vision.qkv_bias, vision.mlp_ratio) == ([2, 2], [2, 4], True, 4)
    assert (text.hidden_size, text.num_attention_heads, text.num_hidden_layers) == (32, 2, 2)
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id, text.vocab_size) == (510, 511, 511, 512)
    assert (text.hidden_act, text.layer_norm_eps, text.max_position_embeddings) == ("quick_gelu", 1e-12, 20)
    assert (plan.config.projection_dim, plan.config.logit_scale_init_value) == (24, 1.0)
    assert (plan.image.size, plan.image.resize, plan.image.resample, plan.image.squash) == (32, 37, BICUBIC, False)
    assert (plan.image.mean, plan.image.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert set(plan.dropped.values()) == {"derived"} and len(plan.dropped) == 5
    assert plan.tokenizer is None and not plan.made


@pytest.mark.parametrize(
    ("configuration", "given", "size"),
    [
        ({"IMG_SIZE": 32}, 48, 48),
        ({"IMG_SIZE": 32}, None, 32),
        ({}, None, 32),
        ({"IMG_SIZE": "32"}, None, 32),
    ],
)
def test_the_image_size_is_the_users_the_configurations_or_that_of_the_masks(configuration, given, size):
    state, _ = checkpoint()
    plan = plan_unicl(state, {"MODEL": {"IMAGE_ENCODER": configuration}}, Options(image_size=given, text_heads=2))
    assert plan.config.vision_config.image_size == plan.image.size == size
    assert plan.image.resize == round(size * 256 / 224)


def test_without_masks_images_are_224():
    state, _ = checkpoint()
    weights = {name: tensor for name, tensor in state.items() if not name.endswith(("attn_mask", "position_index"))}
    plan = plan_unicl(weights, {}, Options(text_heads=2))
    assert (plan.image.size, plan.image.resize, plan.dropped) == (224, 256, {})
    assert plan.state.keys() == weights.keys()


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("text", ["text_encoder.", "text.", "lang_encoder."])
@pytest.mark.parametrize("image", ["image_encoder.", "visual."])
@pytest.mark.parametrize("projections", [("image", "text"), ("vision", "text"), ("image", "lang")])
def test_every_spelling_gives_the_same_model_and_its_own_names_back(wrapper, text, image, projections):
    state, settings = checkpoint()
    heads = {"image_projection": f"{projections[0]}_projection", "text_projection": f"{projections[1]}_projection"}

    def spelled(name):
        name = re.sub("^image_encoder[.]", image, re.sub("^text_encoder[.]", text, heads.get(name, name)))
        # the temperature alone stays where it was: parts may differ in their wrapper
        return name if name == "logit_scale" else wrapper + name

    renamed = {spelled(name): tensor for name, tensor in state.items()}
    usual, plan = plan_unicl(state, settings, Options()), plan_unicl(renamed, settings, Options())
    expected, (ours, _) = usual.keys.forward(usual.state)[0], plan.keys.forward(plan.state)
    assert ours.keys() == expected.keys() and all(torch.equal(ours[name], expected[name]) for name in ours)
    back = plan.keys.backward(ours)
    assert back.keys() == plan.state.keys() and all(torch.equal(back[name], renamed[name]) for name in back)
    assert plan.dropped.keys() == {spelled(name) for name in usual.dropped}


def without(name):
    return lambda state: state.pop(name)


def with_tensor(name, tensor):
    return lambda state: state.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("image_projection"), "none of image_projection, vision_projection, module.image_projection"),
        (without("text_encoder.positional_embedding"), "lacks text_encoder.positional_embedding"),
        (
            without(TABLE.replace("blocks.1", "blocks.0")),
            "lacks image_encoder.layers.0.blocks.0.attn.relative_position_bias_table",
        ),
        (without(TABLE), "1 missing: vision_model.encoder.layers.0.blocks.1.attention.relative_position_bias."),
        (without("image_encoder.norm.bias"), "1 missing: vision_model.layernorm.bias"),
        (without("text_encoder.resblocks.1.attn.in_proj_bias"), "3 missing: text_model.encoder.layers.1.self_attn."),
        (with_tensor("image_encoder.absolute_pos_embed", torch.zeros(1)), "image_encoder.absolute_pos_embed"),
        (with_tensor("image_encoder.layers.1.blocks.1.attn_mask", torch.zeros(1)), "layers.1.blocks.1.attn_mask"),
        (with_tensor("criterion.weight", torch.zeros(1)), "no place in this model: criterion.weight"),
        (with_tensor("image_encoder.layers.0.blocks.2.norm1.bias", torch.zeros(16)), "missing: vision_model.encoder"),
        (with_tensor("image_encoder.layers.0.blocks.3.norm1.bias", torch.zeros(16)), "1 left over: vision_model.enc"),
        (with_tensor("image_encoder.norm.bias", torch.zeros(31)), r"vision_model.layernorm.bias \(31,\) in place of"),
        (with_tensor("image_encoder.patch_embed.proj.weight", torch.zeros(3)), "proj.weight must have 4 axes"),
        (
            with_tensor("image_encoder.layers.0.blocks.1.attn.qkv.bias", torch.zeros(47)),
            r"bias of shape \(47,\) cannot",
        ),
        (with_tensor(TABLE.replace("blocks.1", "blocks.0"), torch.zeros(48, 2)), "has 48 rows, which is not"),
        (with_tensor(TABLE.replace("s.0.blocks.1", "s.1.blocks.0"), torch.zeros(9, 4)), r"have windows \[4, 2\]"),
        (with_tensor("text_projection", torch.zeros(32, 25)), "image_projection projects to 24, text_projection to 25"),
        (with_tensor("visual.norm.bias", torch.zeros(32)), "both image_encoder. and visual.; remove the one"),
        (with_tensor("module.logit_scale", torch.zeros(())), "both logit_scale and module.logit_scale"),
    ],
)
def test_a_tensor_that_is_missing_left_over_or_misshapen_is_named(change, message):
    state, settings = checkpoint()
    change(state)
    with pytest.raises(UserError, match=message):
        converted(plan_unicl(state, settings, Options()))


@pytest.mark.parametrize("tensor", ["attn.relative_position_bias_table", "modulation.f.weight"])
def test_an_image_tower_without_a_first_block_is_refused(tensor):
    state, settings = checkpoint()
    state = {name: tensor for name, tensor in state.items() if not name.startswith("image_encoder.layers.")}
    state[f"image_encoder.layers.1.blocks.0.{tensor}"] = torch.zeros(49, 2)
    with pytest.raises(UserError, match=r"the checkpoint lacks image_encoder\.layers\.0\.blocks\.0\."):
        plan_unicl(state, settings, Options())


def test_another_image_tower_is_refused():
    state, settings = checkpoint()
    state = {name: tensor for name, tensor in state.items() if not name.startswith("image_encoder.layers.")}
    with pytest.raises(UserError, match=r"the image tower at image_encoder\. is neither Swin nor FocalNet"):
        plan_unicl(state, settings, Options())


@pytest.mark.parametrize("name", [MASK, INDEX])
@pytest.mark.parametrize("change", ["value", "nan", "shape"])
def test_a_derived_buffer_that_differs_is_refused_by_name(name, change):
    state, settings = checkpoint()
    altered = state[name].clone()
    altered[-1, -1] += 1
    if change == "nan":
        altered = state[name] * torch.nan
    state[name] = altered[:, :-1] if change == "shape" else altered
    with pytest.raises(UserError, match=f"{name} differs from what images of 32 px"):
        plan_unicl(state, settings, Options())


def test_masks_for_another_image_size_than_the_configurations_are_refused():
    state, _ = checkpoint()
    with pytest.raises(UserError, match=f"{MASK} differs from what images of 64 px"):
        plan_unicl(state, {"MODEL": {"IMAGE_ENCODER": {"IMG_SIZE": 64}}}, Options(text_heads=2))


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({}, {}, r"number of text heads is unknown \(text width 32\); give it with --text-heads"),
        ({"TEXT_ENCODER": {"HEADS": 3}}, {}, r"32 cannot be cut into 3 heads \(its configuration\); give --text-heads"),
        ({"TEXT_ENCODER": {"HEADS": "2"}}, {}, "cannot be cut into '2' heads"),
        ({}, {"text_heads": 5}, r"cannot be cut into 5 heads \(as given\)"),
        ({"TEXT_ENCODER": {"HEADS": 2, "AUTOGRESSIVE": False}}, {}, "bidirectional"),
        ({"TEXT_ENCODER": {"HEADS": 2, "TOKENIZER": "bert-base-uncased"}}, {}, "tokens of bert-base-uncased"),
        ({"TEXT_ENCODER": {"HEADS": 2}}, {"image_size": 16}, "images of 16 px are too small.*needs 32"),
        ({"TEXT_ENCODER": {"HEADS": 2}}, {"vision_heads": 2}, "--vision-heads does not apply"),
        ({"TEXT_ENCODER": {"HEADS": 2}}, {"model_type": "vlltr"}, "not a vlltr one"),
    ],
)
def test_a_model_that_this_package_has_not_is_refused(settings, options, message):
    state, _ = checkpoint()
    with pytest.raises(UserError, match=message):
        plan_unicl(state, {"MODEL": settings}, Options(**options))


def test_a_bidirectional_tower_is_refused_where_later_configurations_say_so():
    state, _ = checkpoint()
    with pytest.raises(UserError, match="bidirectional"):
        plan_unicl(state, {"LANG_ENCODER": {"HEADS": 2, "AUTOGRESSIVE": False}}, Options())


@pytest.mark.parametrize(("option", "heads"), [(None, 2), (4, 4)])
def test_text_heads_are_the_users_or_the_configurations(option, heads):
    plan = plan_unicl(*checkpoint(), Options(text_heads=option))
    assert plan.config.text_config.num_attention_heads == heads
    assert plan.notes[0].startswith(f"{heads} text heads")


def test_a_classifier_is_dropped_and_said_to_be():
    state, settings = checkpoint()
    state |= {"image_encoder.head.weight": torch.zeros(5, 32), "image_encoder.head.bias": torch.zeros(5)}
    plan = plan_unicl(state, settings, Options())
    assert {name for name, why in plan.dropped.items() if why != "derived"} == state.keys() - checkpoint()[0].keys()
    assert converted(plan).config.projection_dim == 24


def test_stochastic_depth_is_the_configurations():
    state, _ = checkpoint()
    settings = {"MODEL": {"IMAGE_ENCODER": {"DROP_PATH_RATE": 0.5}}}
    assert plan_unicl(state, settings, Options(text_heads=2)).config.vision_config.drop_path_rate == 0.5


@pytest.mark.parametrize(("side", "window"), [(4, 2), (8, 4), (9, 3), (14, 7), (21, 7)])
def test_the_shift_mask_separates_what_the_cyclic_shift_brings_together(side, window):
    shift = window // 2
    grid = torch.arange(side * side).view(side, side).roll((-shift, -shift), (0, 1))
    mask = shift_mask(side, window)
    assert (mask.dtype, mask.shape) == (torch.float32, ((side // window) ** 2, window**2, window**2))
    windows = [part for row in grid.split(window) for part in row.split(window, dim=1)]
    for tokens, allowed in zip(windows, mask == 0):
        y, x = tokens.flatten() // side, tokens.flatten() % side
        # two tokens of a window were neighbours before the shift, unless they came from both ends of an axis
        near = ((y[:, None] - y).abs() < window) & ((x[:, None] - x).abs() < window)
        assert torch.equal(allowed, near)
    assert set(mask.unique().tolist()) == {-100.0, 0.0}


@pytest.mark.parametrize("window", [1, 2, 4, 7])
def test_the_relative_position_index_counts_offsets_row_by_row(window):
    index, span = relative_position_index(window), 2 * window - 1
    expected = [
        [
            (i // window - j // window + window - 1) * span + i % window - j % window + window - 1
            for j in range(window**2)
        ]
        for i in range(window**2)
    ]
    assert index.dtype == torch.int64 and index.tolist() == expected


def test_a_grid_that_windows_do_not_divide_has_no_way_back():
    plan = plan_unicl(*checkpoint(), Options(image_size=40))
    ours, _ = plan.keys.forward(plan.state)
    with pytest.raises(UserError, match="a grid of 10 cannot be cut into windows of 4"):
        restore_unicl(ours, plan.config)


@pytest.mark.parametrize("case", FOCALNETS)
def test_focalnet_has_microsofts_names_as_timm_reads_them(case):
    settings, said = FOCALNETS[case]
    ours = focalnet(settings)
    state = restore_unicl(ours.state_dict(), ours.config)
    sides = ("use_post_layernorm", "use_post_layernorm_in_modulation", "normalize_modulator")
    theirs = FocalNet(
        **{"num_classes": 0, "embed_dim": 8, "depths": (2, 1), "focal_levels": (2, 1), "focal_windows": (3, 5)},
        **{"mlp_ratio": 3.0, "use_overlap_down": settings["use_conv_embed"]},
        **{side.replace("layernorm", "norm"): settings.get(side, False) for side in sides},
        layerscale_value=1.0 if settings["use_layerscale"] else None,
    ).eval()
    prefix = "image_encoder."
    tower = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    theirs.load_state_dict(checkpoint_filter_fn(tower, theirs))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert error(ours.vision_model(pixels).pooler_output.flatten(1), theirs(pixels)) <= TOLERANCE
    plan = plan_unicl(state, {"MODEL": {"IMAGE_ENCODER": {"FOCAL": said, "IMG_SIZE": 32}}}, Options(text_heads=2))
    assert plan.config.vision_config.to_dict() == ours.config.vision_config.to_dict()
    assert plan.config.text_config.to_dict() == ours.config.text_config.to_dict()
    again = converted(plan).state_dict()
    assert again.keys() == ours.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in ours.state_dict().items())


def test_the_notes_tell_what_no_tensor_of_a_focalnet_does():
    model = focalnet(LARGE)
    plan = plan_unicl(restore_unicl(model.state_dict(), model.config), {}, Options(text_heads=2))
    assert plan.image.size == 224
    assert [note.split(" (")[0] for note in plan.notes] == [
        "FocalNet blocks normalise after modulation and MLP",
        "FocalNet modulators are not divided by their number of levels",
        "2 text heads",
        "the text tower is taken to be causal, as UniCL's are; the checkpoint does not say",
    ]


def test_kernels_that_do_not_grow_by_two_are_refused():
    model = focalnet(PLAIN)
    state = restore_unicl(model.state_dict(), model.config)
    state["image_encoder.layers.0.blocks.0.modulation.focal_layers.1.0.weight"] = torch.zeros(8, 1, 7, 7)
    with pytest.raises(UserError, match=r"have kernels \[3, 7\]"):
        plan_unicl(state, {}, Options(text_heads=2))


@pytest.mark.parametrize(("vision", "text", "message"), [("vit", "clip", "not for a vit"), ("swin", "bert", "CLIP's")])
def test_towers_without_names_in_the_format_are_refused(tiny, vision, text, message):
    with pytest.raises(UserError, match=message):
        unicl_keys(tiny.config(vision=vision, text=text))
