"""Where training batches come from: pictures through a data loader, or states of frozen towers from memory.

Both give dictionaries of tensors for epoch e from batch k on, and both are functions of (seed, epoch, position).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hf_vlr.data.batches import Collator, EpochBatches, TrainingSet
from hf_vlr.data.corpus import ClassTextCorpus
from hf_vlr.data.source import ImageSource
from hf_vlr.data.workers import obey_parent_only
from hf_vlr.errors import UserError
from hf_vlr.feature_synthesis import Synthesis, repetitions
from hf_vlr.features import read_batches
from hf_vlr.randomness import numpy_generator

Batch = dict[str, Tensor]
PICTURES = ("pixel_values", "second_pixel_values")


class Batches:
    """What the loop asks of a loader: the batches of an epoch, each with its part of an optimiser step.

    Every batch says with `rows` how many rows it has over all processes.
    """

    def __init__(self, keys: EpochBatches) -> None:
        self.keys = keys

    @property
    def batches_per_epoch(self) -> int:
        return self.keys.batches_per_epoch

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from `start_batch` on."""
        self.keys.set_epoch(epoch, start_batch)
        for number, batch in enumerate(self._read(epoch), start=start_batch):
            yield batch | {"rows": torch.tensor(self.rows(number))}

    def _read(self, epoch: int) -> Iterator[Batch]:
        """This process's batches of the pass that its keys are set to."""
        raise NotImplementedError

    def scale(self, batch: Batch) -> Batch:
        """The batch as the towers take it; on the device, and perhaps a piece of it at a time."""
        return batch

    def rows(self, batch: int) -> int:
        """How many rows batch number `batch` has over all processes."""
        return min(self.keys.batch_size, self.keys.num_samples - batch * self.keys.batch_size)

    def share_of_step(self, batch: int, accumulation: int) -> tuple[float, bool]:
        """The part of its step's rows that a batch holds, and whether the step ends with it.

        A step takes `accumulation` batches, and fewer at an epoch's end.
        """
        first = batch - batch % accumulation
        last = min(first + accumulation, self.batches_per_epoch) - 1
        size, total = self.keys.batch_size, self.keys.num_samples
        rows = min((last + 1) * size, total) - first * size
        return (min((batch + 1) * size, total) - batch * size) / rows, batch == last


class ImageBatches(Batches):
    """`pixel_values`, `labels` and (with a tokenizer) `input_ids`, `attention_mask`, `text_index`.

    scaling: from the bytes of a batch of pictures to what the towers take; None: the pictures are that already.
    """

    def __init__(
        self,
        dataset: TrainingSet,
        collator: Collator,
        keys: EpochBatches,
        workers: int,
        scaling: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(keys)
        self.scaling = scaling
        self.loader = DataLoader(
            dataset,
            batch_sampler=keys,
            collate_fn=collator,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=obey_parent_only,
        )

    def _read(self, epoch: int) -> Iterator[Batch]:
        return read_batches(self.loader)

    def scale(self, batch: Batch) -> Batch:
        if self.scaling is None:
            return batch
        pictures = {key: self.scaling(batch[key]) for key in PICTURES if key in batch}
        return batch | pictures


class StateBatches(Batches):
    """`vision_states` [N, W], `labels` [N] and (with a corpus) `text_states` [U, W'] with `text_index` [N].

    Args:
        source: gives the labels, all >= 0.
        views: [K, N, W]; each draw takes one of the K views.
        keys, seed: which rows make a batch, and the seed of the draws.
        corpus: it draws each row's sentence, as in `TrainingSet`; None: no texts.
        sentences: states [S, W'] of `spoken_sentences`' texts.
        own: [N], where among them each row's own caption stands, -1 without one; None: captions are not spoken.
        caption_probability: how often a row speaks its own caption.
        synthesis: what a row is from its second time in an epoch on; None: itself. It has no caption of its own then.
        second_view: whether each row comes with another of its views, `second_vision_states` [N, W].
    """

    def __init__(
        self,
        source: ImageSource,
        views: Tensor,
        keys: EpochBatches,
        seed: int,
        corpus: ClassTextCorpus | None = None,
        sentences: Tensor | None = None,
        own: Tensor | None = None,
        caption_probability: float = 0.0,
        synthesis: Synthesis | None = None,
        second_view: bool = False,
    ) -> None:
        super().__init__(keys)
        if second_view and len(views) < 2:
            raise UserError("two views of each image need data.cache_views of at least 2")
        if (source.labels < 0).any():
            raise UserError("data.cache_views works on labelled images only; set it to 0 for image-text pairs")
        self.views, self.seed, self.synthesis, self.second_view = views, seed, synthesis, second_view
        self.labels = torch.from_numpy(source.labels)
        self.corpus, self.sentences, self.own, self.caption_probability = corpus, sentences, own, caption_probability

    def _read(self, epoch: int) -> Iterator[Batch]:
        total = self.keys.num_samples
        # one draw for the whole epoch, read by position: the same values whatever the batch or the rank
        view = torch.from_numpy(numpy_generator(self.seed, epoch, 0, "view").integers(len(self.views), size=total))
        other = numpy_generator(self.seed, epoch, 0, "second view").integers(1, max(2, len(self.views)), size=total)
        text = torch.from_numpy(numpy_generator(self.seed, epoch, 0, "text").random((2, total)))
        chance = torch.from_numpy(numpy_generator(self.seed, epoch, 0, "synthesis").random((2, total)))
        new = torch.zeros(total, dtype=torch.bool)
        if self.synthesis is not None:
            new = torch.from_numpy(repetitions(self.keys.order(epoch)))
            text[1, new] = 1.0
        for keys in self.keys:
            positions = torch.tensor([key.position for key in keys])
            rows = torch.tensor([key.index for key in keys])
            made = new[positions], chance[:, positions]
            batch = {"vision_states": self._states(view[positions], rows, *made), "labels": self.labels[rows]}
            if self.second_view:
                again = (view[positions] + torch.from_numpy(other)[positions]) % len(self.views)
                batch["second_vision_states"] = self._states(again, rows, *made)
            if self.corpus is not None:
                drawn = self._draw(rows, *text[:, positions])
                unique, index = drawn.unique(return_inverse=True)
                batch |= {"text_states": self.sentences[unique], "text_index": index}
            if keys[0].blank:
                batch["blank"] = torch.tensor(True)
            yield batch

    def _states(self, view: Tensor, rows: Tensor, new: Tensor, chance: Tensor) -> Tensor:
        states = self.views[view, rows]
        if new.any():
            states[new] = self.synthesis(view[new], rows[new], chance[:, new])
        return states

    def _draw(self, rows: Tensor, choice: Tensor, own_choice: Tensor) -> Tensor:
        drawn = torch.from_numpy(self.corpus.pick(self.labels[rows].numpy(), choice.numpy()))
        if self.own is None:
            return drawn
        own = self.own[rows]
        return torch.where((own >= 0) & (own_choice < self.caption_probability), own, drawn)


def spoken_sentences(source: ImageSource, corpus: ClassTextCorpus) -> tuple[list[str], Tensor]:
    """All texts that rows may speak: the corpus in its order, then captions of other words; and each row's own [N].

    A row's own is the position of its caption, -1 where it has none.
    """
    place: dict[tuple[int, str], int] = {}
    for position, row in enumerate(corpus.rows()):
        place[row.label, row.text] = position
    texts = list(corpus.texts)
    own = torch.full((len(source),), -1, dtype=torch.int64)
    for row, (label, caption) in enumerate(zip(source.labels.tolist(), source.captions, strict=True)):
        if not caption:
            continue
        if (label, caption) not in place:
            place[label, caption] = len(texts)
            texts.append(caption)
        own[row] = place[label, caption]
    return texts, own
