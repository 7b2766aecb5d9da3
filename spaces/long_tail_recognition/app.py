"""What ORG/NAME sees, as a Space; the page itself is `hf_vlr.demo`."""

import contextlib
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
# the package, where it lies here as a wheel instead of being installed
sys.path[:0] = map(str, HERE.glob("hf_vlr-*.whl"))
with contextlib.suppress(ImportError):
    import spaces  # noqa: F401  ZeroGPU wants to be there before torch

from hf_vlr.demo.app import build, launch_options  # noqa: E402

examples = HERE / "examples"
demo = build(os.environ.get("HF_VLR_MODEL", "ORG/NAME"), str(examples) if examples.is_dir() else None)

if __name__ == "__main__":
    demo.launch(**launch_options())
