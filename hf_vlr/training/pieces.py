"""A batch cut into micro-batches: images by rows, unique texts by length.

Letters: `N` images, `U` unique texts, `n`, `u` those of a piece.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_vlr.data.batches import PADDING_MULTIPLE
from hf_vlr.training.loaders import Batch

IMAGE_KEYS = ("pixel_values", "second_pixel_values", "vision_states", "second_vision_states")
TOKEN_KEYS = ("input_ids", "attention_mask", "token_type_ids")
TEXT_KEYS = (*TOKEN_KEYS, "text_states")


@dataclass(frozen=True)
class Piece:
    """A micro-batch of images or of texts, and which rows [n] of the batch's images or texts it holds."""

    batch: Batch
    rows: Tensor


def cut(batch: Batch, size: int) -> Iterator[Piece]:
    """Pieces of at most `size` images, then of at most `size` texts.

    Texts come sorted by length and each piece is cut to its longest, so that few computations go into padding.
    """
    images = {key: batch[key] for key in IMAGE_KEYS if key in batch}
    if images:
        count = len(next(iter(images.values())))
        for rows in torch.arange(count).split(size):
            yield Piece({key: value[rows[0] : rows[-1] + 1] for key, value in images.items()}, rows)
    texts = {key: batch[key] for key in TEXT_KEYS if key in batch}
    if texts:
        lengths = text_lengths(batch) if "attention_mask" in batch else torch.zeros(len(batch["text_states"]))
        for rows in lengths.argsort(stable=True).split(size):
            length = _padded(int(lengths[rows].max())) if "attention_mask" in batch else None
            yield Piece({key: _take(value, rows, key, length) for key, value in texts.items()}, rows)


def text_lengths(batch: Batch) -> Tensor:
    """Where each text's last token ends [U], on the CPU."""
    mask = batch["attention_mask"]
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask.ne(0) * places).amax(1).cpu()


def _padded(length: int) -> int:
    return -(-max(1, length) // PADDING_MULTIPLE) * PADDING_MULTIPLE


def _take(value: Tensor, rows: Tensor, key: str, length: int | None) -> Tensor:
    taken = value[rows.to(value.device)]
    return taken[:, :length] if key in TOKEN_KEYS else taken


def rows_of_batch(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch's images in pieces of `size`, with their labels and the size of the global batch; without texts."""
    per_image = (*IMAGE_KEYS, "labels", "other_labels", "shares")
    whole = {key: batch[key] for key in per_image if key in batch}
    for start in range(0, len(batch["labels"]), size):
        piece = {key: value[start : start + size] for key, value in whole.items()}
        yield piece | {"rows": batch["rows"]}
