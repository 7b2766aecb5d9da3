"""Decoding: from a file or its bytes to an RGB picture, or to an error that names the file."""

import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from PIL import Image, ImageOps
from torch import Tensor

from hf_vlr.data.decoding import DECODING_ERRORS, START, decode_jpeg, is_plain_jpeg
from hf_vlr.errors import UserError

# An RGB picture as Pillow holds it, or its pixels, uint8 `[3, H, W]`.
Picture = Image.Image | Tensor


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow picture as RGB: transparency composited on white, 16-bit grey scaled to 8 bits."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.float64) / 257.0
        return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        canvas.alpha_composite(rgba)
        return canvas.convert("RGB")
    return image.convert("RGB")


def decode_image(data: bytes | str | Path, name: str) -> Image.Image:
    """Decode encoded bytes or a local file to RGB.

    Raises `UserError` that begins with `name` when the file is missing, damaged, not an image, or so large
    that decoding it could exhaust the memory (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    try:
        with Image.open(BytesIO(data) if isinstance(data, bytes) else data) as image:
            # upright, as transformers' pipelines load it
            return to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: the image is too large to decode safely; resize it or remove it") from error
    except FileNotFoundError as error:
        raise UserError(f"{name}: the image file does not exist; restore it or remove its row") from error
    except DECODING_ERRORS as error:
        raise UserError(f"{name}: not a readable image ({_first_line(error)}); replace it or remove it") from error


def decode_for_model(data: bytes | str | Path, name: str) -> Picture:
    """A plain JPEG as pixels, uint8 `[3, H, W]`, and anything else as `decode_image` gives it, with the same errors."""
    encoded = data if isinstance(data, bytes) else _jpeg_bytes(Path(data))
    if not is_plain_jpeg(encoded):
        return decode_image(data, name)
    try:
        return decode_jpeg(encoded)
    except (RuntimeError, ImportError):
        # damaged, or a torchvision that cannot decode: Pillow knows the pixels, or what to say
        return torch.from_numpy(np.array(decode_image(data, name))).permute(2, 0, 1)


def picture_for_model(images: Sequence, index: int) -> Picture:
    """Picture `index` of a sequence as its `for_model` gives it, or `images[index]` where it has none."""
    read = getattr(images, "for_model", None)
    return images[index] if read is None else read(index)


class DatasetImages(Sequence):
    """The image column of a `datasets.Dataset`, decoded on access; `images[i]` is an RGB picture.

    `for_model(i)` is the same picture as `decode_for_model` gives it.

    The dataset keeps its order and this object holds `rows` into it, because `Dataset.select` by scattered
    rows would slow down every later access.
    """

    def __init__(self, dataset: Dataset, column: str, rows: np.ndarray, name: str) -> None:
        self._dataset, self._column, self._rows, self._name = dataset, column, rows, name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Image.Image:
        return decode_image(*self._file(index))

    def for_model(self, index: int) -> Picture:
        return decode_for_model(*self._file(index))

    def encoded(self, index: int) -> dict[str, bytes | str | None]:
        """The image's file as it lies in the source: `bytes`, and its name without folders as `path`.

        Raises `UserError` for a row without an image and for a file that is gone.
        """
        _, value = self._value(index)
        name = Path(value["path"]).name if value["path"] else None
        if value["bytes"] is not None:
            return {"bytes": value["bytes"], "path": name}
        try:
            return {"bytes": Path(value["path"]).read_bytes(), "path": name}
        except OSError as error:
            raise UserError(
                f"{value['path']}: the image cannot be read ({error.strerror}); restore it or remove its row"
            ) from error

    def _value(self, index: int) -> tuple[str, dict[str, bytes | str | None]]:
        """The row as messages call it, and what its column holds; raises `UserError` where that is nothing."""
        row = int(self._rows[index])
        value, where = self._dataset[row][self._column], f"{self._name} row {row}"
        if value is None or (value["bytes"] is None and value["path"] is None):
            raise UserError(f"{where}: there is no image in this row; remove the row")
        return where, value

    def _file(self, index: int) -> tuple[bytes | str, str]:
        """The image's bytes or path, and what messages call it."""
        where, value = self._value(index)
        if value["bytes"] is None:
            return value["path"], value["path"]
        return value["bytes"], f"{where} ({value['path']})" if value["path"] else where

    def identity(self) -> str:
        """A text that changes when the underlying files or the chosen rows do."""
        files = ["/".join(Path(file["filename"]).parts[-5:]) for file in self._dataset.cache_files]
        return f"{files}/{self._column}/{self._rows.tolist()}"


class SelectedImages(Sequence):
    """Some of another sequence's pictures, by index."""

    def __init__(self, images: Sequence, indices: np.ndarray) -> None:
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Image.Image:
        return self.images[int(self.indices[index])]

    def for_model(self, index: int) -> Picture:
        return picture_for_model(self.images, int(self.indices[index]))

    def identity(self) -> str:
        return f"{identity_of(self.images)}/{self.indices.tolist()}"


def identity_of(images: Sequence) -> str:
    """The sequence's own `identity()`, or a digest of the pixels where it has none (a plain list)."""
    if hasattr(images, "identity"):
        return images.identity()
    return "/".join(f"{zlib.crc32(np.asarray(image).tobytes()):08x}" for image in images)


def _jpeg_bytes(path: Path) -> bytes:
    """A file that begins as a JPEG; of any other nothing, which Pillow reads as far as it needs."""
    try:
        with path.open("rb") as file:
            start = file.read(len(START))
            return start + file.read() if start == START else b""
    except OSError:
        return b""


def _first_line(error: Exception) -> str:
    text = str(error).splitlines()
    # Pillow names the object it read from, by its address
    return text[0].split(" <_io.")[0] if text else type(error).__name__
