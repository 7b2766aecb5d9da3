"""`hf-vlr env`."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import click

from hf_vlr import __version__
from hf_vlr.cli.output import say_table

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "datasets",
    "accelerate",
    "huggingface_hub",
    "safetensors",
    "timm",
    "omegaconf",
    "numpy",
    "pillow",
)


@click.command()
def command() -> None:
    """Versions and devices, to be pasted into a bug report."""
    import torch

    rows = [("hf_vlr", __version__), ("python", f"{platform.python_version()} on {platform.platform()}")]
    rows += [(name, _version(name)) for name in PACKAGES]
    rows.append(("processors", f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads"))
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    cuda = torch.version.cuda or "not built in"
    rows.append(("accelerators", f"{', '.join(devices) or 'none'} (CUDA {cuda})"))
    say_table(rows)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
