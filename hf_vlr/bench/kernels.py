"""Contestants once more through the Triton kernels, which compute where they are asked to alone."""

from collections.abc import Callable
from dataclasses import replace

import torch

from hf_vlr.bench.contest import Answers, Contestant
from hf_vlr.bench.setting import Setting
from hf_vlr.modeling.backend import kernels_for, use_backend


def with_kernels(contestant: Contestant, setting: Setting) -> list[Contestant]:
    """A contestant of this package in plain torch, and behind it the same through kernels where the device has them."""
    with use_backend("auto"):
        if kernels_for(torch.empty(0, device=setting.device)) is None:
            return [contestant]
    return [contestant, replace(contestant, name=f"{contestant.name}, kernels", call=through_kernels(contestant.call))]


def through_kernels(call: Callable[[], Answers]) -> Callable[[], Answers]:
    """The same call, computed by kernels where they can run; its backward pass as well."""

    def asking() -> Answers:
        with use_backend("auto"):
            return call()

    return asking
