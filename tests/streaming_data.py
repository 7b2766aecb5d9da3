"""Writers of small Parquet and tar shards whose every picture tells which row it is."""

import io
import json
import tarfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Image, Value
from PIL import Image as Pillow

NAMES = ["owl", "fox", "elk"]


@cache
def picture(row: int) -> bytes:
    """A PNG of noise, 3 KB, whose first pixel is the row's number."""
    pixels = np.random.default_rng(row).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels[0, 0] = row % 256, row // 256, 7
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def row_of(image: Pillow.Image) -> int:
    red, green, _ = image.getpixel((0, 0))
    return red + 256 * green


def write_parquet(file: Path, rows: Iterable[int], per_group: int = 5, **columns: list) -> Path:
    """Rows with `label` (row % 3), `text` and further columns, `per_group` in a row group."""
    rows = list(rows)
    kinds = {"image": Image(), "label": ClassLabel(names=NAMES), "text": Value("string")}
    kinds |= {name: Value("int64") for name in columns}
    table = {
        "image": [{"bytes": picture(row), "path": f"{row}.png"} for row in rows],
        "label": [row % 3 for row in rows],
        "text": [f"a caption of {row}" for row in rows],
        **columns,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    schema = Features(kinds).arrow_schema
    pq.write_table(pa.table(table, schema=schema), file, row_group_size=per_group)
    return file


def write_tar(
    file: Path, members: Iterable[tuple[str | tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT
) -> Path:
    """A tar of members (name or header, content)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=form) as tar:
        for name, content in members:
            header = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(name, str):
                header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return file


def samples(rows: Iterable[int], *kinds: str) -> list[tuple[str, bytes]]:
    """Members of samples: pictures, with `cls` (a number), `name` (a class name as .cls), `txt` or `json`."""
    members = []
    for row in rows:
        content = {
            "cls": ("cls", str(row % 3).encode()),
            "name": ("cls", NAMES[row % 3].encode()),
            "txt": ("txt", f"a caption of {row}\n".encode()),
            "json": ("json", json.dumps({"label": NAMES[row % 3], "caption": f"told of {row}"}).encode()),
        }
        members.append((f"{row:06d}.png", picture(row)))
        members += [(f"{row:06d}.{content[kind][0]}", content[kind][1]) for kind in kinds]
    return members
