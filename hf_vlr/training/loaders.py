"""Where training batches come from: pictures through a data loader, or states of frozen towers from memory.

Both give dictionaries of tensors for epoch e from batch k on, and both are functions of (seed, epoch, position).
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hf_vlr.data.batches import Collator, EpochBatches, TrainingSet
from hf_vlr.data.corpus import ClassTextCorpus
from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.randomness import numpy_generator

Batch = dict[str, Tensor]


class ImageBatches:
    """`pixel_values`, `labels` and (with a tokenizer) `input_ids`, `attention_mask`, `text_index`."""

    def __init__(self, dataset: TrainingSet, collator: Collator, keys: EpochBatches, workers: int) -> None:
        self.keys = keys
        self.loader = DataLoader(
            dataset,
            batch_sampler=keys,
            collate_fn=collator,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
        )

    @property
    def batches_per_epoch(self) -> int:
        return self.keys.batches_per_epoch

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from `start_batch` on."""
        self.keys.set_epoch(epoch, start_batch)
        yield from self.loader


class StateBatches:
    """`vision_states` [N, W], `labels` [N] and (with a corpus) `text_states` [U, W'] with `text_index` [N].

    views: [K, N, W]; each draw takes one of the K views. sentences: states [S, W'] of the corpus, in its order.
    """

    def __init__(
        self,
        source: ImageSource,
        views: Tensor,
        keys: EpochBatches,
        seed: int,
        corpus: ClassTextCorpus | None = None,
        sentences: Tensor | None = None,
        caption_probability: float = 0.0,
    ) -> None:
        if (source.labels < 0).any():
            raise UserError("data.cache_views works on labelled images only; set it to 0 for image-text pairs")
        self.views, self.keys, self.seed = views, keys, seed
        self.labels = torch.from_numpy(source.labels)
        self.sentences, self.caption_probability = sentences, caption_probability
        if corpus is not None:
            self.first = torch.as_tensor(corpus.offsets[:-1])
            self.count = torch.as_tensor(corpus.offsets[1:]) - self.first
            self.own = own_sentences(source, corpus) if caption_probability else None

    @property
    def batches_per_epoch(self) -> int:
        return self.keys.batches_per_epoch

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from `start_batch` on."""
        self.keys.set_epoch(epoch, start_batch)
        total = self.keys.num_samples
        # one draw for the whole epoch, read by position: the same values whatever the batch or the rank
        view = torch.from_numpy(numpy_generator(self.seed, epoch, 0, "view").integers(len(self.views), size=total))
        text = torch.from_numpy(numpy_generator(self.seed, epoch, 0, "text").random((2, total)))
        for keys in self.keys:
            positions = torch.tensor([position for _, position, _ in keys])
            rows = torch.tensor([row for _, _, row in keys])
            batch = {"vision_states": self.views[view[positions], rows], "labels": self.labels[rows]}
            if self.sentences is not None:
                drawn = self._draw(rows, *text[:, positions])
                unique, index = drawn.unique(return_inverse=True)
                batch |= {"text_states": self.sentences[unique], "text_index": index}
            yield batch

    def _draw(self, rows: Tensor, choice: Tensor, own_choice: Tensor) -> Tensor:
        labels = self.labels[rows]
        drawn = self.first[labels] + (choice * self.count[labels]).long()
        if self.own is None:
            return drawn
        own = self.own[rows]
        return torch.where((own >= 0) & (own_choice < self.caption_probability), own, drawn)


def own_sentences(source: ImageSource, corpus: ClassTextCorpus) -> Tensor:
    """Where in the corpus each row's own caption stands [N], -1 where it does not."""
    own = torch.full((len(source),), -1, dtype=torch.int64)
    for label in range(corpus.num_classes):
        position = {text: int(corpus.offsets[label]) + i for i, text in enumerate(corpus.of(label))}
        for row in (source.labels == label).nonzero()[0]:
            own[row] = position.get(source.captions[row] or "", -1)
    return own
