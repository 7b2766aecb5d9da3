"""Which backend computes: asked for by a block, decided in the forward pass, and never imported in vain."""

import subprocess
import sys
import threading

import pytest
import torch

from hf_vlr.modeling.backend import kernels_for, use_backend
from hf_vlr.modeling.contrastive import clip_loss
from hf_vlr.modeling.recognition import language_guided_logits


def test_a_tensor_on_the_cpu_is_computed_by_torch() -> None:
    for name in ("auto", "torch"):
        with use_backend(name):
            assert kernels_for(torch.ones(2)) is None


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.ones(2), "this tensor is on cpu, not on cuda"),
        (torch.ones(2, dtype=torch.float64), "float32 or bfloat16, not in float64"),
        (torch.ones(2, device="meta"), "this tensor is on meta"),
    ],
)
def test_kernels_that_cannot_run_say_why(monkeypatch, tensor: torch.Tensor, reason: str) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with use_backend("triton"), pytest.raises(RuntimeError, match=f"Triton kernels were asked for, but .*{reason}"):
        kernels_for(tensor)


def test_the_losses_ask_for_a_backend(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    vectors, weight, bias = torch.ones(2, 4), torch.eye(4), torch.ones(4)
    mask = torch.ones(3, 2, dtype=torch.bool)
    with use_backend("triton"):
        with pytest.raises(RuntimeError, match="asked for"):
            clip_loss(vectors, vectors, torch.tensor(5.0))
        with pytest.raises(RuntimeError, match="asked for"):
            language_guided_logits(
                vectors, torch.ones(3, 2, 4), mask, weight, weight, bias, bias, bias, bias, torch.tensor(5.0)
            )


def test_blocks_nest_and_end_with_an_error() -> None:
    def forced() -> bool:
        try:
            return kernels_for(torch.ones(2, dtype=torch.float64)) is not None
        except RuntimeError:
            return True

    with use_backend("triton"):
        with use_backend("torch"):
            assert not forced()
        assert forced()
    with pytest.raises(KeyError), use_backend("triton"):
        raise KeyError
    assert not forced()


def test_other_threads_are_not_concerned() -> None:
    found = []
    with use_backend("triton"):
        thread = threading.Thread(target=lambda: found.append(kernels_for(torch.ones(2))))
        thread.start()
        thread.join()
    assert found == [None]


def test_another_name_is_named() -> None:
    with pytest.raises(ValueError, match="one of auto, torch, triton; got 'cuda'"), use_backend("cuda"):
        pass


def test_a_traced_graph_is_plain_torch() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        with use_backend("torch"):
            return x if kernels_for(x) is None else -x

    traced = torch.compile(lambda x: x if kernels_for(x) is None else -x, backend="eager", fullgraph=True)
    with use_backend("triton"):
        assert traced(torch.ones(2)).sum() == 2
    assert function(torch.ones(2)).sum() == 2


def test_triton_is_not_imported_before_it_is_needed() -> None:
    script = (
        "import sys, torch, hf_vlr.modeling.contrastive as c, hf_vlr.modeling.recognition;"
        "c.clip_loss(torch.ones(2, 3), torch.ones(2, 3), torch.tensor(2.0));"
        "print([name for name in ('triton', 'hf_vlr.kernels') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_the_package_there_are_no_kernels(monkeypatch) -> None:
    """As where the code was loaded from the Hub alone."""
    from hf_vlr.modeling import backend

    monkeypatch.setitem(sys.modules, "hf_vlr.kernels", None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    backend._kernels.cache_clear()
    try:
        with use_backend("triton"), pytest.raises(RuntimeError, match=r"hf_vlr\.kernels or Triton is not installed"):
            kernels_for(torch.ones(2))
    finally:
        backend._kernels.cache_clear()
