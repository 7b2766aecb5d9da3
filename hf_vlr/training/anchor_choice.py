"""Anchors that are chosen again and again, by towers that change in between.

Letters: `S` sentences of the corpus, `K` images they are scored on, `C` classes, `M` anchors of a class, `D` projection
width, `W` width of a tower.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor

from hf_vlr.anchors import (
    AnchorSelection,
    gather_anchor_features,
    limit_images_per_class,
    score_sentences,
    select_anchors,
    unscored_order,
)
from hf_vlr.data.batches import Collator
from hf_vlr.distributed import gather_rows, rank_and_world
from hf_vlr.evaluation.predictors import project
from hf_vlr.features import Transform, text_states, vision_states
from hf_vlr.modeling import VLLTRForImageClassification
from hf_vlr.training.context import Context
from hf_vlr.training.log import write_line
from hf_vlr.training.run_data import RunData


class AnchorChoice:
    """The M best sentences of each class for a recogniser as it is now, as often as asked (VL-LTR §3.2).

    Sentences are scored as between the stages: their cross-entropy with at most `anchors.images_per_class` images of
    each class, in evaluation mode, float32.

    Cost of a choice: a forward pass of S sentences by a text tower and of K images by a vision tower that are trained,
    each process its share; states of a frozen tower are computed once and kept (4 S W and 4 K W bytes), so that what
    is left is two projections and 2 S K D operations of scoring. With BatchNorm that is trained by several processes a
    process's images meet its own statistics.

    steps_per_epoch: for the step that a line of the log belongs to.
    """

    def __init__(
        self,
        context: Context,
        data: RunData,
        model: VLLTRForImageClassification,
        collator: Collator,
        evaluation: Transform,
        steps_per_epoch: int,
    ) -> None:
        self.context, self.recipe, self.corpus, self.model = context, context.recipe, data.corpus, model
        self.collator, self.evaluation, self.steps_per_epoch = collator, evaluation, steps_per_epoch
        self.sentence_labels = torch.from_numpy(data.corpus.labels)
        options = self.recipe.anchors
        source = data.train if options.split == "train" else data.validation
        rows = limit_images_per_class(source.labels, options.images_per_class, self.recipe.seed)
        self.source, self.image_labels = source.subset(rows), torch.from_numpy(source.labels[rows])
        self._kept: dict[str, Tensor] = {}

    def __call__(self, epoch: int, before: Tensor) -> Tensor:
        """Choose, store the anchors in the head, log it, and return their places in the corpus [C, M], -1 for none.

        `before`: the places so far. All processes end with the same anchors.
        """
        begun = time.perf_counter()
        device = self.model.device
        features = project(self.model.vlltr.text_projection, self._sentence_states(), device)
        selection = self._select(features)
        anchors = gather_anchor_features(features, selection)
        # what machines of different kinds round differently
        index, anchors = broadcast([selection.index.to(device), anchors.to(device)])
        sentences = [[self.corpus.texts[i] if i >= 0 else "" for i in row] for row in index.tolist()]
        self.model.head.set_anchors(anchors, index >= 0, sentences)
        self._log(epoch, share_of_new(index, before.to(device)), time.perf_counter() - begun)
        return index

    def note(self, index: Tensor) -> None:
        """Write into the model's configuration where the anchors [C, M] came from, and how much text they are."""
        used = index[index >= 0].tolist()
        provenance = sorted({(self.corpus.sources[i], self.corpus.licenses[i]) for i in used})
        options, config = self.recipe.anchors, self.model.config
        config.num_sentence_bytes = len(self.model.head.sentence_bytes)
        config.anchor_selection = {
            "selection": options.selection,
            "split": options.split,
            "images_per_class": options.images_per_class,
            "texts": [{"source": source, "license": license} for source, license in provenance],
        }

    def _select(self, features: Tensor) -> AnchorSelection:
        """Anchors by the corpus's projected features [S, D], or in an order that no image decides."""
        recipe, corpus, vlltr = self.recipe, self.corpus, self.model.vlltr
        if recipe.anchors.selection == "scored":
            images = project(vlltr.visual_projection, self._image_states(), vlltr.device)
            scale = vlltr.logit_scale.exp().detach().cpu()
            chunk = recipe.anchors.chunk
            order = score_sentences(features, self.sentence_labels, images, self.image_labels, scale, chunk)
        else:
            order = unscored_order(self.sentence_labels, recipe.anchors.selection, recipe.seed)
        return select_anchors(order, self.sentence_labels, corpus.num_classes, recipe.model.num_anchors, corpus.texts)

    def _sentence_states(self) -> Tensor:
        """Text-tower states [S, W] of the corpus."""

        def encode(texts: Sequence[str], **settings: Any) -> Tensor:
            return text_states(self.model.vlltr, texts, self.collator.tokenize, **settings)

        texts = self.corpus.texts
        return self._states("text_model", encode, texts, lambda rows: [texts[row] for row in rows])

    def _image_states(self) -> Tensor:
        """Vision-tower states [K, W] of the images that sentences are scored on."""
        workers, size = self.recipe.data.workers, self.recipe.eval.batch_size

        def encode(images: Sequence, **settings: Any) -> Tensor:
            settings |= {"workers": workers, "batch_size": size, "note": "anchor images"}
            return vision_states(self.model.vlltr, images, self.evaluation, **settings)[0]

        return self._states("vision_model", encode, self.source.images, lambda rows: self.source.subset(rows).images)

    def _states(self, tower: str, encode: Callable, items: Sequence, some: Callable[[list[int]], Sequence]) -> Tensor:
        """A tower's states of all items: kept from the first time where it is frozen, else anew, by all processes."""
        if tower not in self.recipe.model.freeze:
            device = self.model.device
            return encoded_by_all(len(items), lambda rows: encode(some(rows)).to(device)).cpu()
        if tower not in self._kept:
            self._kept[tower] = encode(items, cache=self.context.cache)
        return self._kept[tower]

    def _log(self, epoch: int, new: float, seconds: float) -> None:
        """A line for the step that comes next, so that a run resumed before it writes it again."""
        accelerator, step = self.context.accelerator, epoch * self.steps_per_epoch + 1
        if not accelerator.is_main_process:
            return
        line = {"epoch": epoch, "new_anchors": round(new, 6), "anchor_seconds": round(seconds, 2)}
        write_line(self.context.folder, {"step": step, **line})
        accelerator.log(line, step=step)


def encoded_by_all(count: int, encode: Callable[[list[int]], Tensor]) -> Tensor:
    """`encode` of rows 0 … count-1, [count, W] on every process, each of which encodes an equal share of them.

    A process takes rows from the start again where its share goes beyond the last, so that none is without.
    """
    rank, world = rank_and_world()
    share = -(-count // world)
    rows = [row % count for row in range(rank * share, (rank + 1) * share)]
    return gather_rows(encode(rows))[:count]


def share_of_new(index: Tensor, before: Tensor) -> float:
    """The part of the anchors [C, M] (-1: none) that their class did not have `before`."""
    had = (index.unsqueeze(2) == before.unsqueeze(1)).any(2)
    real = index >= 0
    return (real & ~had).sum().item() / real.sum().item()
