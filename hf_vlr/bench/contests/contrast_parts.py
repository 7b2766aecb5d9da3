"""Line 1, taken apart: what a step of the contrast spends on products, on exponentials and on the rest.

The roof of line 1 knows products alone. What they take by themselves says how much of the shortfall is theirs.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_vlr.bench.contest import Study
from hf_vlr.bench.contests.contrast import DISTINCT_LABELLED, OURS
from hf_vlr.bench.machine import measure_rates
from hf_vlr.bench.setting import Setting
from hf_vlr.timing import Turns, in_turns

PRODUCTS, EXPONENTIALS, PASSES, REST = "products", "exponentials", "sums and factors", "rest"
# operations of torch by what they compute; all others are the rest
KINDS = {
    torch.ops.aten.convolution: PRODUCTS,
    torch.ops.aten.convolution_backward: PRODUCTS,
    torch.ops.aten.mm: PRODUCTS,
    torch.ops.aten.addmm: PRODUCTS,
    torch.ops.aten.exp: EXPONENTIALS,
    torch.ops.aten.exp_: EXPONENTIALS,
    torch.ops.aten.sum: PASSES,
    torch.ops.aten.mv: PASSES,
    torch.ops.aten.addcmul: PASSES,
    torch.ops.aten.mul_: PASSES,
}


class _Watch(TorchDispatchMode):
    """Adds up the seconds of operations by kind, on a processor, where they end before they return."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = dict.fromkeys((PRODUCTS, EXPONENTIALS, PASSES), 0.0)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        found = function(*args, **(kwargs or {}))
        kind = KINDS.get(function.overloadpacket)
        if kind is not None:
            self.seconds[kind] += time.perf_counter() - start
        return found


def seconds_by_kind(call: Callable[[], object], runs: int) -> dict[str, float]:
    """Seconds of one call: the means of what has a kind, and what its median has beside them, the rest."""
    whole = in_turns({"": call}, Turns(runs=runs))[""].median
    with _Watch() as watch:
        for _ in range(runs):
            call()
    known = {kind: seconds / runs for kind, seconds in watch.seconds.items()}
    return {**known, REST: max(0.0, whole - sum(known.values()))}


def _measure(setting: Setting) -> dict[str, Any]:
    ours = next(one for one in DISTINCT_LABELLED.enter(setting) if one.name == OURS)
    found = seconds_by_kind(ours.call, setting["runs"])
    roof = measure_rates(setting.device, "float32").seconds(DISTINCT_LABELLED.roof(setting))
    whole = sum(found.values())
    told = ", ".join(f"{kind} {1e3 * seconds:.0f} ms" for kind, seconds in found.items())
    line = (
        f"{told}: products alone are at {roof / found[PRODUCTS]:.0%} of the roof ({1e3 * roof:.0f} ms), "
        f"with exponentials at {roof / (found[PRODUCTS] + found[EXPONENTIALS]):.0%}, with sums and factors at "
        f"{roof / (whole - found[REST]):.0%}, the whole at {roof / whole:.0%}"
    )
    return {"lines": [line], "numbers": {**found, "roof": roof}, "goals": []}


PARTS = Study(
    name="contrast-parts",
    row=1,
    title="contrast with labels, N = {pairs}, D = {width}: where the seconds go",
    sizes={scale: {**DISTINCT_LABELLED.sizes[scale], "runs": 8} for scale in ("full", "quick")},
    measure=_measure,
    devices=("cpu",),
    note="sums and factors: of tiles, beside their exponentials; the rest: vectors normalised, their gradients, memory",
)
