"""Tiny models in folders for the demonstration's tests; a file loads this one and calls it with the fixture `tiny`."""

from pathlib import Path
from types import ModuleType

import torch

from hf_vlr import UniCLModel, VLLTRModel

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "a & b",
    '"quoted"',
    "${value} {{value}}",
)


def recogniser(tiny: ModuleType, folder: Path, **options) -> Path:
    """A recogniser of five classes with anchors, or what `options` make of it."""
    tiny.recogniser(**options).save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    return folder


def hostile(tiny: ModuleType, folder: Path) -> Path:
    """A recogniser whose class names and sentences are HTML, scripts and templates."""
    model = tiny.recogniser(id2label=dict(enumerate(HOSTILE)), label2id={name: i for i, name in enumerate(HOSTILE)})
    sentences = [[f"{name} and more", name, ""] for name in HOSTILE]
    mask = torch.tensor([[bool(text) for text in row] for row in sentences])
    model.set_anchors(model.head.anchors.clone(), mask, sentences)
    model.save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    return folder


def visual_only(tiny: ModuleType, folder: Path) -> Path:
    """The baseline: no anchors, no text tower, and no tokenizer beside it."""
    tiny.recogniser(num_anchors=0, text=None).save_pretrained(folder)
    tiny.processor().image_processor.save_pretrained(folder)
    return folder


def dual_encoder(tiny: ModuleType, folder: Path, kind: type = VLLTRModel) -> Path:
    """A dual encoder of stage 1, or UniCL's."""
    tiny.model(kind).save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    return folder


KINDS = (VLLTRModel, UniCLModel)
