"""The card stub of a converted checkpoint: where it came from, what was done, how to load it."""

import hashlib
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
| source | `{source}` |
| SHA-256 | {digest} |
| parameters | {parameters:,} |
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


def write_card(folder: Path, conversion: "Conversion", format: str, source: str | Path) -> None:
    """Write `README.md` into `folder`."""
    task, auto, call = USE[conversion.model]
    notes = [
        f"interpolated: {name} from {before} to {after} positions" for name, before, after in conversion.interpolated
    ]
    notes += conversion.notes
    rows = "".join(f"| note | {note} |\n" for note in notes)
    text = CARD.format(
        task=task,
        name=conversion.folder.name,
        model=conversion.model,
        origin=ORIGINS[format],
        version=__version__,
        source=Path(source).name if Path(source).exists() else source,
        digest=file_digest(Path(source)) if Path(source).is_file() else "not a single file",
        parameters=sum(tensor.numel() for name, tensor in conversion.tensors.items() if tensor.is_floating_point()),
        notes=rows,
        auto=auto,
        call=call,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
