"""What a machine can do at best: products of matrices and reading of memory, measured."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hf_vlr.bench.contest import Roof
from hf_vlr.hardware import chip, generation
from hf_vlr.modeling.products import inner_products
from hf_vlr.timing import Turns, in_turns

# sides of the matrices and bytes of the vector: they fill the units, and no cache holds the vector
SIDE = {"cpu": 2048, "cuda": 8192}
BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}


@dataclass(frozen=True)
class Rates:
    """In a second: floating-point operations of a product of matrices in a dtype, and bytes read from memory."""

    flops: float
    bytes: float

    def seconds(self, roof: Roof) -> float:
        """The least time of a piece of work: arithmetic and reading may overlap."""
        return max(roof.flop / self.flops, roof.bytes / self.bytes)


def measure_rates(device: torch.device, dtype: str) -> Rates:
    """The best of ten, so that what else the machine does lowers no roof."""
    side, kind = SIDE[device.type], getattr(torch, dtype)
    matrix = torch.ones(side, side, dtype=kind, device=device)
    product = torch.empty_like(matrix)
    vector = torch.zeros(BYTES[device.type] // 4, device=device)
    with torch.inference_mode():
        seconds = _best(lambda: torch.mm(matrix, matrix, out=product))
        # the faster of the two libraries that torch has on a CPU: a roof is what the machine can do
        seconds = min(seconds, _best(lambda: inner_products(matrix, matrix)))
        reading = _best(vector.sum)
    return Rates(2.0 * side**3 / seconds, BYTES[device.type] / reading)


def hardware(device: torch.device) -> dict[str, str | int]:
    """What a result belongs to."""
    found = {"chip": chip(device), "device": device.type, "cores": len(os.sched_getaffinity(0))}
    return found if device.type == "cuda" else {**found, "generation": generation()}


def hardware_name(found: dict[str, str | int]) -> str:
    """`amd-epyc-2-cores` or `nvidia-h200`: a file's name."""
    words = re.sub(r"\b(processor|cpu|\(r\)|\(tm\))|@.*", "", str(found["chip"]).lower())
    slug = re.sub(r"[^a-z0-9]+", "-", words).strip("-")
    return slug if found["device"] == "cuda" else f"{slug}-{found['cores']}-cores"


def _best(call: Callable[[], object]) -> float:
    return in_turns({"": call}, Turns(runs=10, warmup=2))[""].best
