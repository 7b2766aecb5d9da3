"""Batches of pictures, texts and labels whose content depends on (seed, epoch, position) alone."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from hf_vlr.data.corpus import ClassTextCorpus
from hf_vlr.data.images import Picture
from hf_vlr.data.mixing import Mixing
from hf_vlr.data.source import ImageSource
from hf_vlr.data.streaming.order import WINDOW, block_order
from hf_vlr.data.transforms import read_for
from hf_vlr.errors import UserError
from hf_vlr.randomness import numpy_generator, torch_seeded
from hf_vlr.samplers import epoch_length, epoch_order

PADDING_MULTIPLE = 8


class Key(NamedTuple):
    """All that a sample depends on: its epoch, its position in the epoch's global order, the index of its row.

    partner: index of the row that it is mixed with, -1 for none. blank: the sample only stands in for none, on a
    process that has no row of this batch.
    """

    epoch: int
    position: int
    index: int
    partner: int = -1
    blank: bool = False


class TrainingSet(Dataset):
    """`(image, text, label)` of a source, augmented and worded anew at every key.

    caption_probability: how often a labelled row speaks its own caption (if it has one) instead of a sentence
    drawn from the corpus. A row labelled -1 always speaks its own. Without a corpus the text of labelled rows
    is "".
    mixing: how a sample is mixed with its key's partner.
    views: 2 gives every sample a second augmentation, for contrasts between images.
    """

    def __init__(
        self,
        source: ImageSource,
        corpus: ClassTextCorpus | None,
        transform: Callable[[Picture], torch.Tensor],
        seed: int,
        caption_probability: float = 0.0,
        *,
        mixing: Mixing | None = None,
        views: int = 1,
    ) -> None:
        if not 0 <= caption_probability <= 1:
            raise UserError(f"caption_probability={caption_probability}: choose a number from 0 to 1")
        if corpus is not None:
            corpus.require_every_class(source.class_names)
        self.source, self.corpus, self.transform = source, corpus, transform
        self.seed, self.caption_probability, self.mixing, self.views = seed, caption_probability, mixing, views

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        # Keyed by position, not by index: a re-balancing sampler repeats an image within the epoch, and its
        # repetitions must not be the same crop with the same sentence.
        epoch, position, index, partner, blank = key
        label = int(self.source.labels[index])
        sample = {
            "image": self._image(epoch, position, index, "augment"),
            "text": self._text(epoch, position, index, label),
            "label": label,
            "index": index,
            "blank": blank,
        }
        if self.views == 2:
            sample["second"] = self._image(epoch, position, index, "second view")
        if partner >= 0 and self.mixing is not None:
            other = self._image(epoch, position, partner, "partner")
            rng = numpy_generator(self.seed, epoch, position, "mixing")
            sample["image"], sample["share"] = self.mixing.mix(sample["image"], other, rng)
            sample["other"] = int(self.source.labels[partner])
        return sample

    def _image(self, epoch: int, position: int, index: int, use: str) -> torch.Tensor:
        picture = read_for(self.transform, self.source.images, index)
        with torch_seeded(self.seed, epoch, position, use):
            return self.transform(picture)

    def _text(self, epoch: int, position: int, index: int, label: int) -> str:
        own = self.source.captions[index]
        if label < 0:
            if not own:
                raise UserError(f"{self.source.name} row {index}: an image-text pair without a text; add or remove it")
            return own
        if self.corpus is None:
            return ""
        rng = numpy_generator(self.seed, epoch, position, "text")
        if own and self.caption_probability > 0 and rng.random() < self.caption_probability:
            return own
        return self.corpus.draw(label, rng)


class Collator:
    """Stacks N samples and tokenises their U unique texts once.

    Gives `pixel_values [N, 3, H, W]`, `labels [N]` int64 and, with a tokenizer, `input_ids` and
    `attention_mask [U, L]` int64 and `text_index [N]` int64: sample i speaks text `text_index[i]`. Unique
    texts stand in the order in which they first occur; L is the longest text's length, rounded up to a
    multiple of 8, at most `max_length`. Second views follow as `second_pixel_values [N, 3, H, W]`; mixed
    samples have `other_labels [N]` and the first label's `shares [N]`. `blank` marks a batch whose one
    sample only stands in for none.
    """

    def __init__(self, tokenizer: Any | None, max_length: int = 77) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {
            "pixel_values": torch.stack([sample["image"] for sample in samples]),
            "labels": torch.tensor([sample["label"] for sample in samples], dtype=torch.int64),
        }
        if "second" in samples[0]:
            batch["second_pixel_values"] = torch.stack([sample["second"] for sample in samples])
        if "other" in samples[0]:
            batch["other_labels"] = torch.tensor([sample["other"] for sample in samples], dtype=torch.int64)
            batch["shares"] = torch.tensor([sample["share"] for sample in samples], dtype=torch.float32)
        if samples[0]["blank"]:
            batch["blank"] = torch.tensor(True)
        if self.tokenizer is None:
            return batch
        number: dict[str, int] = {}
        index = [number.setdefault(sample["text"], len(number)) for sample in samples]
        return batch | self.tokenize(list(number)) | {"text_index": torch.tensor(index, dtype=torch.int64)}

    def tokenize(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask [U, L]` of the texts."""
        ids = self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        longest = max(len(row) for row in ids)
        # The tokenizer's own pad_to_multiple_of would go beyond max_length, and so beyond the position
        # embeddings.
        length = min(-(-longest // PADDING_MULTIPLE) * PADDING_MULTIPLE, self.max_length)
        padded = self.tokenizer.pad({"input_ids": ids}, padding="max_length", max_length=length, return_tensors="pt")
        return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}


class EpochBatches(Sampler[list[Key]]):
    """One rank's batches of keys; global batch k is `order[k·B : (k+1)·B]` and a rank takes its contiguous
    slice.

    batch_size: B, over all ranks, a multiple of `world_size`. drop_last drops an incomplete global batch;
    otherwise it is split as evenly as it goes; a rank without a row gets a blank key, so that it takes part.
    parts: which of several mixed sources each row is of, for the strategy "source-balanced".
    partners: whether each key names another row of its global batch to be mixed with.
    num_samples: draws in an epoch; None: as many as the strategy asks for.
    epochs: how many there are, for the strategy "progressive": epoch e has the progress e/(epochs - 1), at most 1.
    blocks: which block each row of a streamed source is fetched with; the order is then that of `block_order`.
    `set_epoch(e, start_batch=k)` makes the next pass begin at batch k of epoch e, exactly as if k had been
    read.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        strategy: str,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        num_samples: int | None = None,
        drop_last: bool = False,
        parts: np.ndarray | None = None,
        partners: bool = False,
        epochs: int | None = None,
        blocks: np.ndarray | None = None,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise UserError(f"batch_size={batch_size} must be a multiple of the number of processes, {world_size}")
        self.labels, self.batch_size, self.strategy, self.seed = labels, batch_size, strategy, seed
        self.parts, self.partners, self.blocks = parts, partners, blocks
        self.rank, self.world_size = rank, world_size
        self.num_samples = epoch_length(labels, strategy) if num_samples is None else num_samples
        self.epochs = epochs
        rest = self.num_samples % batch_size
        keeps_rest = rest > 0 and not drop_last
        self.batches_per_epoch = self.num_samples // batch_size + keeps_rest
        if self.batches_per_epoch == 0:
            raise UserError(f"batch_size={batch_size} is larger than the {self.num_samples} rows of an epoch; lower it")
        self.epoch, self.start_batch = 0, 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch of the next pass and the batch it begins at."""
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        return self.batches_per_epoch - self.start_batch

    def __iter__(self) -> Iterator[list[Key]]:
        order = self.order(self.epoch).tolist()
        for batch in range(self.start_batch, self.batches_per_epoch):
            first = batch * self.batch_size
            rows = min(self.batch_size, self.num_samples - first)
            mine = range(first + rows * self.rank // self.world_size, first + rows * (self.rank + 1) // self.world_size)
            yield self._keys(order, batch, first, rows, mine) or [Key(self.epoch, first, order[first], blank=True)]

    def order(self, epoch: int) -> np.ndarray:
        """The rows of a whole epoch in the order of their positions, int64 [num_samples]."""
        progress = min(1.0, epoch / (self.epochs - 1)) if self.epochs and self.epochs > 1 else 0.0
        order = epoch_order(self.labels, self.strategy, self.seed, epoch, self.num_samples, self.parts, progress)
        return block_order(order, self.blocks, WINDOW, self.seed, epoch, batch_size=self.batch_size, parts=self.parts)

    def rows_of(self, epoch: int, batch: int) -> list[int]:
        """The rows of a global batch, for those who look for a damaged one."""
        first = batch * self.batch_size
        return self.order(epoch)[first : first + self.batch_size].tolist()

    def _keys(self, order: list[int], batch: int, first: int, rows: int, mine: range) -> list[Key]:
        if not self.partners:
            return [Key(self.epoch, position, order[position]) for position in mine]
        partner = first + numpy_generator(self.seed, self.epoch, batch, "partner").permutation(rows)
        return [Key(self.epoch, position, order[position], order[partner[position - first]]) for position in mine]
