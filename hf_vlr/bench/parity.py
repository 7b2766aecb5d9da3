"""How far two contestants' answers are apart."""

import torch
from torch import Tensor

from hf_vlr.bench.contest import Answers


def parity(ours: Answers, peer: Answers) -> dict[str, float]:
    """max |ours - peer| / max |peer| of every answer that both give, by name.

    Infinite where shapes differ, or where one has a number that is not finite and the other does not.
    """
    return {name: relative_distance(ours[name], peer[name]) for name in ours if name in peer}


def relative_distance(ours: Tensor, peer: Tensor) -> float:
    """max |a - b| / max |b|, over what is finite in both; 0 for equal answers, also where all are 0."""
    if ours.shape != peer.shape:
        return float("inf")
    a, b = ours.detach().double().cpu(), peer.detach().double().cpu()
    finite = a.isfinite() & b.isfinite()
    if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return float("inf")
    if not finite.any():
        return 0.0
    apart, size = (a - b)[finite].abs().max().item(), b[finite].abs().max().item()
    return apart / size if size else (float("inf") if apart else 0.0)
