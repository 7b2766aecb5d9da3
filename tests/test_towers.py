"""Any tower: its width is measured right, its states are pooled as asked, texts of any length fit."""

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING

from hf_vlr import UniCLModel
from hf_vlr.modeling.towers import (
    build_tower,
    cut_texts,
    encode_image,
    encode_text,
    encode_text_reference,
    end_of_text,
    end_token,
    lengths_to_end,
    packing,
    set_checkpointing,
    text_length,
    text_width,
    vision_width,
)

VISION = ["clip", "vit", "swin", "focalnet", "resnet", "convnext"]
TIMM = ["timm_resnet18", "timm_resnet50_clip", "timm_mobilenetv3", "timm_swin"]
TRANSFORMER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def build(model_type, **settings):
    torch.manual_seed(0)
    return build_tower(CONFIG_MAPPING[model_type](**settings)).eval()


@pytest.mark.parametrize("kind", VISION + TIMM)
def test_a_vision_tower_has_the_width_of_its_pooled_feature(tiny, kind):
    width = tiny.VISION_TOWERS[kind][0]
    tower = tiny.model(vision=kind).vision_model
    assert vision_width(tower) == width
    feature = encode_image(tower, tiny.pixel_values(), "pooler")
    assert feature.shape == (3, width)
    assert (feature[0] - feature[1]).norm() > 1e-4 * feature.norm()


@pytest.mark.parametrize(
    ("model_type", "settings", "image_size"),
    [
        ("regnet", {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 24], "depths": [1] * 4, "groups_width": 8}, 32),
        ("dinov2", {**TRANSFORMER, "image_size": 28, "patch_size": 14}, 28),
        ("siglip_vision_model", {**TRANSFORMER, "image_size": 32, "patch_size": 16}, 32),
        (
            "mobilevit",
            {
                "image_size": 32,
                "hidden_sizes": [16, 20, 24],
                "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 40],
                "num_attention_heads": 2,
            },
            32,
        ),
        ("efficientnet", {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320}, 32),
    ],
)
def test_other_architectures_are_measured_too(model_type, settings, image_size):
    tower = build(model_type, **settings)
    with torch.no_grad():
        feature = encode_image(tower, torch.randn(2, 3, image_size, image_size), "pooler")
    assert feature.shape == (2, vision_width(tower))


def test_a_tower_that_states_no_width_is_refused():
    with pytest.raises(ValueError, match=r"feature width of a 'mobilenet_v2' vision tower"):
        vision_width(build("mobilenet_v2", image_size=32, depth_multiplier=0.25))
    tower = build("bert", vocab_size=50, **TRANSFORMER)
    tower.config = CONFIG_MAPPING["resnet"]()
    with pytest.raises(ValueError, match=r"feature width of a 'resnet' text tower"):
        text_width(tower)


@pytest.mark.parametrize("kind", ["clip", "vit", "resnet", "timm_resnet18"])
def test_image_poolings(tiny, kind):
    tower, pixel_values = tiny.model(vision=kind).vision_model, tiny.pixel_values()
    states = tower(pixel_values).last_hidden_state
    if states.ndim == 4:
        assert encode_image(tower, pixel_values, "mean").allclose(states.mean((2, 3)), rtol=1e-5, atol=1e-4)
        assert encode_image(tower, pixel_values, "cls").equal(states[:, :, 0, 0])
    else:
        assert encode_image(tower, pixel_values, "mean").equal(states.mean(1))
        assert encode_image(tower, pixel_values, "cls").equal(states[:, 0])
    assert encode_image(tower, pixel_values, "pooler").equal(tower(pixel_values).pooler_output.flatten(1))


def test_the_mean_stands_in_for_a_missing_vision_pooler():
    tower = build("vit_mae", **TRANSFORMER, image_size=32, patch_size=16, mask_ratio=0.0)
    torch.manual_seed(0)
    feature = encode_image(tower, torch.randn(2, 3, 32, 32), "pooler")
    assert feature.shape == (2, 32) == (2, vision_width(tower))


@pytest.mark.parametrize("text", ["clip", "bert"])
def test_padding_changes_no_pooled_text(tiny, text):
    tower = tiny.model(text=text).text_model
    texts = tiny.texts()
    ids, mask = texts["input_ids"], texts["attention_mask"]
    for pooling in ("cls", "mean", "eot") if text == "clip" else ("cls", "mean", "pooler"):
        together = encode_text(tower, ids, mask, None, pooling)
        assert together.shape == (4, text_width(tower))
        for row in range(4):
            length = int(mask[row].sum())
            alone = encode_text(tower, ids[row : row + 1, :length], None, None, pooling)
            torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)


def test_text_poolings_by_their_definition(tiny):
    tower, texts = tiny.model(text="clip").text_model, tiny.texts()
    outputs = tower(**texts)
    states, mask = outputs.last_hidden_state, texts["attention_mask"]
    arguments = (tower, texts["input_ids"], mask, None)
    assert encode_text(*arguments, "cls").equal(states[:, 0])
    assert encode_text(*arguments, "pooler").equal(outputs.pooler_output)
    assert encode_text(*arguments, "eot").equal(torch.stack([s[m.sum() - 1] for s, m in zip(states, mask)]))
    assert encode_text(*arguments, "eot").equal(outputs.pooler_output)
    mean = torch.stack([state[m.bool()].mean(0) for state, m in zip(states, mask)])
    torch.testing.assert_close(encode_text(*arguments, "mean"), mean, rtol=1e-5, atol=1e-6)


def test_token_types_reach_a_tower_that_knows_them_and_no_other(tiny):
    texts = tiny.texts()
    types = torch.ones_like(texts["input_ids"])
    ids, mask = texts["input_ids"], texts["attention_mask"]
    bert = tiny.model(text="bert").text_model
    plain = encode_text(bert, ids, mask, None, "mean")
    assert encode_text(bert, ids, mask, torch.zeros_like(types), "mean").equal(plain)
    assert not encode_text(bert, ids, mask, types, "mean").allclose(plain)
    expected = bert(input_ids=ids, attention_mask=mask, token_type_ids=types).pooler_output
    assert encode_text(bert, ids, mask, types, "pooler").equal(expected)
    clip = tiny.model(text="clip").text_model
    assert encode_text(clip, ids, mask, types, "mean").equal(encode_text(clip, ids, mask, None, "mean"))


def test_a_text_tower_without_a_pooler_says_so():
    tower = build("distilbert", vocab_size=50, dim=32, hidden_dim=64, n_layers=1, n_heads=2)
    assert text_width(tower) == 32
    with pytest.raises(ValueError, match="'distilbert' text tower has no pooler; use text_pooling cls or mean"):
        encode_text(tower, torch.ones(1, 4, dtype=torch.int64), None, None, "pooler")
    with pytest.raises(ValueError, match="eot needs one eos_token_id"):
        encode_text(tower, torch.ones(1, 4, dtype=torch.int64), None, None, "eot")


@pytest.mark.parametrize(
    ("model_type", "settings", "expected"),
    [
        ("clip_text_model", {}, 77),
        ("bert", {}, 512),
        ("roberta", {"max_position_embeddings": 514}, 512),
        ("t5", {}, 512),
    ],
)
def test_how_long_a_text_may_be(model_type, settings, expected):
    assert text_length(CONFIG_MAPPING[model_type](**settings)) == expected


@pytest.mark.parametrize("model_type", ["roberta", "bert", "mpnet"])
def test_a_text_as_long_as_allowed_fits(model_type):
    tower = build(model_type, vocab_size=50, max_position_embeddings=20, pad_token_id=1, **TRANSFORMER)
    ids = torch.randint(3, 50, (2, 60))
    feature = encode_text(tower, ids, torch.ones_like(ids), torch.zeros_like(ids), "mean")
    assert feature.equal(encode_text(tower, ids[:, : text_length(tower.config)], None, None, "mean"))


@pytest.mark.parametrize("eos", [513, 2])
def test_over_long_texts_are_cut_and_keep_their_end(tiny, eos):
    """Also with the wrong `eos_token_id` 2 of OpenAI's published configs, whose pooler takes the highest id."""
    settings = {**tiny.TEXT_TOWERS["clip"], "eos_token_id": eos}
    tower = tiny.model(text_config=settings).text_model
    ids = torch.randint(3, 500, (3, 60))
    ids[:, 0] = 512
    ids[0, 59] = ids[1, 10:] = ids[2, 45:] = 513
    mask = torch.ones_like(ids)
    expected = ids[:, : tiny.POSITIONS].clone()
    expected[[0, 2], -1] = 513
    assert cut_texts(ids, tiny.POSITIONS, end_token(ids, tower.config)).equal(expected)
    assert end_of_text(expected, tower.config).tolist() == [39, 10, 39]
    for pooling in ("eot", "pooler"):
        short = encode_text(tower, expected, mask[:, : tiny.POSITIONS], None, pooling)
        assert encode_text(tower, ids, mask, None, pooling).equal(short)
        assert short.equal(tower(expected, mask[:, : tiny.POSITIONS]).pooler_output)


def test_texts_without_an_end_are_only_cut():
    ids = torch.arange(3, 23)[None]
    assert cut_texts(ids, 8, None).equal(ids[:, :8])
    assert cut_texts(ids, 8, torch.tensor([[99]])).equal(ids[:, :8])


def test_checkpointing_is_switched_where_there_is_any(tiny):
    model = tiny.model(vision="resnet")
    assert not set_checkpointing(model.vision_model, True)
    assert set_checkpointing(model.text_model, True, gradient_checkpointing_func=torch.utils.checkpoint.checkpoint)
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.text_model.modules())
    set_checkpointing(model.text_model, False)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@pytest.mark.parametrize("kind", ["clip", "resnet", "timm_resnet18"])
def test_pixels_are_cast_to_the_towers_number_format(tiny, kind):
    tower = tiny.model(UniCLModel, vision=kind).vision_model.to(torch.bfloat16)
    assert encode_image(tower, tiny.pixel_values(), "pooler").dtype == torch.bfloat16


def ragged(lengths: list[int], eos: int = 513, width: int = 40) -> dict[str, torch.Tensor]:
    """Framed texts of so many tokens, padded to `width` with zeros, which the mask hides."""
    ids = torch.randint(3, 500, (len(lengths), width), generator=torch.Generator().manual_seed(len(lengths)))
    places, ends = torch.arange(width), torch.tensor(lengths)[:, None]
    ids = torch.where(places == ends - 1, eos, ids)
    return {"input_ids": torch.where(places < ends, ids, 0), "attention_mask": (places < ends).long()}


def causal_tower(tiny, kind: str):
    """CLIP's tower, the same with the wrong `eos_token_id` of OpenAI's published configs, or MetaCLIP 2's."""
    settings = dict(tiny.TEXT_TOWERS["clip"])
    if kind == "metaclip_2":
        return build("metaclip_2_text_model", **{key: settings[key] for key in settings if key != "model_type"})
    return tiny.model(text_config={**settings, "eos_token_id": 2} if kind == "clip 2" else settings).text_model


def assert_same_as_reference(tower, texts, pooling: str = "pooler") -> None:
    """Values and the gradient of every weight, in float64."""
    tower = tower.double()
    arguments = (tower, texts["input_ids"], texts.get("attention_mask"), None, pooling)
    found, expected = encode_text(*arguments), encode_text_reference(*arguments)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    upstream = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(0))
    weights = list(tower.parameters())
    gradients = [torch.autograd.grad(value, weights, upstream) for value in (found, expected)]
    for (name, _), one, other in zip(tower.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    with torch.no_grad():
        torch.testing.assert_close(encode_text(*arguments), expected, rtol=1e-10, atol=1e-10)


def is_packed(tower, texts, pooling: str = "pooler") -> bool:
    """Whether texts share rows, told by the number of rows that the tower sees."""
    seen = []
    handle = tower.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    try:
        encode_text(tower, texts["input_ids"], texts.get("attention_mask"), None, pooling)
    finally:
        handle.remove()
    return "position_ids" in seen[0]


@pytest.mark.parametrize("kind", ["clip", "clip 2", "metaclip_2"])
@pytest.mark.parametrize("pooling", ["pooler", "eot"])
@pytest.mark.parametrize("masked", [True, False])
def test_texts_that_share_rows_are_encoded_as_alone(tiny, kind, pooling, masked):
    tower, texts = causal_tower(tiny, kind), ragged([7, 3, 12, 40, 9, 2, 25, 7, 39, 4])
    texts = texts if masked else {"input_ids": texts["input_ids"]}
    assert is_packed(tower, texts, pooling)
    assert_same_as_reference(tower, texts, pooling)


@pytest.mark.parametrize(
    "lengths",
    [[5], [1, 1, 1], [40, 5, 5, 5], [20] * 9, [13, 27] * 5, [2] * 300, [11] * 200],
    ids=lambda one: str(one[:3]),
)
def test_any_number_of_texts_of_any_length_shares_rows(tiny, lengths):
    """The last ones fill more rows than a CPU takes at a time without gradients."""
    tower, texts = causal_tower(tiny, "clip"), ragged(lengths)
    assert is_packed(tower, texts)
    assert_same_as_reference(tower, texts)


def test_what_has_no_end_is_its_first_token_as_ever(tiny):
    tower, texts = causal_tower(tiny, "clip"), ragged([4, 9, 6])
    texts["input_ids"][1, 8] = 7
    assert_same_as_reference(tower, texts)
    assert lengths_to_end(tower, **texts, pooling="pooler") == [4, 1, 6]


def test_no_text_sees_another_of_its_row(tiny):
    tower, texts = causal_tower(tiny, "clip"), ragged([9, 6, 8, 7, 5])
    arguments = (texts["attention_mask"], None, "pooler")
    before = encode_text(tower, texts["input_ids"], *arguments)
    texts["input_ids"][2, 1:7] = torch.arange(10, 16)
    after = encode_text(tower, texts["input_ids"], *arguments)
    assert is_packed(tower, texts)
    assert (after != before).any(dim=1).tolist() == [False, False, True, False, False]


def test_towers_for_which_it_would_not_be_exact_get_texts_as_they_are(tiny):
    texts, tower = ragged([7, 3, 12, 9]), causal_tower(tiny, "clip")
    ids, mask = texts["input_ids"], texts["attention_mask"]
    assert lengths_to_end(tower, ids, mask, "pooler") == [7, 3, 12, 9]
    for pooling in ("cls", "mean"):
        assert lengths_to_end(tower, ids, mask, pooling) is None
        assert not is_packed(tower, texts, pooling)
    siglip = build("siglip_text_model", vocab_size=514, max_position_embeddings=40, eos_token_id=513, **TRANSFORMER)
    for other, pooling in ((siglip, "pooler"), (tiny.model(text="bert").text_model, "mean")):
        assert lengths_to_end(other, ids, mask, pooling) is None
        assert not is_packed(other, texts, pooling)
    hole, left = mask.clone(), mask.flip(1)
    hole[0, 3] = 0
    for other in (hole, left):
        assert lengths_to_end(tower, ids, other, "pooler") is None
    # an attention that takes no mask of pairs, and a config that does not say how texts end
    tower.config._attn_implementation = "eager"
    assert lengths_to_end(tower, ids, mask, "pooler") is None
    tower.config._attn_implementation, tower.config.eos_token_id = "sdpa", None
    assert lengths_to_end(tower, ids, mask, "pooler") is None


def test_texts_without_padding_are_left_alone_to_the_bit(tiny):
    tower, texts = causal_tower(tiny, "clip"), ragged([40, 38, 39, 40])
    assert not is_packed(tower, texts)
    assert encode_text(tower, **texts, token_type_ids=None, pooling="eot").equal(tower(**texts).pooler_output)


def test_stand_ins_without_data_and_compiled_code_look_at_no_token(tiny):
    tower, texts = causal_tower(tiny, "clip"), ragged([7, 3, 12, 9])
    on_meta = causal_tower(tiny, "clip").to("meta")
    assert encode_text(on_meta, texts["input_ids"].to("meta"), None, None, "pooler").shape == (4, 32)
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(value) for name, value in texts.items()}
        assert lengths_to_end(tower, **fake, pooling="pooler") is None
    compiled = torch.compile(lengths_to_end, backend="eager", fullgraph=True)
    assert compiled(tower, texts["input_ids"], texts["attention_mask"], "pooler") is None


def test_shared_rows_spare_the_work_on_padding(tiny):
    tower, texts = causal_tower(tiny, "clip"), ragged([8, 9, 10, 12] * 16)

    def flops(encode) -> int:
        with FlopCounterMode(display=False) as counter:
            encode(tower, texts["input_ids"], texts["attention_mask"], None, "pooler")
        return counter.get_total_flops()

    # 39 tokens in rows of 40
    assert flops(encode_text) < 0.27 * flops(encode_text_reference)


@pytest.mark.parametrize("cast", ["weights", "autocast"])
def test_shared_rows_in_bfloat16(tiny, cast):
    tower, texts = causal_tower(tiny, "clip"), ragged([7, 3, 12, 9, 15, 4])
    tower = tower.bfloat16() if cast == "weights" else tower
    with torch.autocast("cpu", torch.bfloat16, enabled=cast == "autocast"), torch.no_grad():
        arguments = (tower, texts["input_ids"], texts["attention_mask"], None, "pooler")
        found, expected = encode_text(*arguments), encode_text_reference(*arguments)
    assert is_packed(tower, texts)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_checkpointed_activations_give_the_same_gradients_in_shared_rows(tiny):
    texts, gradients = ragged([7, 3, 12, 9]), []
    for checkpointed in (False, True):
        tower = causal_tower(tiny, "clip").double().train()
        set_checkpointing(
            tower,
            checkpointed,
            gradient_checkpointing_func=partial(torch.utils.checkpoint.checkpoint, use_reentrant=False),
        )
        encode_text(tower, **texts, token_type_ids=None, pooling="pooler").square().sum().backward()
        gradients.append([one.grad for one in tower.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_rows_are_filled_with_the_longest_that_fit():
    assert packing([3, 9, 4, 7, 1, 3], 10) == [[1, 4], [3, 0], [2, 5]]
    assert packing([5], 5) == [[0]]
    assert packing([2, 2, 2], 4) == [[0, 1], [2]]
    generator = torch.Generator().manual_seed(0)
    for count in (1, 17, 400):
        lengths = torch.randint(3, 19, (count,), generator=generator).tolist()
        rows = packing(lengths, 64)
        assert sorted(text for row in rows for text in row) == list(range(count))
        assert all(sum(lengths[text] for text in row) <= 64 for row in rows)
        # all rows but the last are nearly full
        assert len(rows) <= sum(lengths) / 61 + 1
