"""A sketch has the shape of the model that is built later, and reads no weights."""

import pytest
import torch
import transformers
from transformers import CLIPConfig, CLIPModel

from hf_vlr import UniCLModel
from hf_vlr.errors import UserError
from hf_vlr.training.model_builder import MODELS, build_dual_encoder
from hf_vlr.training.recipe import load_recipe
from hf_vlr.training.run_data import load_run_data, spoken_texts
from hf_vlr.training.sketch import sketch_dual_encoder, text_config, vision_config

SMALL = "data.options={classes: 12, max_count: 24, imbalance: 6, validation: 2, test: 2, unseen: 2}"


def shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def sketched(recipe, sentences=()) -> dict[str, torch.Size]:
    config = sketch_dual_encoder(recipe, sentences).config
    with torch.device("meta"):
        return shapes(MODELS[config.model_type][1](config))


@pytest.mark.parametrize("words", [["text=scratch:clip"], ["vision=scratch:vit", "text=scratch:embedding"]])
def test_towers_from_scratch(words):
    recipe = load_recipe("shapes-stage1", [SMALL, *words])
    texts = spoken_texts(load_run_data(recipe))
    encoder = build_dual_encoder(recipe, "vlltr", texts)
    assert sketched(recipe, texts) == shapes(encoder.model)
    sketch = sketch_dual_encoder(recipe, texts)
    assert sketch.image_size == encoder.image_size and sketch.notes == ()
    assert sketch.tokenizer("a red circle")["input_ids"] == encoder.processor.tokenizer("a red circle")["input_ids"]


def test_without_texts_a_vocabulary_is_assumed():
    recipe = load_recipe("shapes-stage1")
    sketch = sketch_dual_encoder(recipe)
    assert sketch.tokenizer is None and sketch.config.text_config.vocab_size == 4096
    assert "4,096 pieces are assumed" in sketch.notes[0]


@pytest.mark.parametrize("task", ["cvlp", "unicl", "recognition"])
def test_a_folder_to_start_from(tiny, tmp_path, task):
    tiny.model(UniCLModel).save_pretrained(tmp_path / "model")
    tiny.processor().save_pretrained(tmp_path / "model")
    recipe = load_recipe("shapes-stage1", [f"task={task}", f"model.init={tmp_path / 'model'}", "data.image_size=null"])
    kind = "unicl" if task == "unicl" else "vlltr"
    expected = build_dual_encoder(recipe, kind, [])
    assert sketched(recipe) == shapes(expected.model)
    assert sketch_dual_encoder(recipe).image_size == expected.image_size == tiny.IMAGE_SIZE


def test_no_weights_are_read(tiny, tmp_path):
    towers = {"text_config": dict(tiny.TEXT_TOWERS["clip"]), "vision_config": dict(tiny.VISION_TOWERS["clip"][1])}
    CLIPModel(CLIPConfig(**towers, projection_dim=16)).save_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    recipe = load_recipe("shapes-stage1", [f"model.init={tmp_path / 'clip'}", "data.image_size=null"])
    assert sketched(recipe)["visual_projection.weight"] == (16, tiny.WIDTH)
    # of a dual encoder, one tower
    folder = str(tmp_path / "clip")
    assert vision_config(folder, 224)[0].model_type == "clip_vision_model"
    assert text_config(folder, [], 77)[0].model_type == "clip_text_model"
    recipe = load_recipe("shapes-stage1", [f"vision={folder}", f"text={folder}", "data.image_size=32"])
    assert sketched(recipe)["text_projection.weight"] == (128, tiny.WIDTH)


def test_timm_is_asked_for_no_weights():
    config, side = vision_config("timm:resnet18.a1_in1k", 64)
    assert (config.architecture, side) == ("resnet18.a1_in1k", 224)


def test_a_stage_2_is_sketched_by_the_recipe_of_its_stage_1(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("shapes-stage2")
    assert sketched(recipe) == sketched(load_recipe("shapes-stage1"))
    assert sketch_dual_encoder(recipe).notes[-1].startswith("runs/shapes-stage1 is not there yet")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["vision=timm:resnot"], "model.vision=timm:resnot: timm has no such architecture"),
        (["vision=./nowhere"], "model.vision=./nowhere is neither a folder here nor"),
        (["text=./nowhere"], "model.text=./nowhere is neither a folder here nor"),
        (["vision=scratch:resnot"], "model.vision=scratch:resnot is unknown; "),
        (["model.init=BERT"], "is a 'bert' checkpoint; it must be unicl, vlltr or clip"),
    ],
)
def test_what_cannot_be_is_named(words, said, tmp_path):
    transformers.BertConfig(hidden_size=8).save_pretrained(tmp_path / "bert")
    words = [word.replace("BERT", str(tmp_path / "bert")) for word in words]
    with pytest.raises(UserError) as caught:
        sketch_dual_encoder(load_recipe("shapes-stage1", words))
    assert said in str(caught.value)
