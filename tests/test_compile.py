"""Compiled towers: the same model by name, the same numbers, and a bounded number of graphs."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from hf_vlr import UniCLModel, VLLTRForImageClassification
from hf_vlr.training.compile import compile_towers
from hf_vlr.training.patch_dropout import apply_patch_dropout


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def loss_and_gradient(model, inputs, seed=0):
    """The loss and the gradient of all parameters in one vector, under a seed."""
    model.zero_grad()
    torch.manual_seed(seed)
    loss = model(**inputs, return_loss=True).loss
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", [UniCLModel, VLLTRForImageClassification])
def test_compiling_changes_no_name_and_no_file(tiny, tmp_path, kind):
    model = tiny.recogniser() if kind is VLLTRForImageClassification else tiny.model()
    names = list(model.state_dict())
    model.save_pretrained(tmp_path / "before")
    compile_towers(model)
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path / "after")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()
    assert all(tower._compiled_call_impl is not None for tower in model.towers())
    assert all(tower._compiled_call_impl is None for tower in copy.deepcopy(model).towers())


@pytest.mark.slow
@pytest.mark.parametrize("vision", ["clip", "resnet"])
def test_compiled_towers_train_alike(tiny, vision):
    model = tiny.model(vision=vision).train()
    if vision == "clip":
        apply_patch_dropout(model.vision_model, 0.5)
    inputs = {**tiny.texts(3), "pixel_values": tiny.pixel_values(3), "labels": torch.tensor([0, 1, 0])}
    plain = copy.deepcopy(model)
    compile_towers(model)
    for compiled, expected in zip(loss_and_gradient(model, inputs), loss_and_gradient(plain, inputs)):
        assert relative(compiled, expected) <= 1e-5
    with torch.no_grad():
        torch.manual_seed(0)
        without_gradient = model(**inputs).logits_per_image
    torch.manual_seed(0)
    assert relative(model(**inputs).logits_per_image, without_gradient) <= 1e-6


@pytest.mark.slow
def test_batches_of_other_sizes_compile_once_more_and_no_further(tiny):
    torch.compiler.reset()
    model = tiny.model().train()
    compile_towers(model)
    counts = []
    # texts that share two rows, or three
    for images, texts, length in [(6, 5, 12), (6, 5, 12), (4, 9, 13), (5, 6, 10), (2, 9, 15), (6, 6, 12), (6, 5, 12)]:
        counters.clear()
        model.get_image_features(tiny.pixel_values(images)).sum().backward()
        model.get_text_features(**tiny.texts(texts, length)).sum().backward()
        counts.append(counters["stats"]["unique_graphs"])
    assert counts == [2, 0, 2, 0, 0, 0, 0]
