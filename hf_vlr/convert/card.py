"""The card stub of a converted checkpoint: where it came from, what was done, how to load it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_vlr import __version__

if TYPE_CHECKING:
    from hf_vlr.convert.conversion import Conversion

ORIGINS = {
    "vl-ltr": "a VL-LTR checkpoint (Tian et al., ECCV 2022)",
    "unicl": "a UniCL checkpoint (Yang et al., CVPR 2022)",
    "openai-clip": "an OpenAI CLIP archive (Radford et al., ICML 2021)",
    "hf-clip": "a transformers checkpoint",
    "open-clip": "an open_clip checkpoint",
}
USE = {
    "VLLTRForImageClassification": (
        "image-classification",
        "AutoModelForImageClassification",
        'model.predict("photo.png", top_k=3)',
    ),
    "VLLTRModel": ("zero-shot-image-classification", "AutoModel", "model.get_image_features(pixel_values)"),
    "UniCLModel": ("zero-shot-image-classification", "AutoModel", "model.get_image_features(pixel_values)"),
}
CARD = """---
library_name: hf_vlr
pipeline_tag: {task}
tags:
- long-tailed-recognition
- vision-language
- converted
---

# {name}

A `{model}`, converted from {origin} by hf_vlr {version}.

| | |
|---|---|
{sources}| parameters | {parameters:,} |
{notes}
Every tensor of the source and what became of it stands in `conversion.json`. The weights are their authors' work, under
the license that they came with; state it here before you publish them. No accuracy has been measured on this copy.

```python
import hf_vlr  # teaches the Auto classes our models
from transformers import {auto}

model = {auto}.from_pretrained("PATH_OR_ID")
{call}
```
"""


def write_card(
    folder: Path, conversion: "Conversion", format: str, source: str | Path, others: Sequence[Path] = ()
) -> None:
    """Write `README.md` into `folder`. `others` are further files that tensors came from."""
    task, auto, call = USE[conversion.model]
    notes = [
        f"interpolated: {name} from {before} to {after} positions" for name, before, after in conversion.interpolated
    ]
    notes += conversion.notes
    text = CARD.format(
        task=task,
        name=conversion.folder.name,
        model=conversion.model,
        origin=ORIGINS[format],
        version=__version__,
        sources="".join(map(source_rows, (source, *others))),
        parameters=sum(tensor.numel() for name, tensor in conversion.tensors.items() if tensor.is_floating_point()),
        notes="".join(f"| note | {cell(note)} |\n" for note in notes),
        auto=auto,
        call=call,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def source_rows(source: str | Path) -> str:
    """The rows of a file, a folder or a Hub id: its name, without the folders that it lies in, and its digest."""
    path = Path(source).expanduser()
    name = path.resolve().name if path.exists() else str(source)
    digest = file_digest(path) if path.is_file() else "not a single file"
    return f"| source | `{cell(name)}` |\n| SHA-256 | {digest} |\n"


def cell(text: str) -> str:
    """A text that stays within its cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
