"""How far an exported graph is from the model it was made of."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_vlr.errors import UserError
from hf_vlr.export.graphs import Graph, answers
from hf_vlr.export.sessions import Session

# of float32 sums in another order
TOLERANCE = 1e-5
# of an export that computes something else
BROKEN = 1e-2
# one image, and a number that nobody would fix a graph to
BATCHES = (1, 7)


def parity(graph: Graph, session: Session, batches: Iterable[Sequence[Tensor]]) -> dict[str, dict[str, float]]:
    """By output `max`, max |a − b|, and `relative`, ‖a − b‖ / ‖b‖, a by onnxruntime and b by torch: the worst batch's.

    `batches` are inputs of the graph, of different sizes. Raises `UserError` for a session whose answers are not those
    of the graph.
    """
    worst = {name: {"max": 0.0, "relative": 0.0} for name in graph.outputs}
    for inputs in batches:
        wanted = answers(graph, inputs)
        found = session.run(**{name: values.numpy() for name, values in zip(graph.inputs, inputs, strict=True)})
        for name, value in wanted.items():
            errors = difference(torch.from_numpy(found[name]), value)
            worst[name] = {kind: max(errors[kind], worst[name][kind]) for kind in errors}
    broken = [name for name, errors in worst.items() if not errors["relative"] <= BROKEN]
    if broken:
        error = worst[broken[0]]["relative"]
        raise UserError(f"the exported graph computes other {broken[0]} than the model (relative error {error:.1e})")
    return worst


def difference(found: Tensor, wanted: Tensor) -> dict[str, float]:
    """`max` and `relative` of one output."""
    if found.shape != wanted.shape:
        raise UserError(f"the exported graph gives {tuple(found.shape)} where the model gives {tuple(wanted.shape)}")
    gap = found.double() - wanted.double()
    return {"max": gap.abs().max().item(), "relative": (gap.norm() / wanted.double().norm()).item()}


def random_images(count: int, size: int) -> Tensor:
    """Normalised pixels [count, 3, size, size] of noise, always the same."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def warnings_of(parities: dict[str, dict[str, Any]]) -> list[str]:
    """What a reader should know of outputs beyond `TOLERANCE`, by file."""
    return [
        f"{file}: {name} differs from torch by {errors['relative']:.1e}, more than {TOLERANCE:.0e}"
        for file, outputs in parities.items()
        for name, errors in outputs.items()
        if errors["relative"] > TOLERANCE
    ]
