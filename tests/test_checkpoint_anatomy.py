"""A checkpoint is complete: it loads by every Auto class and pipeline, with and without the package, bit for bit."""

import json
import logging
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    pipeline,
)

from hf_vlr import UniCLConfig, UniCLModel, VLLTRConfig, VLLTRForImageClassification, VLLTRModel

CODE = {
    "configuration_unicl.py", "configuration_vlltr.py", "configuration_clip_resnet.py", "configuration_embedding.py",
    "modeling_unicl.py", "modeling_vlltr.py", "modeling_clip_resnet.py", "modeling_embedding.py", "towers.py",
    "contrastive.py", "log_sums.py", "recognition.py", "products.py", "derivatives.py", "backend.py",
}  # fmt: skip
TOWERS = [
    ("clip", "clip"),
    ("vit", "bert"),
    ("swin", "clip"),
    ("focalnet", "bert"),
    ("resnet", "clip"),
    ("convnext", None),
    ("clip_resnet", "clip"),
    ("timm_resnet18", "bert"),
    ("timm_resnet50_clip", "clip"),
    ("timm_mobilenetv3", None),
    ("timm_swin", "clip"),
]
LABELS = ["a fox", "a wolf", "a very long description of an animal that no text tower of this size reads to its end"]


def build(tiny, kind, **options):
    return tiny.recogniser(**options) if kind is VLLTRForImageClassification else tiny.model(kind, **options)


def file_keys(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def same_tensors(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and a[name].equal(b[name]) for name in a)


def outputs(tiny, model):
    """Every tensor that the model returns for fixed inputs."""
    with torch.no_grad():
        if isinstance(model, VLLTRForImageClassification):
            return dict(model(tiny.pixel_values(), output_anchor_attention=True))
        if model.text_model is None:
            return {"image": model.get_image_features(tiny.pixel_values())}
        return dict(model(**tiny.texts(), pixel_values=tiny.pixel_values()))


def change_file(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def stage_2(tiny, tmp_path):
    """A recogniser's folder with processor and a picture, and the model itself."""
    folder, model = tmp_path / "stage2", tiny.recogniser()
    tiny.processor().save_pretrained(folder)
    model.save_pretrained(folder)
    tiny.picture().save(tmp_path / "picture.png")
    return folder, model


@pytest.fixture
def warnings_of_transformers():
    """The warnings that transformers logs meanwhile."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger, level = logging.getLogger("transformers"), transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_warning()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)
    transformers.logging.set_verbosity(level)


@pytest.mark.parametrize(("vision", "text"), TOWERS)
@pytest.mark.parametrize("kind", [UniCLModel, VLLTRModel, VLLTRForImageClassification])
def test_a_saved_model_comes_back_bit_for_bit(tiny, tmp_path, kind, vision, text):
    options = {"visual_projection_bias": True} if vision == "timm_resnet50_clip" else {}
    model = build(tiny, kind, vision=vision, text=text, **options)
    model.save_pretrained(tmp_path)
    assert file_keys(tmp_path) == set(model.state_dict())
    auto = AutoModelForImageClassification if kind is VLLTRForImageClassification else AutoModel
    again, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is kind
    assert not any(info.values())
    assert same_tensors(model, again)
    buffers = dict(model.named_buffers())
    assert all(buffer.equal(buffers[name]) for name, buffer in again.named_buffers())
    before, after = outputs(tiny, model), outputs(tiny, again)
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


def test_a_sharded_checkpoint_is_the_same(tiny, tmp_path):
    model = tiny.recogniser()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert same_tensors(model, VLLTRForImageClassification.from_pretrained(tmp_path))


@pytest.mark.parametrize("kind", [UniCLModel, VLLTRModel])
def test_auto_classes_of_a_dual_encoder(tiny, tmp_path, kind):
    model = tiny.model(kind)
    tiny.processor().save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is kind.config_class
    for auto in (AutoModel, AutoModelForZeroShotImageClassification):
        assert type(auto.from_pretrained(tmp_path)) is kind
    assert type(AutoProcessor.from_pretrained(tmp_path)).__name__ == "CLIPProcessor"
    inputs = AutoProcessor.from_pretrained(tmp_path)(
        text=LABELS[:2], images=tiny.picture(), return_tensors="pt", padding=True
    )
    assert model(**inputs).logits_per_image.shape == (1, 2)


def test_auto_classes_of_a_recogniser(tiny, stage_2):
    folder = stage_2[0]
    assert type(AutoConfig.from_pretrained(folder)) is VLLTRConfig
    assert type(AutoModelForImageClassification.from_pretrained(folder)) is VLLTRForImageClassification
    assert type(AutoModelForZeroShotImageClassification.from_pretrained(folder)) is VLLTRModel
    assert AutoImageProcessor.from_pretrained(folder).crop_size["height"] == tiny.IMAGE_SIZE
    assert len(AutoTokenizer.from_pretrained(folder)) == 514
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        tiny.model(UniCLModel).save_pretrained(folder.parent / "dual")
        AutoModelForImageClassification.from_pretrained(folder.parent / "dual")


def test_auto_model_of_a_recogniser_is_its_dual_encoder(tiny, stage_2, warnings_of_transformers):
    folder, model = stage_2
    encoder, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(encoder) is VLLTRModel
    assert not any(info.values())
    assert warnings_of_transformers == []
    assert same_tensors(encoder, model.vlltr)
    assert outputs(tiny, encoder)["logits_per_image"].equal(outputs(tiny, model.vlltr)["logits_per_image"])


def test_a_dual_encoder_becomes_a_recogniser(tiny, tmp_path):
    encoder = tiny.model(VLLTRModel)
    encoder.save_pretrained(tmp_path)
    options = {"num_labels": 7, "num_anchors": 4}
    model, info = VLLTRForImageClassification.from_pretrained(tmp_path, output_loading_info=True, **options)
    assert same_tensors(encoder, model.vlltr)
    assert info["missing_keys"] == {name for name in model.state_dict() if name.startswith("head.")}
    assert not info["unexpected_keys"]
    assert model.head.query.weight.equal(torch.eye(16))
    assert model.head.key.weight.equal(torch.eye(16))
    for name in ("norm_query", "norm_key"):
        assert getattr(model.head, name).weight.equal(torch.ones(16))
        assert getattr(model.head, name).bias.equal(torch.zeros(16))
    for name, shape in (("anchors", (7, 4, 16)), ("anchor_mask", (7, 4)), ("class_counts", (7,))):
        assert getattr(model.head, name).equal(torch.zeros_like(getattr(model.head, name)))
        assert getattr(model.head, name).shape == shape
    assert not model.head.sentence_offsets.any()
    last = model.head.visual[-1]
    assert last.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert last.bias.equal(torch.zeros(7))
    assert model(tiny.pixel_values()).logits.isfinite().all()


@pytest.mark.parametrize("vision", ["clip", "swin", "timm_swin"])
def test_what_a_checkpoint_lacks_is_initialised(tiny, stage_2, vision):
    folder = stage_2[0]
    model = tiny.recogniser(vision=vision, logit_scale_init_value=1.25)
    model.save_pretrained(folder)
    absent = [
        "vlltr.logit_scale",
        "vlltr.visual_projection.weight",
        "vlltr.text_projection.weight",
        "head.query.weight",
        "head.anchors",
        "head.class_counts",
    ]
    change_file(folder, lambda tensors: [tensors.pop(name) for name in absent])
    again, info = VLLTRForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"] == set(absent)
    state = again.state_dict()
    assert state["vlltr.logit_scale"].item() == 1.25
    assert state["head.query.weight"].equal(torch.eye(16))
    assert not state["head.anchors"].any()
    assert not state["head.class_counts"].any()
    for name in absent[1:3]:
        # 512 normal numbers: the deviation of their deviation is 3 %
        assert state[name].std().item() == pytest.approx(32**-0.5, rel=0.15)
    kept = state.keys() - set(absent)
    assert all(state[name].equal(model.state_dict()[name]) for name in kept)


def test_a_checkpoint_of_other_classes_is_refused(stage_2):
    with pytest.raises(RuntimeError, match=r"ignore_mismatched_sizes|size mismatch"):
        VLLTRForImageClassification.from_pretrained(stage_2[0], num_labels=6)


def test_the_config_holds_names_and_origins_and_no_sentences(tiny, stage_2):
    folder = stage_2[0]
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {str(c): name for c, name in enumerate(tiny.CLASS_NAMES)}
    assert config["num_anchors"] == 3
    assert config["fusion_weight"] == 0.2
    assert config["detach_norm"] is False
    assert config["anchor_selection"] == {"split": "train", "images_per_class": 50}
    assert config["architectures"] == ["VLLTRForImageClassification"]
    assert "tufted ears" not in json.dumps(config)
    assert {path.name for path in folder.glob("*.py")} == CODE
    assert config["auto_map"] == {
        "AutoConfig": "configuration_vlltr.VLLTRConfig",
        "AutoModel": "modeling_vlltr.VLLTRModel",
        "AutoModelForZeroShotImageClassification": "modeling_vlltr.VLLTRModel",
        "AutoModelForImageClassification": "modeling_vlltr.VLLTRForImageClassification",
    }


def test_a_dual_encoders_folder_names_its_classes(tiny, tmp_path):
    tiny.model(UniCLModel).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_unicl.UniCLConfig",
        "AutoModel": "modeling_unicl.UniCLModel",
        "AutoModelForZeroShotImageClassification": "modeling_unicl.UniCLModel",
    }
    assert {path.name for path in tmp_path.glob("*.py")} == CODE - {
        "configuration_vlltr.py", "modeling_vlltr.py", "recognition.py",
    }  # fmt: skip
    assert UniCLConfig.from_pretrained(tmp_path).to_dict()["auto_map"] == config["auto_map"]


def test_the_classification_pipeline_gives_the_fused_scores(tiny, stage_2):
    folder = stage_2[0]
    pictures = [tiny.picture(0), tiny.picture(1)]
    classify = pipeline("image-classification", model=str(folder))
    assert type(classify.model) is VLLTRForImageClassification
    loaded = VLLTRForImageClassification.from_pretrained(folder)
    for picture in pictures:
        found, expected = classify(picture), loaded.predict(picture)[0]["classes"]
        assert [one["label"] for one in found] == [one["label"] for one in expected]
        # the pipeline's softmax is numpy's
        assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], rel=1e-6)
    together = classify(pictures, batch_size=2, top_k=1)
    assert [one[0]["label"] for one in together] == [classify(picture)[0]["label"] for picture in pictures]


def test_the_zero_shot_pipeline_reads_any_labels(tiny, stage_2):
    folder, model = stage_2
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    assert type(classify.model) is VLLTRModel
    results = classify([tiny.picture(0), tiny.picture(1)], candidate_labels=LABELS, hypothesis_template="{}")
    processor = AutoProcessor.from_pretrained(folder)
    for number, result in enumerate(results):
        inputs = processor(text=LABELS, images=tiny.picture(number), return_tensors="pt", padding=True)
        assert inputs["input_ids"].shape[1] > tiny.POSITIONS
        image = normalize(model.vlltr.get_image_features(inputs.pop("pixel_values")), dim=-1)
        text = normalize(model.vlltr.get_text_features(**inputs), dim=-1)
        scores = (model.vlltr.logit_scale.exp() * image @ text.T).softmax(-1)[0]
        for one in result:
            assert one["score"] == pytest.approx(scores[LABELS.index(one["label"])].item(), rel=1e-5)


# Runs where the package cannot be imported, and writes down whatever it computes.
STRANGER = """
import json, sys
from pathlib import Path

class NoPackage:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_vlr":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoPackage())
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForZeroShotImageClassification
from transformers import AutoConfig, AutoProcessor, pipeline

folder, picture, inputs, out, labels = *map(Path, sys.argv[1:5]), json.loads(sys.argv[5])
inputs, trust = load_file(inputs), {"trust_remote_code": True}
encoder = AutoModel.from_pretrained(folder, **trust)
again = AutoModelForZeroShotImageClassification.from_pretrained(folder, **trust)
config = AutoConfig.from_pretrained(folder, **trust)
found = {"config": config.model_type,
         "encoder": type(encoder).__name__, "again": type(again).__name__,
         "processor": type(AutoProcessor.from_pretrained(folder, **trust)).__name__}
with torch.no_grad():
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder(**inputs).items()}
zero_shot = pipeline("zero-shot-image-classification", model=str(folder), **trust)
found["zero_shot"] = zero_shot(str(picture), candidate_labels=labels)
if config.architectures == ["VLLTRForImageClassification"]:
    model = AutoModelForImageClassification.from_pretrained(folder, **trust)
    found |= {"model": type(model).__name__, "predict": model.predict([picture])}
    with torch.no_grad():
        result = model(inputs["pixel_values"], output_anchor_attention=True)
    tensors |= {f"model.{name}": tensor for name, tensor in result.items()}
    found["classify"] = pipeline("image-classification", model=str(folder), **trust)(str(picture))
    model.save_pretrained(out / "again")
else:
    encoder.save_pretrained(out / "again")
save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, out / "tensors.safetensors")
found["imported"] = sorted(name for name in sys.modules if name.partition(".")[0] == "hf_vlr")
(out / "found.json").write_text(json.dumps(found))
"""


def ask_a_stranger(tiny, folder, picture):
    """What a process without the package finds in the folder: its words, and its tensors."""
    out = folder.parent / "out"
    out.mkdir()
    save_file({**tiny.texts(), "pixel_values": tiny.pixel_values()}, out / "inputs.safetensors")
    arguments = [folder, picture, out / "inputs.safetensors", out, json.dumps(LABELS)]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *map(str, arguments)], capture_output=True, text=True, timeout=300, cwd=out
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "found.json").read_text()), load_file(out / "tensors.safetensors"), out / "again"


@pytest.mark.slow
@pytest.mark.parametrize(("vision", "text"), [("clip", "clip"), ("swin", "bert"), ("timm_resnet50_clip", "clip")])
def test_a_stranger_loads_a_recogniser(tiny, tmp_path, vision, text):
    folder, picture, model = tmp_path / "model", tmp_path / "picture.png", tiny.recogniser(vision=vision, text=text)
    tiny.processor().save_pretrained(folder)
    model.save_pretrained(folder)
    tiny.picture().save(picture)
    found, tensors, again = ask_a_stranger(tiny, folder, picture)
    assert found["imported"] == []
    assert (found["config"], found["processor"]) == ("vlltr", "CLIPProcessor")
    assert (found["encoder"], found["again"]) == ("VLLTRModel", "VLLTRModel")
    assert found["model"] == "VLLTRForImageClassification"
    expected = {f"encoder.{name}": tensor for name, tensor in outputs(tiny, model.vlltr).items()}
    expected |= {f"model.{name}": tensor for name, tensor in outputs(tiny, model).items()}
    assert tensors.keys() == expected.keys()
    assert all(tensors[name].equal(expected[name]) for name in expected)
    loaded = VLLTRForImageClassification.from_pretrained(folder)
    assert found["predict"] == loaded.predict([picture])
    assert found["classify"] == pipeline("image-classification", model=str(folder))(str(picture))
    zero_shot = pipeline("zero-shot-image-classification", model=str(folder))
    assert found["zero_shot"] == zero_shot(str(picture), candidate_labels=LABELS)
    assert same_tensors(model, AutoModelForImageClassification.from_pretrained(again))
    assert {path.name for path in again.glob("*.py")} == CODE


@pytest.mark.slow
@pytest.mark.parametrize("kind", [UniCLModel, VLLTRModel])
def test_a_stranger_loads_a_dual_encoder(tiny, tmp_path, kind):
    folder, picture, model = tmp_path / "model", tmp_path / "picture.png", tiny.model(kind)
    tiny.processor().save_pretrained(folder)
    model.save_pretrained(folder)
    tiny.picture().save(picture)
    found, tensors, again = ask_a_stranger(tiny, folder, picture)
    assert found["imported"] == []
    assert found["encoder"] == found["again"] == kind.__name__
    expected = outputs(tiny, model)
    assert all(tensors[f"encoder.{name}"].equal(expected[name]) for name in expected)
    zero_shot = pipeline("zero-shot-image-classification", model=str(folder))
    assert found["zero_shot"] == zero_shot(str(picture), candidate_labels=LABELS)
    assert same_tensors(model, AutoModel.from_pretrained(again))
