"""Encoders of this package and of others: their vectors are the models' own, computed once, then found by content."""

import importlib.util
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoProcessor,
    AutoTokenizer,
    CLIPModel,
    SiglipModel,
)

from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.evaluation.encoders import Encoder, open_encoder
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import override_recipe
from hf_vlr.training.run_data import load_split

TEXTS = ["a red square", "a photo of a green star with stripes, and much more than fits", "blue"]
NAMES = ["one", "two", "three"]


def load_foreign() -> ModuleType:
    spec = importlib.util.spec_from_file_location("foreign", Path(__file__).with_name("foreign.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


foreign = load_foreign()


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    saved = {"clip": foreign.save_clip(root / "clip"), "siglip": foreign.save_siglip(root / "siglip")}
    for name in ("vit", "resnet", "timm"):
        saved[name] = getattr(foreign, f"save_{name}")(root / name, NAMES)
    return saved


@pytest.fixture(scope="module")
def source() -> ImageSource:
    return load_split(bare_recipe(), "test")


def bare_recipe(*extra: str) -> Recipe:
    return override_recipe(Recipe(task="recognition"), [*foreign.SMALL_DATA, "eval.batch_size=4", *extra])


def opened(folder: Path, *extra: str) -> Encoder:
    return open_encoder(str(folder), bare_recipe("data.cache_dir=off", *extra))


def pictures(source: ImageSource) -> list[Image.Image]:
    return [source.images[index] for index in range(len(source))]


@torch.no_grad()
def test_clips_vectors_and_scale_give_transformers_own_logits(models, source):
    encoder = opened(models["clip"])
    processor, model = AutoProcessor.from_pretrained(models["clip"]), CLIPModel.from_pretrained(models["clip"])
    inputs = processor(
        text=TEXTS, images=pictures(source), return_tensors="pt", padding=True, truncation=True, max_length=24
    )
    expected = model(**inputs).logits_per_image
    images = torch.nn.functional.normalize(encoder.image_features(source), dim=-1)
    texts = torch.nn.functional.normalize(encoder.text_features(TEXTS), dim=-1)
    torch.testing.assert_close(encoder.scale * images @ texts.t() + encoder.bias, expected, atol=1e-4, rtol=1e-5)
    assert (encoder.image_size, encoder.bias) == (32, 0.0)
    assert encoder.num_params == sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def test_siglips_texts_are_padded_and_its_bias_counts(models, source):
    encoder, folder = opened(models["siglip"]), models["siglip"]
    model, tokenizer = SiglipModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(TEXTS, padding="max_length", max_length=24, truncation=True, return_tensors="pt")
    pixels = torch.stack([encoder.transform(picture) for picture in pictures(source)])
    expected = model(input_ids=inputs["input_ids"], pixel_values=pixels).logits_per_image
    images = torch.nn.functional.normalize(encoder.image_features(source), dim=-1)
    texts = torch.nn.functional.normalize(encoder.text_features(TEXTS), dim=-1)
    torch.testing.assert_close(encoder.scale * images @ texts.t() + encoder.bias, expected, atol=1e-4, rtol=1e-5)
    assert encoder.bias == -7.0
    # a shorter limit of ours is not SigLIP's
    torch.testing.assert_close(
        opened(folder, "data.max_text_length=8").text_features(TEXTS), encoder.text_features(TEXTS)
    )


@pytest.mark.parametrize("name", ["vit", "resnet", "timm"])
@torch.no_grad()
def test_a_classifiers_features_are_what_its_last_layer_reads(name, models, source):
    encoder = opened(models[name])
    classifier = AutoModelForImageClassification.from_pretrained(models[name]).eval()
    pixels = torch.stack([encoder.transform(picture) for picture in pictures(source)])
    last = classifier.timm_model.get_classifier() if name == "timm" else classifier.classifier
    torch.testing.assert_close(last(encoder.image_features(source)), classifier(pixels).logits, atol=1e-4, rtol=1e-4)
    assert not encoder.has_texts
    with pytest.raises(UserError, match="no text tower"):
        encoder.text_features(TEXTS)


@pytest.mark.parametrize("name", ["clip", "siglip", "vit", "resnet", "timm"])
def test_a_second_evaluation_runs_no_tower(name, models, source, tmp_path, monkeypatch):
    # counted by forwards and by time
    first = open_encoder(str(models[name]), bare_recipe(f"data.cache_dir={tmp_path}"))
    ran = count_forwards(first)
    slow = slowed(first, monkeypatch)
    before = time.perf_counter()
    vectors = first.image_features(source)
    first_time = time.perf_counter() - before
    texts = first.text_features(TEXTS) if first.has_texts else None
    assert ran["calls"] >= 5
    assert slow["calls"] == 5
    again = open_encoder(str(models[name]), bare_recipe(f"data.cache_dir={tmp_path}", "eval.batch_size=7"))
    ran = count_forwards(again)
    before = time.perf_counter()
    assert torch.equal(again.image_features(source), vectors)
    assert time.perf_counter() - before < first_time / 2
    assert texts is None or torch.equal(again.text_features(TEXTS), texts)
    assert ran["calls"] == 0


def count_forwards(encoder: Encoder) -> dict[str, int]:
    """How often any module of the model runs that has weights of its own."""
    counted = {"calls": 0}

    def count(*_) -> None:
        counted["calls"] += 1

    for module in encoder.model.modules():
        module.register_forward_hook(count)
    return counted


def slowed(encoder: Encoder, monkeypatch) -> dict[str, int]:
    """Every batch of images takes 0.1 s more, as a large tower would; a tiny one is lost among the rest."""
    counted, encode = {"calls": 0}, encoder.vision.encode

    def slowly(pixels: torch.Tensor) -> torch.Tensor:
        counted["calls"] += 1
        time.sleep(0.1)
        return encode(pixels)

    monkeypatch.setattr(encoder.vision, "encode", slowly)
    return counted


def test_other_weights_are_not_found(models, source, tmp_path):
    words = (f"data.cache_dir={tmp_path / 'cache'}",)
    vectors = open_encoder(str(models["clip"]), bare_recipe(*words)).image_features(source)
    model = CLIPModel.from_pretrained(models["clip"])
    model.visual_projection.weight.data[0, 0] += 1
    model.save_pretrained(tmp_path / "other")
    AutoProcessor.from_pretrained(models["clip"]).save_pretrained(tmp_path / "other")
    other = open_encoder(str(tmp_path / "other"), bare_recipe(*words)).image_features(source)
    assert not torch.equal(vectors, other)


def test_by_default_states_lie_in_the_assets_cache_and_off_keeps_none(models, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path))
    assert open_encoder(str(models["clip"]), bare_recipe()).cache.folder.is_relative_to(tmp_path)
    assert opened(models["clip"]).cache.folder is None
    # nowhere to keep them is no reason not to measure
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "file"))
    assert open_encoder(str(models["clip"]), bare_recipe()).cache.folder is None


@torch.no_grad()
def test_our_own_encoders_give_the_models_own_features(tiny, source, tmp_path):
    model, processor = tiny.model(), tiny.processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    encoder = open_encoder(str(tmp_path), bare_recipe("data.max_text_length=40"))
    pixels = torch.stack([encoder.transform(picture) for picture in pictures(source)])
    torch.testing.assert_close(encoder.image_features(source), model.get_image_features(pixels), atol=1e-5, rtol=1e-5)
    tokens = processor.tokenizer(TEXTS[0], return_tensors="pt")
    expected = model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
    torch.testing.assert_close(encoder.text_features(TEXTS[:1]), expected, atol=1e-5, rtol=1e-4)
    assert encoder.scale == pytest.approx(model.logit_scale.exp().item())


def test_what_cannot_be_read_is_one_line(models, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        opened(tmp_path / "nothing")
    with pytest.raises(UserError, match="sees 32 px"):
        opened(models["vit"], "data.image_size=64")
    AutoTokenizer.from_pretrained(models["clip"]).save_pretrained(tmp_path)
    AutoModel.from_pretrained(models["clip"]).text_model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="encodes no images"):
        opened(tmp_path)
    AutoModelForImageClassification.from_pretrained(models["vit"]).save_pretrained(tmp_path / "alone")
    with pytest.raises(UserError, match="no image processor beside it"):
        opened(tmp_path / "alone")
