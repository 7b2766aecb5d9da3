"""From a module to an ONNX file whose number of images, or of texts and tokens, is open."""

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_vlr.errors import UserError, first_line
from hf_vlr.export.graphs import Graph

# what every onnxruntime since 1.17 reads
OPSET = 20
# a protocol buffer ends at 2 GiB; beyond this the weights lie in a file beside it
ONE_FILE_BYTES = 3 << 29
# what torch's exporter and its converters raise
UNTRACEABLE = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
OPERATION = re.compile(r"\b(aten|prims|torchvision|quantized|timm)(?:::|\.)(\w+)")

# sizes that are open, by dimension of an input
Dynamic = Mapping[int, Any]


def write_onnx(graph: Graph, examples: Sequence[Tensor], dynamic: Sequence[Dynamic], path: Path, name: str) -> None:
    """Trace `graph` on `examples` and write it to `path`, sizes in `dynamic` open, and nothing of this machine in it.

    A node is called after the module that it comes from, as in `language/MatMul.3`. Raises `UserError` with `name` and
    the operation for a graph that cannot be exported with open sizes.
    """
    with quiet(), plain_attention(graph), torch.no_grad():
        try:
            program = trace(graph, tuple(examples), tuple(dynamic))
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=tuple(dynamic),
                verbose=False,
            )
        except UNTRACEABLE as error:
            raise UserError(f"{name} cannot be exported to ONNX: {cause_of(error)}") from error
        name_nodes(made.model)
        made.save(str(path), external_data=weight_bytes(graph) > ONE_FILE_BYTES)


def trace(graph: Graph, examples: tuple[Tensor, ...], dynamic: tuple[Dynamic, ...]) -> torch.export.ExportedProgram:
    """The graph as a program, sizes in `dynamic` open; raises what torch's exporter raises."""
    try:
        return torch.export.export(graph, examples, dynamic_shapes=dynamic, strict=False)
    except UNTRACEABLE as error:
        # reading Python's bytecode keeps sizes open that running it would fix, such as the len() of a tensor
        try:
            return torch.export.export(graph, examples, dynamic_shapes=dynamic, strict=True)
        except UNTRACEABLE:
            raise error from None


def cause_of(error: BaseException) -> str:
    """The operation that an export failed at, with the reason where one is given; in one line."""
    chain = []
    found: BaseException | None = error
    while found is not None:
        chain.append(found)
        found = found.__cause__ or found.__context__
    reason = next((first_line(one) for one in reversed(chain) if str(one).strip()), type(error).__name__)
    operation = next((match for one in reversed(chain) if (match := OPERATION.search(str(one)))), None)
    if operation is None:
        return reason
    return f"the operation {operation[1]}::{operation[2]} ({reason})"


def name_nodes(model: Any) -> None:
    """Call nodes by module and kind, and drop the exporter's records, which hold paths and lines of code."""
    for index, node in enumerate(model.graph.all_nodes()):
        scopes = node.metadata_props.get("namespace", "").split("/")
        module = scopes[-2].partition(":")[0].strip() if len(scopes) > 1 else ""
        node.name = f"{module}/{node.op_type}.{index}".lstrip("/")
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


def weight_bytes(graph: Graph) -> int:
    """What the weights and constants of a graph take."""
    return sum(tensor.nbytes for tensor in (*graph.parameters(), *graph.buffers()))


@contextmanager
def plain_attention(graph: Graph) -> Iterator[None]:
    """Attention written out, which is what ONNX has; afterwards as before."""
    changed = []
    for module in graph.modules():
        config = module.config if isinstance(module, PreTrainedModel) else None
        if config is not None and config._attn_implementation == "sdpa":
            changed.append(config)
            config._attn_implementation = "eager"
    try:
        yield
    finally:
        for config in changed:
            config._attn_implementation = "sdpa"


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress, advice and warnings of exporters and quantisers, which are for their developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
