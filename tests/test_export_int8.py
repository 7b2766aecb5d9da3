"""Which images calibrate, which kind of int8 fits, and what a change of predictions is called."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.evaluation.predictions import Predictions
from hf_vlr.export.accuracy import agreement, falls_of
from hf_vlr.export.graphs import RecogniserGraph
from hf_vlr.export.int8 import calibration_batches, even_rows, fitting_kind, left_in_float32, quantise, surely_static
from hf_vlr.export.options import export_options
from hf_vlr.export.sessions import Session
from hf_vlr.export.tracing import write_onnx


def write_model(path, channels, width):
    """A convolution with `channels` 3x3 filters, its mean over positions, and a product of channels by `width`."""
    rng = np.random.default_rng(0)
    weights = {
        "filters": rng.normal(size=(channels, 3, 3, 3)),
        "matrix": rng.normal(size=(channels, width)),
        "axes": np.array([2, 3]),
    }
    kinds = {"filters": np.float32, "matrix": np.float32, "axes": np.int64}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["pixel_values", "filters"], ["maps"], name="conv"),
            helper.make_node("ReduceMean", ["maps", "axes"], ["pooled"], keepdims=0, name="mean"),
            helper.make_node("MatMul", ["pooled", "matrix"], ["logits"], name="product"),
        ],
        "small",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(values.astype(kinds[name]), name) for name, values in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_the_kind_follows_where_the_weights_are(tmp_path):
    assert fitting_kind(write_model(tmp_path / "a.onnx", channels=16, width=4)) == "static"
    assert fitting_kind(write_model(tmp_path / "b.onnx", channels=16, width=400)) == "dynamic"


def test_a_tower_of_convolutions_is_seen_before_it_is_written(tiny, tmp_path):
    """What is seen early is what the file says; of what is not sure the file decides."""
    graph, path = RecogniserGraph(tiny.recogniser(vision="resnet")).eval(), tmp_path / "model.onnx"
    images = [torch.randn(2, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)]
    write_onnx(graph, images, [{0: torch.export.Dim("batch")}], path, "resnet")
    assert surely_static(graph) and fitting_kind(path) == "static"
    assert not surely_static(RecogniserGraph(tiny.recogniser(vision="swin")))


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_int8_answers_nearly_alike(tmp_path, kind):
    source = write_model(tmp_path / "a.onnx", channels=32, width=64)
    batches = [np.random.default_rng(seed).normal(size=(4, 3, 8, 8)).astype(np.float32) for seed in range(4)]
    quantise(source, tmp_path / "b.onnx", kind, batches, reduce_range=False)
    exact, rough = (Session(path).run(pixel_values=batches[0])["logits"] for path in (source, tmp_path / "b.onnx"))
    assert 0 < np.linalg.norm(exact - rough) / np.linalg.norm(exact) < 0.05
    stored = {one.name: one for one in onnx.load(tmp_path / "b.onnx").graph.initializer}
    quantised = {name for name, one in stored.items() if one.data_type == TensorProto.INT8 and len(one.dims) > 1}
    assert len(quantised) == (2 if kind == "static" else 1)
    scales = [one.dims for name, one in stored.items() if name.endswith("scale") and list(one.dims) not in ([], [1])]
    # a scale for each output channel
    assert [64] in [list(dims) for dims in scales]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_what_is_measured_is_what_is_left_of_a_product(tmp_path):
    """A convolution between -30 and 30 that is clipped to 0 … 6 has its 256 steps there."""
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["pixel_values", "filters"], ["maps"], name="conv"),
            helper.make_node("Clip", ["maps", "low", "high"], ["cut"], name="clip"),
            helper.make_node("Conv", ["cut", "mixing"], ["mixed"], name="mix"),
            helper.make_node("Abs", ["mixed"], ["size"], name="abs"),
            helper.make_node("Clip", ["size", "low", "high"], ["logits"], name="loose"),
        ],
        "clipped",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4, 8, 8])],
        [
            numpy_helper.from_array(rng.normal(size=(8, 3, 1, 1)).astype(np.float32) * 6, "filters"),
            numpy_helper.from_array(rng.normal(size=(4, 8, 1, 1)).astype(np.float32), "mixing"),
            numpy_helper.from_array(np.float32(0), "low"),
            numpy_helper.from_array(np.float32(6), "high"),
        ],
    )
    source = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), source)
    assert left_in_float32(source) == ["loose"]
    batches = [rng.normal(size=(4, 3, 8, 8)).astype(np.float32) for _ in range(4)]
    quantise(source, tmp_path / "b.onnx", "static", batches, reduce_range=False)
    stored = onnx.load(tmp_path / "b.onnx").graph
    scales = {one.name: numpy_helper.to_array(one) for one in stored.initializer}
    behind = [scales[node.input[1]] for node in stored.node if node.op_type == "QuantizeLinear"]
    assert np.isclose(behind, 6 / 255, rtol=1e-3).any()
    assert [node.name for node in stored.node if node.op_type == "Clip"] == ["loose"]


def test_calibration_takes_of_every_class_before_it_takes_more():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 10)
    counts = np.bincount(labels[even_rows(labels, 15)], minlength=3)
    assert counts.tolist() == [6, 3, 6]
    assert sorted(even_rows(labels, 1000).tolist()) == list(range(63))
    assert even_rows(labels, 15).tolist() == even_rows(labels, 15).tolist() != even_rows(labels, 15, seed=1).tolist()


def test_calibration_reads_training_images_alone(tiny):
    def source(split):
        pictures = [tiny.picture(seed) for seed in range(20)]
        return ImageSource("some", split, pictures, np.arange(20) % 4, [None] * 20, list("abcd"))

    batches = list(calibration_batches(source("train"), lambda picture: np.asarray(picture.resize((4, 4))), 18))
    assert [len(batch) for batch in batches] == [16, 2]
    with pytest.raises(UserError, match="training split, not on test"):
        next(calibration_batches(source("test"), np.asarray, 4))


def test_agreement_and_falls_by_hand():
    labels = np.array([0, 0, 1, 1])
    scores = {"fused float32": np.eye(2)[[0, 0, 1, 0]], "fused int8": np.eye(2)[[1, 1, 1, 1]]}
    found = agreement(Predictions(scores, labels, np.array([5, 5]), ("a", "b")), "fused")
    assert found == {"share": 0.25, "gained": 1, "lost": 2}
    entries = {
        "fused float32": {"accuracy": 0.75, "balanced_accuracy": 0.75},
        "fused int8": {"accuracy": 0.74, "balanced_accuracy": 0.5},
    }
    assert falls_of(entries, "fused", 0.02) == {"balanced_accuracy": 0.25}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"int8.kind": "small"}, "int8.kind=small is unknown"),
        ({"int8.images": 0}, "int8.images=0"),
        ({"int8.margin": 2}, "int8.margin=2"),
        ({"int8.reduce_range": 1}, "int8.reduce_range=1"),
        ({"latency.threads": 0}, "latency.threads=0"),
        ({"latency.threads": True}, "latency.threads=True: give a whole number from 1"),
        ({"latency.runs": True}, "latency.runs=True: give a whole number from 1"),
        ({"latency.runs": 2.5}, "latency.runs=2.5: give a whole number from 1"),
        ({"int8.images": True}, "int8.images=True: give a whole number from 1"),
        ({"latency.run": 3}, "there is no setting latency.run"),
    ],
)
def test_settings_out_of_range_are_named(words, said):
    with pytest.raises(UserError, match=said):
        export_options(words)
