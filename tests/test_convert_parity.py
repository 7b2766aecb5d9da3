"""Every golden checkpoint, converted and loaded as a user would, against what the original code computed with it.

The table of the errors is printed at the end of the run.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification

from hf_vlr.convert import convert, restore
from hf_vlr.convert.archive import read_archive
from hf_vlr.convert.restoration import restore_tensors
from hf_vlr.modeling import distillation_loss, fuse_logits, image_text_label_loss

GOLDEN = Path(__file__).with_name("golden")
TOLERANCE = 1e-5
ARCHITECTURES = {
    "cvlp_vit": ("vl-ltr", "vlltr_cvlp_vit_tiny"),
    "cvlp_rn": ("vl-ltr", "vlltr_cvlp_rn_tiny"),
    "lgr_vit": ("vl-ltr", "vlltr_lgr_vit_tiny"),
    "lgr_rn": ("vl-ltr", "vlltr_lgr_rn_tiny"),
    "unicl_swin": ("unicl", "unicl_swin_tiny"),
}
NAMES = {
    "cvlp_vit": "VL-LTR stage 1, ViT",
    "cvlp_rn": "VL-LTR stage 1, ModifiedResNet",
    "lgr_vit": "VL-LTR stage 2, ViT",
    "lgr_rn": "VL-LTR stage 2, ModifiedResNet",
    "unicl_swin": "UniCL, Swin",
}


def error(ours: torch.Tensor, golden: torch.Tensor) -> float:
    """‖a − b‖ / ‖b‖ in float64."""
    ours, golden = ours.detach().double().flatten(), golden.double().flatten()
    assert ours.shape == golden.shape
    return ((ours - golden).norm() / golden.norm()).item()


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The converted folder of a golden checkpoint, made once."""
    made: dict[str, Path] = {}

    def folder(name: str, format: str) -> Path:
        if name not in made:
            out = tmp_path_factory.mktemp("converted") / name
            made[name] = convert(format, GOLDEN / f"{name}.pth", out, tokenizer="none").folder
        return made[name]

    return folder


def dual_encoder_outputs(model, golden):
    """Features of both towers, and logits, as the golden file names them."""
    image, text = model.get_image_features(golden["pixel_values"]), model.get_text_features(golden["input_ids"])
    logits = model(input_ids=golden["input_ids"], pixel_values=golden["pixel_values"]).logits_per_image
    return image, text, {"image_features": image, "text_features": text, "logits_per_image": logits}


def stage_1(model, golden, teacher):
    """Outputs of a pre-trained VL-LTR; its training loss is last."""
    image, text, found = dual_encoder_outputs(model, golden)
    labels, scale = golden["labels"], model.logit_scale.exp()
    with torch.no_grad():
        teacher_image, teacher_text, outputs = dual_encoder_outputs(teacher, golden)
    plain = model(**{key: golden[key] for key in ("input_ids", "pixel_values", "labels")}, return_loss=True).loss
    smooth = image_text_label_loss(image, text, labels, scale, label_smoothing=0.1)
    distilled = distillation_loss(image, text, scale, teacher_image, teacher_text, teacher.logit_scale.exp())
    return found | {
        "teacher_logits_per_image": outputs["logits_per_image"],
        "loss_ccl_smoothing_0": plain,
        "loss_ccl_smoothing_0.1": smooth,
        "loss_distill": distilled,
        "loss_pretrain_beta_0.5": 0.5 * smooth + 0.5 * distilled,
    }


def stage_2(model, golden):
    """Outputs of a recogniser; its training loss is last."""
    output = model(golden["pixel_values"], labels=golden["labels"])
    visual, language = output.visual_logits, output.language_logits
    return {
        "image_features": model.vlltr.get_image_features(golden["pixel_values"]),
        "logits_visual": visual,
        "logits_linguistic": language,
        "probs_alpha_0.2": output.logits.softmax(-1),
        "probs_alpha_0.7": fuse_logits(visual, language, 0.7).softmax(-1),
        "loss_rec": output.loss,
    }


def unicl(model, golden):
    """Outputs of a UniCL model; its training loss is last."""
    image, text, found = dual_encoder_outputs(model, golden)
    normalize = torch.nn.functional.normalize
    labels, scale = golden["labels"], model.logit_scale.exp()
    return found | {
        "image_embeds": normalize(image, dim=-1),
        "text_embeds": normalize(text, dim=-1),
        "loss_i2t": image_text_label_loss(image, text, labels, scale, direction="image_to_text"),
        "loss_t2i": image_text_label_loss(image, text, labels, scale, direction="text_to_image"),
        "loss_unicl": image_text_label_loss(image, text, labels, scale),
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_converted_checkpoint_computes_what_the_original_did(architecture, converted, parity):
    format, name = ARCHITECTURES[architecture]
    folder, golden = converted(name, format), load_file(GOLDEN / f"{name}.io.safetensors")
    if architecture.startswith("lgr"):
        model = AutoModelForImageClassification.from_pretrained(folder)
        found = stage_2(model, golden)
        assert torch.equal(~model.head.anchor_mask, golden["padding_mask"])
    elif architecture.startswith("cvlp"):
        model = AutoModel.from_pretrained(folder)
        found = stage_1(model, golden, AutoModel.from_pretrained(converted(f"{name}.teacher", format)))
    else:
        model = AutoModel.from_pretrained(folder)
        found = unicl(model, golden)
    [*found.values()][-1].backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    gradients = restore_tensors(gradients, model.config, format)
    found |= {key: gradients[key.removeprefix("grad.")] for key in golden if key.startswith("grad.")}
    inputs = {"pixel_values", "input_ids", "labels", "num_sentences", "padding_mask"}
    assert found.keys() == golden.keys() - inputs
    errors = {key: error(tensor, golden[key]) for key, tensor in found.items()}
    parity.extend((NAMES[architecture], key, value) for key, value in errors.items())
    assert max(errors.values()) <= TOLERANCE, errors


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_way_back_is_bit_exact(architecture, converted):
    format, name = ARCHITECTURES[architecture]
    names = [name, f"{name}.teacher"] if architecture.startswith("cvlp") else [name]
    load = AutoModelForImageClassification if architecture.startswith("lgr") else AutoModel
    for one in names:
        original = read_archive(GOLDEN / f"{one}.pth").weights()
        back = restore(load.from_pretrained(converted(one, format)), format)
        assert back.keys() == original.keys()
        for key, tensor in original.items():
            assert back[key].dtype == tensor.dtype and torch.equal(back[key], tensor), key
