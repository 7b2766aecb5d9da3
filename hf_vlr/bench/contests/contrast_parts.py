"""Line 1, taken apart: what a step of the contrast spends on products, on exponentials and on the rest.

The roof of line 1 knows products alone. What they take by themselves says how much of the shortfall is theirs.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

from hf_vlr.bench.contest import Study
from hf_vlr.bench.contests.contrast import DISTINCT_LABELLED, OURS
from hf_vlr.bench.machine import measure_rates
from hf_vlr.bench.setting import Setting

PRODUCTS, EXPONENTIALS, REST = "products", "exponentials", "rest"
# operations of torch by what they compute; all others are the rest
KINDS = {
    "aten::mkldnn_convolution": PRODUCTS,
    "aten::convolution_backward": PRODUCTS,
    "aten::mm": PRODUCTS,
    "aten::addmm": PRODUCTS,
    "aten::exp": EXPONENTIALS,
    "aten::exp_": EXPONENTIALS,
}


def seconds_by_kind(call: Callable[[], object], runs: int) -> dict[str, float]:
    """Seconds of one call by kind of operation, the mean of `runs` after one that is not counted.

    What an operation calls in turn counts for that alone, so that the kinds add up to the whole.
    """
    call()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(runs):
            call()
    found = Counter({PRODUCTS: 0.0, EXPONENTIALS: 0.0, REST: 0.0})
    for operation in profiler.key_averages():
        found[KINDS.get(operation.key, REST)] += operation.self_cpu_time_total / 1e6 / runs
    return dict(found)


def _measure(setting: Setting) -> dict[str, Any]:
    ours = next(one for one in DISTINCT_LABELLED.enter(setting) if one.name == OURS)
    found = seconds_by_kind(ours.call, setting["runs"])
    roof = measure_rates(setting.device, "float32").seconds(DISTINCT_LABELLED.roof(setting))
    whole = sum(found.values())
    told = ", ".join(f"{kind} {1e3 * seconds:.0f} ms" for kind, seconds in found.items())
    line = (
        f"{told}: products alone are at {roof / found[PRODUCTS]:.0%} of the roof ({1e3 * roof:.0f} ms), "
        f"with exponentials at {roof / (found[PRODUCTS] + found[EXPONENTIALS]):.0%}, the whole at {roof / whole:.0%}"
    )
    return {"lines": [line], "numbers": {**found, "roof": roof}, "goals": []}


PARTS = Study(
    name="contrast-parts",
    row=1,
    title="contrast with labels, N = {pairs}, D = {width}: where the seconds go",
    sizes={scale: {**DISTINCT_LABELLED.sizes[scale], "runs": 8} for scale in ("full", "quick")},
    measure=_measure,
    devices=("cpu",),
)
