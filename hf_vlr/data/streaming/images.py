"""Images that are fetched block by block when one of them is asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from hf_vlr.data.images import Picture, decode_for_model, decode_image
from hf_vlr.data.streaming.order import WINDOW
from hf_vlr.errors import UserError

# Rows that lie next to each other make a block of about this size: large enough that a remote server sends it at full
# speed, small enough that a window of blocks fits the default budget.
BLOCK_BYTES = 64 << 20
# A process keeps the blocks of a window open, and some more for those that one batch ends and the next one begins.
OPEN_BLOCKS = WINDOW + 8


class Shards(Protocol):
    """Encoded images by row, read by blocks.

    blocks: int64 `[N]`, the block of each row, from 0 on and in the order of rows.
    """

    blocks: np.ndarray

    def encoded(self, row: int) -> tuple[bytes | None, str | None, str]:
        """The image file's bytes, its name (both None where the row has none), and the row as messages call it."""

    def identity(self) -> str:
        """A text that changes when any of the files does."""


class StreamedImages(Sequence):
    """`images[i]` is an RGB picture; its block is fetched when it is not at hand."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards.blocks)

    def __getitem__(self, index: int) -> Image.Image:
        return decode_image(*self._file(index))

    def for_model(self, index: int) -> Picture:
        """The same picture as `decode_for_model` gives it."""
        return decode_for_model(*self._file(index))

    def encoded(self, index: int) -> dict[str, bytes | str | None]:
        """The image's file as it lies in the source: `bytes`, and its name without folders as `path`."""
        data, name, where = self._found(index)
        try:
            data = Path(name).read_bytes() if data is None else data
        except OSError as error:
            raise UserError(f"{where}: the image cannot be read ({error.strerror}); restore it") from error
        return {"bytes": data, "path": Path(name).name if name else None}

    def identity(self) -> str:
        """A text that changes when the underlying files do."""
        return self.shards.identity()

    def _file(self, index: int) -> tuple[bytes | str, str]:
        """The image's bytes or path, and what messages call it."""
        data, name, where = self._found(index)
        return (name if data is None else data), where

    def _found(self, index: int) -> tuple[bytes | None, str | None, str]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        data, name, where = self.shards.encoded(index % len(self))
        if data is None and name is None:
            raise UserError(f"{where}: there is no image in this row; remove the row")
        return data, name, where


def require_room(name: str, sizes: np.ndarray, budget: int) -> None:
    """Raise `UserError` where the blocks that an epoch reads at a time are more than the cache may hold.

    sizes: bytes of the blocks that lie in the cache when they are read.
    """
    needed = int(np.sort(sizes)[-WINDOW:].sum())
    if needed > budget:
        raise UserError(
            f"{name}: the {min(WINDOW, len(sizes))} blocks that are read at a time take {needed / 2**30:.3g} GiB; "
            f"set data.options.cache_gib={np.ceil(needed / 2**28) / 4:g} or more"
        )
