"""OpenAI's names and tensors: what they say about the architecture, and that nothing is lost on the way."""

import math

import pytest
import torch

from hf_vlr import UniCLModel, VLLTRModel
from hf_vlr.convert.openai_clip import (
    openai_clip_keys,
    plan_openai_clip,
    projection_dim,
    text_settings,
    vision_settings,
)
from hf_vlr.convert.plan import OPENAI_MEAN, OPENAI_STD, Options
from hf_vlr.errors import UserError

TEXT_WIDTH, VISION_WIDTH, DIM, LENGTH, VOCABULARY = 64, 128, 48, 12, 50


def blocks(prefix, width, count, inner):
    shapes = {}
    for index in range(count):
        block = f"{prefix}{index}."
        shapes |= {f"{block}attn.in_proj_weight": (3 * width, width), f"{block}attn.in_proj_bias": (3 * width,)}
        shapes |= {f"{block}attn.out_proj.weight": (width, width), f"{block}attn.out_proj.bias": (width,)}
        shapes |= {f"{block}ln_{n}.{part}": (width,) for n in (1, 2) for part in ("weight", "bias")}
        shapes |= {f"{block}mlp.c_fc.weight": (inner, width), f"{block}mlp.c_fc.bias": (inner,)}
        shapes |= {f"{block}mlp.c_proj.weight": (width, inner), f"{block}mlp.c_proj.bias": (width,)}
    return shapes


def norm(name, width):
    moments = {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**moments, f"{name}.num_batches_tracked": ()}


def vit_shapes(width=VISION_WIDTH, patch=8, side=4):
    shapes = {"class_embedding": (width,), "positional_embedding": (side * side + 1, width), "proj": (width, DIM)}
    shapes |= {"conv1.weight": (width, 3, patch, patch)}
    shapes |= {f"{name}.{part}": (width,) for name in ("ln_pre", "ln_post") for part in ("weight", "bias")}
    return {
        f"visual.{name}": shape for name, shape in (shapes | blocks("transformer.resblocks.", width, 3, 200)).items()
    }


def resnet_shapes(width=4, layers=(1, 2, 1, 1), side=2):
    shapes = {"conv1.weight": (width // 2, 3, 3, 3), "conv2.weight": (width // 2, width // 2, 3, 3)}
    shapes |= {"conv3.weight": (width, width // 2, 3, 3), **norm("bn1", width // 2), **norm("bn2", width // 2)}
    shapes |= norm("bn3", width)
    channels = width
    for stage, count in enumerate(layers):
        planes = width * 2**stage
        for index in range(count):
            block = f"layer{stage + 1}.{index}."
            shapes |= {f"{block}conv1.weight": (planes, channels, 1, 1), **norm(f"{block}bn1", planes)}
            shapes |= {f"{block}conv2.weight": (planes, planes, 3, 3), **norm(f"{block}bn2", planes)}
            shapes |= {f"{block}conv3.weight": (4 * planes, planes, 1, 1), **norm(f"{block}bn3", 4 * planes)}
            if index == 0:
                shapes |= {f"{block}downsample.0.weight": (4 * planes, channels, 1, 1)}
                shapes |= norm(f"{block}downsample.1", 4 * planes)
            channels = 4 * planes
    last = 32 * width
    shapes |= {f"attnpool.{name}_proj.weight": (last, last) for name in "qkv"}
    shapes |= {f"attnpool.{name}_proj.bias": (last,) for name in "qkv"}
    shapes |= {"attnpool.c_proj.weight": (DIM, last), "attnpool.c_proj.bias": (DIM,)}
    shapes |= {"attnpool.positional_embedding": (side * side + 1, last)}
    return {f"visual.{name}": shape for name, shape in shapes.items()}


def openai_state(vision, text_width=TEXT_WIDTH, **numbers):
    shapes = {"positional_embedding": (LENGTH, text_width), "text_projection": (text_width, DIM), "logit_scale": ()}
    shapes |= {**vision, **blocks("transformer.resblocks.", text_width, 2, 4 * text_width)}
    shapes |= {"token_embedding.weight": (VOCABULARY, text_width)}
    shapes |= {f"ln_final.{part}": (text_width,) for part in ("weight", "bias")}
    torch.manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        state[name] = torch.randn(shape).half().abs() if name.endswith("running_var") else torch.randn(shape).half()
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
    return state | {name: torch.tensor(value) for name, value in numbers.items()}


def converted(plan, dtype=torch.float32):
    ours, moves = plan.keys.forward(plan.state)
    assert sorted(move.source for move in moves) == sorted(plan.state)
    model, found = plan.model_class.from_pretrained(
        None, config=plan.config, state_dict={**ours, **plan.made}, dtype=dtype, output_loading_info=True
    )
    assert not any(found.values())
    return model.eval()


VISION = {"vit": vit_shapes(), "resnet": resnet_shapes(side=1), "resnet of two": resnet_shapes(side=2)}


@pytest.mark.parametrize("kind", [None, "unicl", "vlltr"])
@pytest.mark.parametrize("vision", VISION)
def test_a_state_dict_fits_the_model_and_comes_back_bit_for_bit(vision, kind):
    state = openai_state(VISION[vision])
    plan = plan_openai_clip(state, Options(model_type=kind))
    model = converted(plan)
    assert type(model) is (VLLTRModel if kind == "vlltr" else UniCLModel)
    back = openai_clip_keys(model.config).backward(model.half().state_dict())
    assert sorted(back) == sorted(state)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    assert sum(tensor.numel() for tensor in back.values()) == sum(tensor.numel() for tensor in state.values())


def test_a_vision_transformer_is_read_from_its_tensors():
    plan = plan_openai_clip(openai_state(vit_shapes()), Options())
    vision = plan.config.vision_config
    assert (vision.model_type, vision.hidden_act, vision.layer_norm_eps) == ("clip_vision_model", "quick_gelu", 1e-5)
    assert (vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers) == (VISION_WIDTH, 200, 3)
    assert (vision.num_attention_heads, vision.image_size, vision.patch_size) == (2, 32, 8)
    assert (plan.config.projection_dim, plan.config.visual_projection_bias) == (DIM, False)
    assert (plan.image.size, plan.image.resize, plan.image.squash) == (32, None, False)
    assert (plan.image.mean, plan.image.std, plan.tokenizer) == (OPENAI_MEAN, OPENAI_STD, None)


def test_a_text_tower_is_read_from_its_tensors():
    text = plan_openai_clip(openai_state(vit_shapes()), Options()).config.text_config
    assert (text.model_type, text.hidden_act, text.layer_norm_eps) == ("clip_text_model", "quick_gelu", 1e-5)
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (TEXT_WIDTH, 256, 2)
    assert (text.num_attention_heads, text.max_position_embeddings, text.vocab_size) == (1, LENGTH, VOCABULARY)
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (48, 49, 49)


def test_a_resnet_is_read_from_its_tensors():
    plan = plan_openai_clip(openai_state(resnet_shapes(8, (3, 2, 1, 2), side=3)), Options())
    vision = plan.config.vision_config
    assert (vision.model_type, vision.width, list(vision.layers)) == ("clip_resnet", 8, [3, 2, 1, 2])
    assert (vision.num_attention_heads, vision.image_size) == (4, 96)
    assert plan.config.visual_projection_bias is True
    assert plan.image.size == 96


@pytest.mark.parametrize("prefix", ["", "text."])
def test_a_tower_may_lie_below_a_prefix(prefix):
    state = openai_state(vit_shapes())
    below = {f"{prefix}{name}".replace(".resblocks", ".layers"): tensor for name, tensor in state.items()}
    found = text_settings(below, Options(), prefix, blocks="transformer.layers", hidden_act="gelu")
    assert found == text_settings(state, Options()) | {"hidden_act": "gelu"}
    inner = {name.replace("visual.", "image_encoder."): tensor for name, tensor in state.items()}
    assert vision_settings(inner, Options(), "image_encoder.") == vision_settings(state, Options())
    assert (
        projection_dim(inner, "image_encoder.") == projection_dim(state) == projection_dim({**state, "proj": 0}) == DIM
    )


def test_a_vision_tower_alone_tells_the_projection():
    for shapes in VISION.values():
        assert projection_dim({name: torch.empty(shape) for name, shape in shapes.items()}) == DIM


def test_heads_are_of_64_channels_unless_the_user_says_otherwise():
    state = openai_state(vit_shapes(width=96), text_width=48)
    with pytest.raises(UserError, match="width 96 does not tell its number of heads: give --vision-heads"):
        vision_settings(state, Options())
    with pytest.raises(UserError, match="width 48 does not tell its number of heads: give --text-heads"):
        text_settings(state, Options())
    for wrong in (0, 5, -2):
        with pytest.raises(UserError, match=f"--vision-heads {wrong} does not divide the width 96"):
            vision_settings(state, Options(vision_heads=wrong))
    plan = plan_openai_clip(state, Options(vision_heads=3, text_heads=4))
    assert plan.config.vision_config.num_attention_heads == 3
    assert plan.config.text_config.num_attention_heads == 4
    resnet = vision_settings(openai_state(resnet_shapes()), Options(vision_heads=8))
    assert resnet["num_attention_heads"] == 8


def test_the_numbers_of_an_archive_are_checked_and_dropped():
    numbers = {"input_resolution": 32, "context_length": LENGTH, "vocab_size": VOCABULARY}
    plan = plan_openai_clip(openai_state(vit_shapes(), **numbers), Options())
    assert set(plan.dropped) == set(numbers) and not set(plan.state) & set(numbers)
    converted(plan)
    for name, value in numbers.items():
        with pytest.raises(UserError, match=f"states {name} {value + 1}, its tensors say {value}"):
            plan_openai_clip(openai_state(vit_shapes(), **numbers | {name: value + 1}), Options())


def test_a_causal_mask_is_dropped_and_no_other():
    state = openai_state(vit_shapes())
    mask = torch.full((LENGTH, LENGTH), -math.inf).triu(1)
    name = "transformer.resblocks.0.attn_mask"
    plan = plan_openai_clip({**state, name: mask.half()}, Options())
    assert list(plan.dropped) == [name]
    for other in (torch.zeros_like(mask), mask.t(), mask[0], mask[:4]):
        with pytest.raises(UserError, match=f"{name} is not the causal mask"):
            plan_openai_clip({**state, name: other}, Options())


def test_counters_that_an_old_file_lacks_are_made():
    state = openai_state(resnet_shapes())
    old = {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    plan = plan_openai_clip(old, Options())
    assert len(plan.made) == len(state) - len(old) == 3 + 3 * 5 + 4
    assert converted(plan).vision_model.layer2[1].bn3.num_batches_tracked == 0
    assert not plan_openai_clip(state, Options()).made


@pytest.mark.parametrize(
    "lost",
    [
        "visual.conv1.weight",
        "visual.positional_embedding",
        "visual.transformer.resblocks.0.mlp.c_fc.weight",
        "text_projection",
        "positional_embedding",
        "token_embedding.weight",
    ],
)
def test_a_missing_tensor_is_named(lost):
    state = openai_state(vit_shapes())
    del state[lost]
    with pytest.raises(UserError, match=f"no CLIP checkpoint: it has no tensor {lost}"):
        plan_openai_clip(state, Options())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual.positional_embedding": torch.zeros(16, VISION_WIDTH)}, "15 positions .* no square grid"),
        ({"visual.conv1.weight": torch.zeros(8, 8)}, "visual.conv1.weight must have 4 axes"),
        ({"transformer.resblocks.5.ln_1.weight": torch.zeros(TEXT_WIDTH)}, "are not there without a gap"),
        ({"vocab_size": torch.zeros(2)}, "vocab_size is not there as one number"),
        ({"visual.conv1.weight": torch.zeros(0, 3, 8, 8)}, r"visual\.conv1\.weight is empty, .* \(0, 3, 8, 8\)"),
        ({"visual.conv1.weight": torch.zeros(VISION_WIDTH, 3, 0, 0)}, r"visual\.conv1\.weight is empty"),
        ({"token_embedding.weight": torch.zeros(0, TEXT_WIDTH)}, r"token_embedding\.weight is empty"),
        ({"token_embedding.weight": torch.zeros(VOCABULARY, 0)}, r"token_embedding\.weight is empty"),
        ({"token_embedding.weight": torch.zeros(1, TEXT_WIDTH)}, r"token_embedding\.weight must have a row for"),
        ({"positional_embedding": torch.zeros(0, TEXT_WIDTH)}, r"positional_embedding is empty"),
        ({"text_projection": torch.zeros(TEXT_WIDTH, 0)}, r"text_projection is empty"),
        ({"visual.proj": torch.zeros(VISION_WIDTH, 0)}, r"visual\.proj is empty"),
    ],
)
def test_tensors_that_make_no_clip_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        plan_openai_clip(openai_state(vit_shapes()) | change, Options())


def test_an_empty_resnet_is_named():
    state = openai_state(resnet_shapes()) | {"visual.conv3.weight": torch.zeros(0, 2, 3, 3)}
    with pytest.raises(UserError, match=r"visual\.conv3\.weight is empty"):
        plan_openai_clip(state, Options())


def test_the_prefix_of_data_parallel_training_is_taken_off():
    state = openai_state(vit_shapes(), context_length=LENGTH)
    plan = plan_openai_clip({f"module.{name}": tensor for name, tensor in state.items()}, Options())
    alone = plan_openai_clip(state, Options())
    assert plan.state.keys() == alone.state.keys() and plan.dropped == alone.dropped
    assert all(torch.equal(plan.state[name], tensor) for name, tensor in alone.state.items())
    assert plan.config.to_dict() == alone.config.to_dict()
    (note,) = plan.notes
    assert "module." in note and not alone.notes
    with pytest.raises(UserError, match=r"it has no tensor visual\.conv1\.weight"):
        plan_openai_clip({f"module.{name}": tensor for name, tensor in state.items()} | {"x": torch.ones(1)}, Options())


def test_a_temperature_in_a_vector_of_one():
    state = openai_state(vit_shapes())
    plan = plan_openai_clip(state | {"logit_scale": state["logit_scale"].reshape(1)}, Options())
    assert torch.equal(converted(plan).logit_scale, state["logit_scale"].float())


def test_a_move_tells_what_the_tensor_was():
    state = openai_state(vit_shapes())
    moves = plan_openai_clip(state, Options()).keys.forward(state)[1]
    assert {move.source: (move.dtype, move.shape) for move in moves} == {
        name: ("float16", tuple(tensor.shape)) for name, tensor in state.items()
    }


def test_a_tensor_without_a_place_is_named():
    plan = plan_openai_clip(openai_state(vit_shapes()) | {"visual.extra": torch.zeros(1)}, Options())
    with pytest.raises(UserError, match=r"1 tensors of the checkpoint have no place in this model: visual\.extra"):
        plan.keys.forward(plan.state)


def test_an_unknown_model_type_is_refused():
    with pytest.raises(UserError, match="model type clip is none of unicl, vlltr"):
        plan_openai_clip(openai_state(vit_shapes()), Options(model_type="clip"))


@pytest.mark.parametrize("vision", ["vit", "resnet"])
@torch.no_grad()
def test_the_originals_features_and_logits(vision):
    open_clip = pytest.importorskip("open_clip")
    layers = 2 if vision == "vit" else [1, 2, 1, 1]
    torch.manual_seed(1)
    theirs = open_clip.CLIP(
        embed_dim=DIM,
        vision_cfg={"layers": layers, "width": 128 if vision == "vit" else 8, "patch_size": 16, "image_size": 64},
        text_cfg={"context_length": LENGTH, "vocab_size": VOCABULARY, "width": 64, "heads": 1, "layers": 2},
        quick_gelu=True,
    ).eval()
    for name, tensor in theirs.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and name != "logit_scale":
            tensor.add_(torch.randn_like(tensor), alpha=0.05)
        tensor.copy_(tensor.half())  # OpenAI's archives hold 16 bits
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in theirs.state_dict().items()
    }
    numbers = {"input_resolution": 64, "context_length": LENGTH, "vocab_size": VOCABULARY}
    plan = plan_openai_clip(state | {name: torch.tensor(value) for name, value in numbers.items()}, Options())
    model = converted(plan)
    back = plan.keys.backward(plan.keys.forward(plan.state)[0])
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in state.items())
    assert sorted(back) == sorted(state)
    images = torch.randn(3, 3, 64, 64)
    texts = torch.randint(1, VOCABULARY - 2, (4, LENGTH))
    for row in range(4):
        texts[row, row + 3], texts[row, row + 4 :] = VOCABULARY - 1, 0
    expected = theirs.encode_image(images), theirs.encode_text(texts), theirs.get_logits(images, texts)[0]
    found = model.get_image_features(images), model.get_text_features(texts), model(texts, images).logits_per_image
    for ours, original in zip(found, expected):
        assert (ours - original).norm() <= 1e-5 * original.norm()
