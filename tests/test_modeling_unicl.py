"""The dual encoder and the two configurations: strict, complete in JSON, CLIP's equal, exact in its loss."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn.functional import normalize
from transformers import BertConfig, CLIPConfig, CLIPModel, CLIPVisionConfig

from hf_vlr import UniCLConfig, UniCLModel, VLLTRConfig, VLLTRModel
from hf_vlr.modeling.contrastive import image_text_label_loss_reference

CONFIGS = [UniCLConfig, VLLTRConfig]


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("projection_dim", "512"),
        ("projection_dim", 8.0),
        ("logit_scale_init_value", "1"),
        ("text_pooling", 1),
        ("has_text_model", "no"),
        ("vision_config", "clip_vision_model"),
    ],
)
def test_a_field_of_the_wrong_type_is_refused(kind, field, value):
    with pytest.raises((StrictDataclassError, TypeError, ValueError), match=field):
        kind(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_anchors", "64"),
        ("fusion_weight", "0.2"),
        ("detach_norm", 1),
        ("visual_head", None),
        ("num_sentence_bytes", 1.5),
        ("anchor_selection", "train"),
    ],
)
def test_a_recognition_field_of_the_wrong_type_is_refused(field, value):
    with pytest.raises(StrictDataclassError, match=field):
        VLLTRConfig(**{field: value})


@pytest.mark.parametrize("field", ["text_pooling", "vision_pooling"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_an_unknown_pooling_is_refused(kind, field):
    with pytest.raises(StrictDataclassError, match=f"{field} 'max' is none of pooler"):
        kind(**{field: "max"})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("projection_dim", 0, "projection_dim must be positive, not 0"),
        ("fusion_weight", 1.01, r"fusion_weight must lie in \[0, 1\], not 1.01"),
        ("fusion_weight", -0.1, r"fusion_weight must lie in \[0, 1\], not -0.1"),
        ("fusion_weight", float("nan"), r"fusion_weight must lie in \[0, 1\], not nan"),
        ("num_anchors", -1, "must not be negative"),
        ("num_sentence_bytes", -1, "must not be negative"),
        ("visual_head", "deep", "visual_head 'deep' is none of mlp, linear"),
    ],
)
def test_a_value_out_of_range_is_refused(field, value, message):
    with pytest.raises(StrictDataclassError, match=message):
        VLLTRConfig(**{field: value})


def test_an_integer_is_a_number():
    config = VLLTRConfig(fusion_weight=1, logit_scale_init_value=1, initializer_factor=2)
    assert (config.fusion_weight, config.logit_scale_init_value) == (1, 1)


@pytest.mark.parametrize("tower", ["vision_config", "text_config"])
def test_an_unknown_tower_is_named(tower):
    with pytest.raises(ValueError, match="tower model_type 'clop' is not known"):
        UniCLConfig(**{tower: {"model_type": "clop"}})


def test_towers_are_given_as_objects_dictionaries_or_not_at_all():
    default = UniCLConfig()
    assert (default.vision_config.model_type, default.text_config.model_type) == (
        "clip_vision_model",
        "clip_text_model",
    )
    config = UniCLConfig(vision_config=CLIPVisionConfig(patch_size=8), text_config={"model_type": "bert"})
    assert config.vision_config.patch_size == 8
    assert isinstance(config.text_config, BertConfig)
    assert UniCLConfig(vision_config={"hidden_size": 96}).vision_config.hidden_size == 96
    assert UniCLConfig(has_text_model=False, text_config={"model_type": "bert"}).text_config is None


def test_a_timm_tower_needs_no_more_than_its_name():
    config = UniCLConfig(vision_config={"model_type": "timm_wrapper", "architecture": "resnet18"})
    assert config.vision_config.architecture == "resnet18"
    assert UniCLConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_a_configuration_does_not_tell_where_its_towers_came_from():
    tower = CLIPVisionConfig(name_or_path="some/towers/folder").to_dict()
    assert "towers/folder" not in UniCLConfig(vision_config=tower).to_json_string()


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("vision", ["clip", "swin", "resnet", "timm_resnet50_clip"])
@pytest.mark.parametrize("text", ["clip", "bert", None])
def test_json_keeps_everything(tiny, tmp_path, kind, vision, text):
    config = tiny.config(kind, vision, text, visual_projection_bias=True, id2label={0: "狐", 1: "b", 2: "c"})
    config.save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert kind.from_dict(json.loads(config.to_json_string())).id2label == {0: "狐", 1: "b", 2: "c"}


def test_the_configuration_of_many_classes_stays_small(tiny, tmp_path):
    names = {c: f"Strongylocentrotus purpuratus {c}" for c in range(8142)}
    label2id = {name: c for c, name in names.items()}
    config = tiny.config(VLLTRConfig, id2label=names, label2id=label2id, num_anchors=64)
    config.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").stat().st_size < 1_000_000
    assert VLLTRConfig.from_pretrained(tmp_path).id2label == names


@pytest.mark.parametrize("kind", CONFIGS)
def test_from_clip_takes_the_towers_of_clip(tiny, kind):
    clip = CLIPConfig(
        text_config=tiny.TEXT_TOWERS["clip"],
        vision_config=tiny.VISION_TOWERS["clip"][1],
        projection_dim=24,
        logit_scale_init_value=1.5,
    )
    config = kind.from_clip(clip, text_pooling="eot")
    assert (config.model_type, config.projection_dim, config.text_pooling) == (kind.model_type, 24, "eot")
    assert (config.text_config.vocab_size, config.vision_config.patch_size) == (514, 16)
    assert config.logit_scale_init_value == 1.5


def test_from_dual_encoder_keeps_the_shared_fields(tiny):
    source = tiny.config(UniCLConfig, "resnet", "bert", projection_dim=20, visual_projection_bias=True)
    config = VLLTRConfig.from_dual_encoder(source, num_labels=7, num_anchors=4)
    for name in ("projection_dim", "visual_projection_bias", "text_pooling", "logit_scale_init_value"):
        assert getattr(config, name) == getattr(source, name)
    assert config.vision_config.to_dict() == source.vision_config.to_dict()
    assert config.text_config.to_dict() == source.text_config.to_dict()
    assert (config.num_labels, config.num_anchors) == (7, 4)
    assert VLLTRConfig.from_dual_encoder(tiny.config(text=None)).has_text_model is False


@pytest.mark.parametrize("eos", [513, 2])
@pytest.mark.parametrize("kind", [UniCLModel, VLLTRModel])
def test_clips_weights_give_clips_logits(tiny, tmp_path, kind, eos):
    torch.manual_seed(3)
    text = {**tiny.TEXT_TOWERS["clip"], "eos_token_id": eos}
    clip = CLIPModel(
        CLIPConfig(text_config=text, vision_config=tiny.VISION_TOWERS["clip"][1], projection_dim=24)
    ).eval()
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        clip.logit_scale.fill_(3.0)
    clip.save_pretrained(tmp_path)
    config = kind.config_class.from_clip(CLIPConfig.from_pretrained(tmp_path))
    model, info = kind.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert not any(info.values())
    inputs = {**tiny.texts(), "pixel_values": tiny.pixel_values()}
    with torch.no_grad():
        ours, theirs = model(**inputs), clip(**inputs)
    for name in ("logits_per_image", "logits_per_text", "image_embeds", "text_embeds"):
        assert relative(ours[name], theirs[name]) <= 1e-6
    assert model.config.model_type == kind.config_class.model_type


def test_forward_returns_cosines_times_tau_and_no_loss(tiny):
    model, texts, pixel_values = tiny.model(), tiny.texts(4), tiny.pixel_values(3)
    output = model(**texts, pixel_values=pixel_values)
    image, text = model.get_image_features(pixel_values), model.get_text_features(**texts)
    assert output.loss is None
    assert output.logits_per_image.shape == (3, 4)
    assert output.logits_per_text.equal(output.logits_per_image.T)
    assert not image.norm(dim=-1).allclose(torch.ones(3), atol=0.05)
    cosines = normalize(image.double(), dim=-1) @ normalize(text.double(), dim=-1).T
    assert relative(output.logits_per_image.double(), model.logit_scale.double().exp() * cosines) <= 1e-6
    assert output.image_embeds.norm(dim=-1).allclose(torch.ones(3))


@pytest.mark.parametrize("indexed", [False, True])
def test_the_loss_and_its_gradients_are_the_references(tiny, indexed):
    model, pixel_values = tiny.model(), tiny.pixel_values(4)
    texts = tiny.texts(2 if indexed else 4)
    labels = torch.tensor([1, -1, 0, 1])
    index = torch.tensor([1, 0, 0, 1]) if indexed else None
    output = model(**texts, pixel_values=pixel_values, labels=labels, text_index=index, return_loss=True)
    names, parameters = zip(*model.named_parameters())
    gradients = torch.autograd.grad(output.loss, parameters, allow_unused=True)
    expected = image_text_label_loss_reference(
        model.get_image_features(pixel_values),
        model.get_text_features(**texts),
        labels,
        model.logit_scale.exp(),
        text_index=index,
    )
    assert relative(output.loss, expected) <= 1e-5
    compared = torch.autograd.grad(expected, parameters, allow_unused=True)
    for name, gradient, reference in zip(names, gradients, compared):
        if reference is None:
            assert gradient is None, name
        elif not name.endswith("k_proj.bias"):  # a shift of all keys changes no attention: zero but for rounding
            assert relative(gradient, reference) <= 1e-5, name


def test_without_labels_the_loss_is_clips(tiny):
    model, inputs = tiny.model(), {**tiny.texts(3), "pixel_values": tiny.pixel_values(3)}
    output = model(**inputs, return_loss=True)
    target = torch.arange(3)
    logits = output.logits_per_image
    clip = (torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)) / 2
    assert relative(output.loss, clip) <= 1e-5


def test_labels_alone_ask_for_no_loss(tiny):
    inputs = {**tiny.texts(3), "pixel_values": tiny.pixel_values(3)}
    assert tiny.model()(**inputs, labels=torch.zeros(3, dtype=torch.int64)).loss is None


@pytest.mark.parametrize("kind", [UniCLModel, VLLTRModel])
def test_a_model_without_a_text_tower_reads_images_alone(tiny, kind):
    model = tiny.model(kind, text=None)
    assert model.get_image_features(tiny.pixel_values()).shape == (3, 16)
    assert not any(name.startswith("text") for name, _ in model.named_parameters())
    for call in (
        lambda: model.get_text_features(**tiny.texts()),
        lambda: model(**tiny.texts(), pixel_values=tiny.pixel_values()),
    ):
        with pytest.raises(ValueError, match="no text tower"):
            call()


def test_fresh_weights_follow_their_configuration(tiny):
    config = tiny.config(projection_dim=512, logit_scale_init_value=1, initializer_factor=2.0)
    model = UniCLModel(config)
    assert model.logit_scale.item() == 1.0
    for projection in (model.visual_projection, model.text_projection):
        # 512 x 32 normal numbers: the deviation of their deviation is 0.55 %
        assert projection.weight.std().item() == pytest.approx(2 * 32**-0.5, rel=0.03)
    assert not tiny.model(visual_projection_bias=False).visual_projection.bias
    biased = UniCLModel(tiny.config(visual_projection_bias=True))
    assert biased.visual_projection.bias.equal(torch.zeros(16))


@pytest.mark.parametrize("vision", ["clip", "swin", "focalnet", "timm_resnet18"])
@pytest.mark.parametrize("text", ["clip", "bert"])
def test_gradient_checkpointing_changes_no_gradient(tiny, vision, text):
    model = tiny.model(vision=vision, text=text, **{} if text == "clip" else {"text_pooling": "cls"})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    inputs = {**tiny.texts(3), "pixel_values": tiny.pixel_values(3)}

    def gradients():
        model.zero_grad()
        model(**inputs, return_loss=True).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    # renamed in transformers 5.2x; the older releases know the older name alone
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    switches = [getattr(module, "gradient_checkpointing", getattr(module, "grad_checkpointing", False))
                for tower in model.towers() for module in tower.modules()]  # fmt: skip
    assert any(switches)
    again = gradients()
    assert plain.keys() == again.keys()
    assert all(plain[name].equal(again[name]) for name in plain)


def test_a_model_that_cannot_checkpoint_says_so(tiny):
    model = tiny.model(vision="resnet", text=None)
    with pytest.raises(ValueError, match="neither tower"):
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


@pytest.mark.parametrize("vision", ["clip", "swin", "resnet", "timm_resnet18"])
def test_bfloat16(tiny, tmp_path, vision):
    model = tiny.model(vision=vision)
    inputs = {**tiny.texts(), "pixel_values": tiny.pixel_values()}
    model.save_pretrained(tmp_path)
    half = UniCLModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.vision_model.dtype == half.text_model.dtype == torch.bfloat16
    assert half.logit_scale.equal(model.logit_scale)
    with torch.no_grad():
        expected, logits = model(**inputs).logits_per_image, half(**inputs).logits_per_image
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(**inputs).logits_per_image
    # cosines carry some 2^-8 of rounding per layer; a broken model is off by the scale itself
    scale = model.logit_scale.exp()
    assert (logits.float() - expected).abs().max() < 0.1 * scale
    assert (mixed.float() - expected).abs().max() < 0.1 * scale


@pytest.mark.slow
@pytest.mark.parametrize("vision", ["clip", "resnet"])
@pytest.mark.parametrize("text", ["clip", "bert"])
def test_the_whole_model_compiles_into_one_graph(tiny, vision, text):
    model = tiny.model(vision=vision, text=text)
    inputs = {**tiny.texts(), "pixel_values": tiny.pixel_values()}
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert relative(compiled(**inputs).logits_per_image, model(**inputs).logits_per_image) <= 1e-6


@pytest.mark.slow
def test_the_compiled_model_trains_alike(tiny):
    model = tiny.model()
    inputs = {**tiny.texts(3), "pixel_values": tiny.pixel_values(3), "labels": torch.tensor([0, 1, 0])}
    found = []
    for forward in (torch.compile(model), model):
        loss = forward(**inputs, return_loss=True).loss
        loss.backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        model.zero_grad()
        found.append((loss.detach(), gradients))
    for compiled, plain in zip(*found):
        assert relative(compiled, plain) <= 1e-5


def test_attention_implementations_agree(tiny, tmp_path):
    tiny.model().save_pretrained(tmp_path)
    inputs = {**tiny.texts(), "pixel_values": tiny.pixel_values()}
    outputs = []
    for name in ("sdpa", "eager"):
        model = UniCLModel.from_pretrained(tmp_path, attn_implementation=name)
        assert {tower.config._attn_implementation for tower in model.towers()} == {name}
        outputs.append(model(**inputs).logits_per_image)
    assert relative(*outputs) <= 1e-5
