"""ONNX files by onnxruntime against torch: every kind of tower, any number of images and texts."""

import re

import numpy as np
import onnx
import pytest
import torch

from hf_vlr.errors import UserError
from hf_vlr.export.graphs import Graph, ImageGraph, RecogniserGraph, TextGraph, answers
from hf_vlr.export.parity import BROKEN, difference, parity, warnings_of
from hf_vlr.export.sessions import Session
from hf_vlr.export.tracing import write_onnx

# fast ones run always, the others with -m slow
TOWERS = ("vit", "swin", "focalnet", "resnet", "convnext", "clip_resnet")
TIMM = ("timm_resnet18", "timm_resnet50_clip", "timm_mobilenetv3", "timm_swin")
TEXTS = (("clip", "pooler"), ("clip", "eot"), ("bert", "mean"), ("bert", "cls"), ("text_embedding", "mean"))
BATCH = torch.export.Dim("batch", min=1)


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def exported(graph, path, tiny):
    write_onnx(graph, [tiny.pixel_values(2)], [{0: BATCH}], path, "a tower")
    return Session(path)


def check(graph, session, inputs):
    """Every output of the session is the graph's."""
    found = session.run(**{name: values.numpy() for name, values in zip(graph.inputs, inputs)})
    wanted = answers(graph, inputs)
    assert list(found) == list(wanted) == list(graph.outputs)
    for name, values in wanted.items():
        assert found[name].dtype == np.float32
        assert relative(found[name], values.numpy()) <= 1e-5, name


def test_a_recogniser_with_any_number_of_images(tiny, tmp_path):
    model = tiny.recogniser()
    session = exported(RecogniserGraph(model).eval(), tmp_path / "model.onnx", tiny)
    assert session.inputs == {"pixel_values": ["batch", 3, 32, 32]}
    assert session.outputs == {name: ["batch", 5] for name in ("logits", "visual_logits", "language_logits")}
    for count in (1, 7, 64):
        pixels = tiny.pixel_values(count)
        found = session.run(pixel_values=pixels.numpy())
        with torch.no_grad():
            wanted = model(pixel_values=pixels)
        for name, values in found.items():
            assert relative(values, getattr(wanted, name).numpy()) <= 1e-5
        assert np.abs(np.exp(found["logits"]).sum(1) - 1).max() <= 1e-5
    # attention is as it was
    assert model.vlltr.vision_model.config._attn_implementation == "sdpa"


def test_the_file_says_what_it_is_of_and_nothing_of_the_machine(tiny, tmp_path):
    exported(RecogniserGraph(tiny.recogniser()).eval(), tmp_path / "model.onnx", tiny)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert any(re.fullmatch(r"language/MatMul\.\d+", node.name) for node in graph.node)
    assert all(node.name for node in graph.node)
    assert len({node.name for node in graph.node}) == len(graph.node)
    written = (tmp_path / "model.onnx").read_bytes()
    for trace in (b".py", b"site-packages", b"/home", str(tmp_path).encode(), torch.__file__.encode()):
        assert trace not in written


@pytest.mark.slow
@pytest.mark.parametrize("vision", [*TOWERS, *TIMM])
def test_every_tower(tiny, tmp_path, vision):
    model = tiny.model(vision=vision)
    graph = ImageGraph(model, model.get_image_features).eval()
    session = exported(graph, tmp_path / "model.onnx", tiny)
    for count in (1, 7, 64):
        check(graph, session, [tiny.pixel_values(count)])


@pytest.mark.slow
@pytest.mark.parametrize(("text", "pooling"), TEXTS)
def test_every_text_tower_with_any_number_of_texts_and_tokens(tiny, tmp_path, text, pooling):
    settings = {"text": text if text != "text_embedding" else "clip", "text_pooling": pooling}
    if text == "text_embedding":
        settings["text_config"] = {"model_type": text, "vocab_size": 514, "hidden_size": 32}
    model = tiny.model(**settings)
    graph = TextGraph(model, model.get_text_features, tiny.POSITIONS).eval()
    sizes = {0: BATCH, 1: torch.export.Dim("length", min=1, max=tiny.POSITIONS)}
    write_onnx(graph, list(tiny.texts(3, 12).values()), [sizes, sizes], tmp_path / "text.onnx", "a text tower")
    session = Session(tmp_path / "text.onnx")
    assert session.inputs == {name: ["batch", "length"] for name in ("input_ids", "attention_mask")}
    for count, length in ((1, 5), (7, 12), (3, tiny.POSITIONS)):
        check(graph, session, list(tiny.texts(count, length).values()))


@pytest.mark.slow
def test_class_vectors_become_logits(tiny, tmp_path):
    model = tiny.model()
    vectors = torch.nn.functional.normalize(torch.randn(5, 16), dim=-1)
    graph = ImageGraph(model, model.get_image_features, vectors, 20.0, -3.0).eval()
    session = exported(graph, tmp_path / "model.onnx", tiny)
    pixels = tiny.pixel_values(7)
    check(graph, session, [pixels])
    found = session.run(pixel_values=pixels.numpy())
    with torch.no_grad():
        images = torch.nn.functional.normalize(model.get_image_features(pixels), dim=-1)
    assert relative(found["logits"], (20 * images @ vectors.T - 3).numpy()) <= 1e-5


class Odd(Graph):
    outputs = ("numbers",)

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, pixel_values):
        return (self.change(pixel_values),)


def test_an_operation_that_onnx_lacks_is_named(tiny, tmp_path):
    graph = Odd(lambda pixels: torch.special.bessel_j0(pixels))
    with pytest.raises(UserError, match=r"^a tower cannot be exported to ONNX: .*operation prims::bessel_j0") as caught:
        exported(graph, tmp_path / "model.onnx", tiny)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_graph_that_fixes_the_number_of_images_is_refused(tiny, tmp_path):
    graph = Odd(lambda pixels: pixels.view(2, -1))
    with pytest.raises(UserError, match="a tower cannot be exported to ONNX"):
        exported(graph, tmp_path / "model.onnx", tiny)


def test_parity_finds_the_worst_batch_and_refuses_another_graph(tiny, tmp_path):
    session = exported(Odd(lambda pixels: 2.0 * pixels), tmp_path / "model.onnx", tiny)
    batches = [[tiny.pixel_values(count)] for count in (1, 3)]
    assert parity(Odd(lambda pixels: pixels + pixels), session, batches) == {"numbers": {"max": 0.0, "relative": 0.0}}
    near = parity(Odd(lambda pixels: 2.002 * pixels), session, batches)
    assert near["numbers"]["relative"] == pytest.approx(0.002 / 2.002, rel=1e-3)
    assert near["numbers"]["max"] == pytest.approx(0.002 * tiny.pixel_values(3).abs().max().item(), rel=1e-3)
    assert warnings_of({"model.onnx": near}) == ["model.onnx: numbers differs from torch by 1.0e-03, more than 1e-05"]
    with pytest.raises(UserError, match="computes other numbers than the model"):
        parity(Odd(lambda pixels: (2 + 3 * BROKEN) * pixels), session, batches)
    with pytest.raises(UserError, match="computes other numbers than the model"):
        parity(Odd(lambda pixels: pixels * torch.nan), session, batches)


def test_difference_by_hand():
    found = difference(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]))
    assert found == {"max": 0.5, "relative": 0.1}
    with pytest.raises(UserError, match=r"\(2,\) where the model gives \(3,\)"):
        difference(torch.zeros(2), torch.zeros(3))
