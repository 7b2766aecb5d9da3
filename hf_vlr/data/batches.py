"""Batches of pictures, texts and labels whose content depends on (seed, epoch, position) alone."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from hf_vlr.data.corpus import ClassTextCorpus
from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.randomness import numpy_generator, torch_seeded
from hf_vlr.samplers import epoch_order

PADDING_MULTIPLE = 8

# epoch, position in the epoch's global order, index of the row
Key = tuple[int, int, int]


class TrainingSet(Dataset):
    """`(image, text, label)` of a source, augmented and worded anew at every key.

    caption_probability: how often a labelled row speaks its own caption (if it has one) instead of a sentence
    drawn from the corpus. A row labelled -1 always speaks its own. Without a corpus the text of labelled rows
    is "".
    """

    def __init__(
        self,
        source: ImageSource,
        corpus: ClassTextCorpus | None,
        transform: Callable[[Image.Image], torch.Tensor],
        seed: int,
        caption_probability: float = 0.0,
    ) -> None:
        if not 0 <= caption_probability <= 1:
            raise UserError(f"caption_probability={caption_probability}: choose a number from 0 to 1")
        if corpus is not None:
            corpus.require_every_class(source.class_names)
        self.source, self.corpus, self.transform = source, corpus, transform
        self.seed, self.caption_probability = seed, caption_probability

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        # Keyed by position, not by index: a re-balancing sampler repeats an image within the epoch, and its
        # repetitions must not be the same crop with the same sentence.
        epoch, position, index = key
        picture = self.source.images[index]
        with torch_seeded(self.seed, epoch, position, "augment"):
            image = self.transform(picture)
        label = int(self.source.labels[index])
        return {
            "image": image,
            "text": self._text(epoch, position, index, label),
            "label": label,
            "index": index,
        }

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
    multiple of 8, at most `max_length`.
    """

    def __init__(self, tokenizer: Any | None, max_length: int = 77) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {
            "pixel_values": torch.stack([sample["image"] for sample in samples]),
            "labels": torch.tensor([sample["label"] for sample in samples], dtype=torch.int64),
        }
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
    otherwise it is split as evenly as it goes, and dropped only where it has fewer rows than there are ranks.
    parts: which of several mixed sources each row is of, for the strategy "source-balanced".
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
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise UserError(f"batch_size={batch_size} must be a multiple of the number of processes, {world_size}")
        self.labels, self.batch_size, self.strategy, self.seed = labels, batch_size, strategy, seed
        self.parts = parts
        self.rank, self.world_size = rank, world_size
        self.num_samples = len(labels) if num_samples is None else num_samples
        rest = self.num_samples % batch_size
        keeps_rest = rest >= world_size and not drop_last
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
        order = epoch_order(self.labels, self.strategy, self.seed, self.epoch, self.num_samples, self.parts).tolist()
        for batch in range(self.start_batch, self.batches_per_epoch):
            first = batch * self.batch_size
            rows = min(self.batch_size, self.num_samples - first)
            mine = range(first + rows * self.rank // self.world_size, first + rows * (self.rank + 1) // self.world_size)
            yield [(self.epoch, position, order[position]) for position in mine]
