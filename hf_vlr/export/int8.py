"""An int8 model out of a float32 one, by onnxruntime's quantisers.

Weights of convolutions and linear maps are int8, with a scale for each output channel. What they multiply becomes
uint8, with a scale that is either found for every image when it is there (*dynamic*) or was found once on training
images (*static*, as pairs of QuantizeLinear and DequantizeLinear). Everything between them stays float32, and so do
products with a stack of matrices, such as the head's with the anchors' inner products. What a product gives is measured
behind the ReLU or the clipping that follows it: before it, most of the 256 steps would be spent on what is cut off.

onnxruntime has no fast dynamic convolution, and transformers lose more by a fixed scale than they gain in time: a tower
that is mostly convolutions gets a static model, any other a dynamic one, unless it is said otherwise.
"""

import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from hf_vlr.data.source import ImageSource
from hf_vlr.data.transforms import read_for
from hf_vlr.errors import UserError, first_line
from hf_vlr.export.tracing import ONE_FILE_BYTES, quiet
from hf_vlr.features import Transform
from hf_vlr.randomness import numpy_generator

Pixels = npt.NDArray[np.float32]
PRODUCTS = ("MatMul", "Gemm")
# what a quantised product takes in
CUTS = ("Relu", "Clip")
CALIBRATION_BATCH = 16


def fitting_kind(path: Path) -> str:
    """ "static" for a model whose weights are mostly those of convolutions, else "dynamic"."""
    weights = _weights_by_operation(path)
    return "static" if weights["Conv"] > weights["MatMul"] + weights["Gemm"] else "dynamic"


def surely_static(graph: nn.Module) -> bool:
    """Whether `fitting_kind` is "static" whatever else is in the file, seen before anything is written.

    The products' weights are counted from above: every parameter and buffer outside the text tower with one dimension
    or more that is no filter of a convolution. Where that is too many, `fitting_kind` decides.
    """
    sizes = {True: 0, False: 0}
    for name, tensor in chain(graph.named_parameters(), graph.named_buffers()):
        if not {"text_model", "text_projection", "language"}.intersection(name.split(".")):
            sizes[tensor.ndim == 4] += tensor.numel()
    return sizes[True] > sizes[False]


def quantise(source: Path, target: Path, kind: str, calibration: Iterable[Pixels], *, reduce_range: bool) -> None:
    """Write the int8 model of `source` to `target`.

    kind: "static" or "dynamic". calibration: batches of pixels [B, 3, S, S], read for a static one alone.
    reduce_range: weights in 7 bits. Raises `UserError` for a model that the quantiser refuses.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    large = sum(file.stat().st_size for file in source.parent.glob(f"{source.name}*")) > ONE_FILE_BYTES
    shared = {
        "per_channel": True,
        "reduce_range": reduce_range,
        "weight_type": QuantType.QInt8,
        "nodes_to_exclude": left_in_float32(source),
        "use_external_data_format": large,
    }
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".int8-") as folder, quiet():
        prepared = Path(folder) / "prepared.onnx"
        try:
            # its symbolic shapes are of another exporter's graphs
            quant_pre_process(source, prepared, skip_symbolic_shape=True, save_as_external_data=large)
            if kind == "dynamic":
                quantize_dynamic(prepared, target, op_types_to_quantize=list(PRODUCTS), **shared)
            else:
                quantize_static(
                    prepared,
                    target,
                    _reader(calibration),
                    quant_format=QuantFormat.QDQ,
                    activation_type=QuantType.QUInt8,
                    op_types_to_quantize=["Conv", *PRODUCTS, *CUTS],
                    # a product of two activations would lose the precision of both
                    extra_options={"MatMulConstBOnly": True},
                    **shared,
                )
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            raise UserError(f"{source.name} cannot be made int8: {first_line(error)}") from error


def calibration_batches(source: ImageSource, transform: Transform, images: int, seed: int = 0) -> Iterator[Pixels]:
    """Pixels of `images` training images, drawn by the seed, all classes as evenly as their numbers allow.

    Raises `UserError` for any split but the training split.
    """
    if source.split != "train":
        raise UserError(f"an int8 model is calibrated on the training split, not on {source.split}")
    rows = even_rows(source.labels, images, seed)
    for start in range(0, len(rows), CALIBRATION_BATCH):
        part = rows[start : start + CALIBRATION_BATCH].tolist()
        pixels = [np.asarray(transform(read_for(transform, source.images, row))) for row in part]
        yield np.stack(pixels).astype(np.float32)


def even_rows(labels: npt.NDArray[np.int64], count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """`count` rows (all, if there are fewer): one of every class, then a second one of every class, and so on."""
    order = numpy_generator(seed, 0, 0, "calibration").permutation(len(labels))
    taken: dict[int, int] = {}
    turn = np.empty(len(labels), dtype=np.int64)
    for place, row in enumerate(order.tolist()):
        label = int(labels[row])
        turn[place] = taken[label] = taken.get(label, -1) + 1
    return order[np.argsort(turn, kind="stable")][:count]


def _reader(batches: Iterable[Pixels]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, Pixels] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"pixel_values": batch}

    return Reader()


def _weights_by_operation(path: Path) -> dict[str, int]:
    """Numbers that convolutions and products hold."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    sizes = {one.name: int(np.prod(one.dims)) for one in graph.initializer}
    found = dict.fromkeys(("Conv", *PRODUCTS), 0)
    for node in graph.node:
        if node.op_type in found and not node.name.startswith("language/"):
            found[node.op_type] += sizes.get(node.input[1], 0)
    return found


def left_in_float32(path: Path) -> list[str]:
    """Names of the operations that are not quantised, though others of their kind are.

    Products with a constant of more than two dimensions, which the quantiser does not know, and ReLUs and clippings of
    anything but a product.
    """
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    stacked = {one.name for one in graph.initializer if len(one.dims) > 2}
    products = {node.output[0] for node in graph.node if node.op_type in ("Conv", *PRODUCTS)}
    return [
        node.name
        for node in graph.node
        if (node.op_type == "MatMul" and stacked.intersection(node.input))
        or (node.op_type in CUTS and node.input[0] not in products)
    ]
