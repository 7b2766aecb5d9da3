"""Contestants through the kernels: beside the plain ones where a device has kernels, and nowhere else."""

import pytest
import torch

from hf_vlr.bench.contest import Contestant
from hf_vlr.bench.contests import contrast, recognition
from hf_vlr.bench.kernels import through_kernels, with_kernels
from hf_vlr.bench.parity import parity
from hf_vlr.bench.setting import Setting
from hf_vlr.modeling import backend

CPU = Setting(torch.device("cpu"), 1, {}, "quick")
CONTESTS = (
    contrast.DISTINCT_LABELLED,
    contrast.PROMPTED_LABELLED,
    recognition.IMAGENET_TRAINING,
    recognition.ONE_IMAGE,
)


def test_a_cpu_has_no_kernels():
    plain = Contestant("ours", dict, ours=True)
    assert with_kernels(plain, CPU) == [plain]


def test_a_call_asks_for_kernels_and_what_follows_does_not():
    assert through_kernels(lambda: {"asked": backend._BACKEND.get()})() == {"asked": "auto"}
    assert backend._BACKEND.get() == "torch"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("contest", CONTESTS, ids=lambda contest: contest.name)
def test_kernels_give_the_same_answers(contest):
    setting = Setting(torch.device("cuda"), 1, contest.sizes["quick"], "quick")
    plain, kernels = [one for one in contest.enter(setting) if one.ours and one.dtype == "float32"]
    assert kernels.name == f"{plain.name}, kernels" and kernels.measures_memory == plain.measures_memory
    assert max(parity(kernels.call(), plain.call()).values()) < 1e-4
