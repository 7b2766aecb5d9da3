"""The kernels where there is no GPU: run by Triton's interpreter, and compiled ahead of time for GPUs."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from packaging.version import Version

triton = pytest.importorskip("triton", reason="Triton is not installed")
HERE = Path(__file__).parent
FLOATS, SHORTS = "*fp32", "*bf16"
CONTRAST = ("queries", "keys", "multiplicity", "weights")
# what a block may have of a multiprocessor's shared memory: the least of 8.x (GeForce), and Hopper
SHARED_BYTES = {80: 101376, 90: 232448}


def test_parity_in_the_interpreter() -> None:
    """A process of its own: Triton reads the switch when it is imported, and kernels stay what they were made as."""
    if Version(triton.__version__) < Version("3.9") and Version(numpy.__version__) >= Version("2.4"):
        pytest.skip("Triton's interpreter before 3.9 may not loop under NumPy 2.4 or later: install numpy<2.4")
    tests = [str(HERE / f"test_kernels_{name}.py") for name in ("contrast", "recognition")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


def compiled(kernel: Any, capability: int, short: tuple[str, ...], constants: dict[str, Any], warps: int) -> Any:
    """The kernel as it is launched on tensors whose sizes are multiples of 16; `short`: its bfloat16 arguments."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    counts = ("_count", "_row", "_inner", "_part")
    signature, values, aligned = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[place,] = "constexpr", constants[name]
            continue
        signature[name] = "i32" if name == "width" or name.endswith(counts) else SHORTS if name in short else FLOATS
        aligned[place,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, values, aligned)
    options = {"num_warps": warps, "num_stages": 3}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def contrast_cases(capability: int) -> list[tuple]:
    import triton.language as tl

    from hf_vlr.kernels import contrast, products

    cases = []
    for low, operand in ((True, tl.bfloat16), (False, tl.float32)):
        edges = {"BLOCK_ROWS": 128, "BLOCK_COLUMNS": 128 if low or capability == 90 else 64}
        constants = {**edges, "BLOCK_WIDTH": 64 if low else 32, "OPERAND": operand}
        short = CONTRAST if low else ()
        cases += [(kernel, short, constants, 8) for kernel in (contrast.sums_kernel, contrast.weights_kernel)]
        constants = {**edges, "BLOCK_INNER": 64 if low else 32, "OPERAND": operand, "ADD": True}
        for contiguous in ("left_inner", "left_row"):
            chosen = {**constants, contiguous: 1}
            cases.append((products.product_kernel, ("left", "right") if low else (), chosen, 8))
    return cases


def recognition_cases(capability: int) -> list[tuple]:
    import triton.language as tl

    from hf_vlr.kernels import recognition

    cases = []
    for sentences, images in ((16, 16), (64, 64), (128, 32)):
        warps = 4 if sentences == 16 or (sentences == 64 and capability == 90) else 8
        constants = {"BLOCK_SENTENCES": sentences, "BLOCK_IMAGES": images, "BLOCK_WIDTH": 32}
        constants |= {"image_count": 1} if images == 16 else {}
        exact = {**constants, "OPERAND": tl.float32}
        cases.append((recognition.cosines_kernel, (), exact, warps))
        cases.append((recognition.cosines_kernel, ("anchors",), exact, warps))
        cases.append((recognition.cosines_kernel, ("anchors", "stacked"), {**constants, "OPERAND": tl.bfloat16}, warps))
        cases.append((recognition.gradient_kernel, (), {**exact, "DETACH_NORM": False}, warps))
        cases.append((recognition.gradient_kernel, ("anchors",), {**exact, "DETACH_NORM": True}, warps))
    return cases


@pytest.mark.slow
@pytest.mark.parametrize("cases", [contrast_cases, recognition_cases])
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_they_compile_for_tensor_cores_within_shared_memory(cases, capability: int, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel, short, constants, warps in cases(capability):
        made = compiled(kernel, capability, short, constants, warps)
        name = f"{kernel.__name__} {constants}"
        assert made.metadata.shared <= SHARED_BYTES[capability], name
        # Hopper's own products take 64 rows at least
        wide = constants.get("BLOCK_SENTENCES", 128) >= 64
        assert ("wgmma.mma_async" if capability == 90 and wide else "mma.sync") in made.asm["ptx"], name
        assert not re.search(r"^\s*(@\S+\s+)?(atom|red)\.", made.asm["ptx"], re.MULTILINE), name
