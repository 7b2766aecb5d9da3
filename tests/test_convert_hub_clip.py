"""Models of transformers become dual encoders that compute the same: CLIP, MetaCLIP 2, SigLIP."""

import json
import os

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    pipeline,
)

from hf_vlr import UniCLModel, VLLTRModel
from hf_vlr.convert.hub_clip import plan_hub_clip
from hf_vlr.convert.plan import BICUBIC, BILINEAR, OPENAI_MEAN, Options
from hf_vlr.errors import UserError
from hf_vlr.modeling import UniCLConfig
from hf_vlr.modeling.towers import build_tower, encode_text, text_width

LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**LAYERS, "image_size": 32, "patch_size": 16}
LENGTH, END, SIDE = 16, 1, 32
WORDS = ("<pad>", "</s>", "<s>", "<unk>", "a", "photo", "of", "red", "blue", "square", "circle", "this", "is", ".")
FAMILIES = {
    "clip": (CLIPConfig, CLIPModel, {"bos_token_id": 58, "eos_token_id": 59, "pad_token_id": 59}),
    "clip, old id": (CLIPConfig, CLIPModel, {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}),
    "metaclip_2": (MetaClip2Config, MetaClip2Model, {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}),
    "siglip": (SiglipConfig, SiglipModel, {"bos_token_id": None, "eos_token_id": END, "pad_token_id": 1}),
}


def source(family, **text):
    config_class, model_class, ids = FAMILIES[family]
    text = {**LAYERS, "vocab_size": 60, "max_position_embeddings": LENGTH, **ids, **text}
    shared = {} if family == "siglip" else {"projection_dim": 24}
    torch.manual_seed(0)
    model = model_class(config_class(text_config=text, vision_config=VISION, **shared)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        model.logit_scale.fill_(2.0)
        if family == "siglip":
            model.logit_bias.fill_(-7.3)
    return model


def converted(plan):
    ours, moves = plan.keys.forward(plan.state)
    model, found = plan.model_class.from_pretrained(
        None, config=plan.config, state_dict={**ours, **plan.made}, output_loading_info=True
    )
    assert not any(found.values())
    assert len(moves) == len(plan.state)
    assert all(torch.equal(tensor, plan.state[name]) for name, tensor in plan.keys.backward(ours).items())
    return model.eval()


def texts(end, count=4, length=LENGTH, padding=1):
    ids = torch.randint(4, 57, (count, length), generator=torch.Generator().manual_seed(1))
    for row in range(count):
        ids[row, length - 3 - row] = end
        ids[row, length - 2 - row :] = padding
    return ids


def pixels(count=3):
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def tokenizer(padding="</s>", words=WORDS):
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", words.index("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", pad_token=padding, unk_token="<unk>", model_max_length=LENGTH
    )


def close(ours, theirs):
    return (ours - theirs).norm() <= 1e-6 * theirs.norm()


@pytest.mark.parametrize("kind", [None, "vlltr"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_features_and_logits_are_the_sources(tmp_path, family, kind):
    theirs = source(family)
    theirs.save_pretrained(tmp_path)
    plan = plan_hub_clip(str(tmp_path), Options(model_type=kind))
    model = converted(plan)
    assert type(model) is (VLLTRModel if kind else UniCLModel)
    assert plan.tokenizer == str(tmp_path) and not plan.dropped
    end = {"clip": 59, "clip, old id": 59}.get(family, FAMILIES[family][2]["eos_token_id"])
    inputs = {"input_ids": texts(end), "pixel_values": pixels()}
    expected, found = theirs(**inputs), model(**inputs)
    for name in ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text"):
        assert close(found[name], expected[name]), name
    images = theirs.get_image_features(pixels()).pooler_output
    assert close(model.get_image_features(pixels()), images)
    assert close(model.get_text_features(inputs["input_ids"]), theirs.get_text_features(texts(end)).pooler_output)


@torch.no_grad()
def test_a_saved_siglip_comes_back_with_its_bias(tmp_path):
    source("siglip").save_pretrained(tmp_path / "source")
    model = converted(plan_hub_clip(str(tmp_path / "source"), Options()))
    model.save_pretrained(tmp_path / "ours")
    again = AutoModel.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16)
    assert type(again) is UniCLModel and again.config.logit_bias_init_value == -10
    assert again.logit_bias.dtype == again.logit_scale.dtype == torch.float32
    assert again.logit_bias.item() == pytest.approx(-7.3) and again.logit_bias.shape == ()
    assert load_file(tmp_path / "ours/model.safetensors")["logit_bias"].dtype == torch.float32
    exact = AutoModel.from_pretrained(tmp_path / "ours").eval()
    assert [name for name, one in exact.named_parameters() if not one.requires_grad] == ["logit_bias"]
    inputs = {"input_ids": texts(END), "pixel_values": pixels()}
    assert torch.equal(exact(**inputs).logits_per_image, model(**inputs).logits_per_image)


@torch.no_grad()
def test_siglips_texts_are_padded_to_their_full_length(tmp_path):
    theirs = source("siglip")
    theirs.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = converted(plan_hub_clip(str(tmp_path), Options()))
    sentences = ["a red square", "a photo of a blue circle"]
    full = tokenizer()(sentences, padding="max_length", max_length=LENGTH, return_tensors="pt")
    short = tokenizer()(sentences, padding=True, return_tensors="pt")
    assert full["input_ids"].shape == (2, LENGTH) and short["input_ids"].shape == (2, 7)
    expected = theirs.get_text_features(full["input_ids"]).pooler_output
    assert close(model.get_text_features(**full), expected)
    assert torch.equal(model.get_text_features(**short), model.get_text_features(**full))
    alone = model.get_text_features(tokenizer()(sentences[:1], return_tensors="pt")["input_ids"])
    assert close(alone, expected[:1])


@torch.no_grad()
def test_a_siglip_text_that_is_too_long_keeps_its_end(tmp_path):
    theirs = source("siglip")
    theirs.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = converted(plan_hub_clip(str(tmp_path), Options()))
    sentence = "a red circle of blue square photo " * 4
    whole = tokenizer()([sentence, "a circle"], padding=True, return_tensors="pt")
    cut = tokenizer()([sentence, "a circle"], padding="max_length", truncation=True, return_tensors="pt")
    assert whole["input_ids"].shape[1] > LENGTH == cut["input_ids"].shape[1]
    expected = theirs.get_text_features(cut["input_ids"]).pooler_output
    assert close(model.get_text_features(**whole), expected)


@pytest.mark.parametrize(("padding", "expected"), [("</s>", 1), ("<pad>", 0)])
def test_siglips_padding_is_the_tokenizers(tmp_path, padding, expected):
    source("siglip").save_pretrained(tmp_path)
    assert "no tokenizer" in plan_hub_clip(str(tmp_path), Options()).notes[1]
    tokenizer(padding).save_pretrained(tmp_path)
    plan = plan_hub_clip(str(tmp_path), Options())
    assert plan.config.text_config.pad_token_id == expected
    assert plan.config.text_config.eos_token_id == END
    assert not any("tokenizer" in note for note in plan.notes)


@torch.no_grad()
def test_a_siglip_text_head_may_widen(tmp_path):
    theirs = source("siglip", hidden_size=16, projection_size=32)
    theirs.save_pretrained(tmp_path)
    model = converted(plan_hub_clip(str(tmp_path), Options()))
    assert model.config.projection_dim == 32
    expected = theirs.get_text_features(texts(END)).pooler_output
    assert close(model.get_text_features(texts(END)), expected)
    assert text_width(model.text_model) == 32 and text_width(model.text_model, "mean") == 16
    mean = encode_text(model.text_model, texts(END)[:, :9], texts(END)[:, :9] != 1, None, "mean")
    assert mean.shape == (4, 16)


def test_siglip_towers_that_do_not_meet_are_refused(tmp_path):
    source("siglip", projection_size=16).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="width 32, its texts 16"):
        plan_hub_clip(str(tmp_path), Options())


def test_no_loss_trains_the_bias():
    config = UniCLConfig(
        vision_config={"model_type": "siglip_vision_model", **VISION},
        text_config={"model_type": "siglip_text_model", **LAYERS, "vocab_size": 60, "max_position_embeddings": LENGTH},
        projection_dim=32,
        logit_bias_init_value=-10,
    )
    model = UniCLModel(config)
    assert model.logit_bias.item() == -10 and not model.logit_bias.requires_grad
    assert UniCLModel(UniCLConfig.from_dual_encoder(config)).logit_bias.item() == -10
    output = model(texts(END, 3), pixels(), return_loss=True)
    assert (output.logits_per_image < -10 + model.logit_scale.exp()).all()
    output.loss.backward()
    untouched = [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
    assert not untouched
    plain = UniCLModel(UniCLConfig.from_dual_encoder(config, logit_bias_init_value=None))
    assert plain.logit_bias is None and "logit_bias" not in plain.state_dict()
    plain.load_state_dict(model.state_dict(), strict=False)
    same = plain(texts(END, 3), pixels(), return_loss=True)
    assert torch.equal(same.loss, output.loss)
    assert torch.equal(same.logits_per_image - 10, output.logits_per_image)


@pytest.mark.parametrize("kind", ["siglip_text_model", "metaclip_2_text_model", "metaclip_2_vision_model"])
def test_towers_that_automodel_does_not_know_are_built(kind):
    settings = VISION if "vision" in kind else {**LAYERS, "vocab_size": 60, "bos_token_id": 0, "eos_token_id": 2}
    side = "vision_config" if "vision" in kind else "text_config"
    config = UniCLConfig(**{side: {"model_type": kind, **settings}})
    assert build_tower(getattr(config, side)).config.model_type == kind


@torch.no_grad()
def test_the_pipelines_scores_are_a_softmax(tmp_path):
    source("siglip").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    SiglipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(tmp_path)
    plan = plan_hub_clip(str(tmp_path), Options())
    assert any("softmax" in note for note in plan.notes)
    model = converted(plan)
    square = {"height": plan.image.size, "width": plan.image.size}
    images = CLIPImageProcessor(
        size=square,
        crop_size=square,
        image_mean=plan.image.mean,
        image_std=plan.image.std,
        resample=plan.image.resample,
    )
    classify = pipeline(
        "zero-shot-image-classification", model=model, image_processor=images, tokenizer=tokenizer(), device="cpu"
    )
    blocks = torch.randint(0, 256, (6, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    picture = Image.fromarray(blocks.numpy()).resize((48, 40))
    labels = ["red square", "blue circle"]
    scores = classify(picture, candidate_labels=labels, hypothesis_template="a photo of a {}")
    assert sum(row["score"] for row in scores) == pytest.approx(1)
    inputs = tokenizer()([f"a photo of a {label}" for label in labels], padding="max_length", return_tensors="pt")
    inputs["pixel_values"] = SiglipImageProcessor(size=square)(picture, return_tensors="pt")["pixel_values"]
    theirs = source("siglip")(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
    expected = dict(zip(labels, theirs.logits_per_image.softmax(-1)[0].tolist()))
    assert {row["label"]: row["score"] for row in scores} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (
            CLIPImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}),
            (32, 36, False, BICUBIC),
        ),
        (CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), (32, None, False, 3)),
        (SiglipImageProcessor(size={"height": 32, "width": 32}, resample=BILINEAR), (32, None, True, BILINEAR)),
    ],
)
def test_the_image_processor_becomes_a_preset(tmp_path, processor, expected):
    source("clip").save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    plan = plan_hub_clip(str(tmp_path), Options())
    image = plan.image
    assert (image.size, image.resize, image.squash, image.resample) == expected
    assert tuple(image.mean) == tuple(processor.image_mean) and tuple(image.std) == tuple(processor.image_std)
    assert not plan.notes


def test_a_source_without_an_image_processor_gets_its_familys(tmp_path):
    source("clip").save_pretrained(tmp_path)
    plan = plan_hub_clip(str(tmp_path), Options())
    assert (plan.image.size, plan.image.squash, plan.image.mean) == (32, False, OPENAI_MEAN)
    assert "no image processor" in plan.notes[0]


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (CLIPImageProcessor(), "images of 224 px, its tower reads 32 px"),
        (CLIPImageProcessor(size={"shortest_edge": 32}, do_center_crop=False), "no square of one size"),
        (CLIPImageProcessor(do_rescale=False), "rescale by 1/255"),
        (SiglipImageProcessor(size={"height": 32, "width": 64}), "no square of one size"),
    ],
)
def test_images_that_a_preset_cannot_make_are_refused(tmp_path, processor, message):
    source("clip").save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        plan_hub_clip(str(tmp_path), Options())


def test_half_precision_is_read_without_loss(tmp_path):
    theirs = source("clip").half()
    theirs.save_pretrained(tmp_path)
    state = plan_hub_clip(str(tmp_path), Options()).state
    assert all(torch.equal(tensor.half(), theirs.state_dict()[name]) for name, tensor in state.items())
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    # a configuration that states a shorter format than its file has
    wide = source("clip")
    wide.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"dtype": "float16"}))
    assert torch.equal(
        plan_hub_clip(str(tmp_path), Options()).state["visual_projection.weight"], wide.visual_projection.weight
    )


def test_constants_of_older_files_are_no_matter(tmp_path):
    source("clip").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["text_model.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "text_model.embeddings.position_ids" not in plan_hub_clip(str(tmp_path), Options()).state


def lose(state):
    del state["visual_projection.weight"]


def add(state):
    state["visual_projection.bias"] = torch.zeros(24)


def reshape(state):
    state["visual_projection.weight"] = torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [(lose, "missing keys: visual_projection.weight"), (add, "unexpected keys: visual_proj"), (reshape, "not load")],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, change, message):
    source("clip").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        plan_hub_clip(str(tmp_path), Options())


def test_other_models_are_refused_by_type(tmp_path):
    naflex = Siglip2Config(text_config={**LAYERS, "vocab_size": 60}, vision_config={**LAYERS, "num_patches": 16})
    Siglip2Model(naflex).save_pretrained(tmp_path / "naflex")
    with pytest.raises(UserError, match=r"'siglip2' model.*NaFlex"):
        plan_hub_clip(str(tmp_path / "naflex"), Options())
    source("clip").text_model.save_pretrained(tmp_path / "text")
    with pytest.raises(UserError, match="'clip_text_model' model; those that convert are clip, metaclip_2, siglip"):
        plan_hub_clip(str(tmp_path / "text"), Options())
    with pytest.raises(UserError, match="no configuration"):
        plan_hub_clip(str(tmp_path), Options())
    with pytest.raises(UserError, match="model type swin is none of unicl, vlltr"):
        plan_hub_clip(str(tmp_path), Options(model_type="swin"))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, name):
    source("clip").config.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(b"PK\x03\x04 and nothing that follows")
    with pytest.raises(UserError, match="does not load"):
        plan_hub_clip(str(tmp_path), Options())


class Command:
    """What its pickle calls creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_that_holds_more_than_tensors_is_refused(tmp_path):
    source("clip").config.save_pretrained(tmp_path)
    for held, named in ((Image.Image, "PIL.Image.Image"), (Command(tmp_path / "made"), f"{os.name}.mkdir")):
        torch.save({"visual_projection.weight": held}, tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match=rf"does not load: its weights hold {named}; refused: .*") as caught:
            plan_hub_clip(str(tmp_path), Options())
        assert str(caught.value).isprintable()
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("location", ["./nosuch", "~/no/such", "/no/such", "a/no/such", "nosuch/", r"no\such", ".."])
def test_a_folder_that_is_not_there_is_no_matter_of_the_network(location, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    message = "no configuration" if location == ".." else "there is no such folder: "
    with pytest.raises(UserError, match=message):
        plan_hub_clip(location, Options())


def test_a_file_is_no_folder_and_a_name_may_be_either(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"model\.bin is a file: give the folder that it lies in"):
        plan_hub_clip("model.bin", Options())
    with pytest.raises(UserError, match="models/clip is no folder here, and as a Hub id it has no configuration"):
        plan_hub_clip("models/clip", Options())
    source("clip").save_pretrained(tmp_path / "models/clip")
    assert plan_hub_clip("models/clip", Options()).state
    monkeypatch.setenv("HOME", str(tmp_path))
    assert plan_hub_clip("~/models/clip", Options()).tokenizer == str(tmp_path / "models/clip")
