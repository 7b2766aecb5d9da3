"""What a machine is called."""

import platform
from pathlib import Path

import torch


def processor() -> str:
    """The processor's name."""
    return _listed("model name") or platform.processor() or platform.machine()


def generation() -> str:
    """The processor's family and model as Linux numbers them, "" elsewhere: clouds often give no more than a brand."""
    family, model = _listed("cpu family"), _listed("model")
    return f"family {family}, model {model}" if family and model else ""


def _listed(name: str) -> str:
    """What Linux says of the first processor, "" where it does not."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return ""


def chip(device: torch.device) -> str:
    """The name of the accelerator, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
