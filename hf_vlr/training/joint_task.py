"""The objective of one stage: contrast and recognition of the same features.

Letters: `N` images over all processes, `B` of this one, `C` classes, `M` anchors of a class, `D` projection width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hf_vlr.distributed import gather_integers
from hf_vlr.modeling import UniCLModel, VLLTRForImageClassification
from hf_vlr.training.contrastive_task import ContrastiveTask
from hf_vlr.training.loaders import Batch
from hf_vlr.training.options import LossOptions, ModelOptions
from hf_vlr.training.recognition_task import BranchLosses
from hf_vlr.training.tasks import Features, Task, real

# from an epoch and the chosen sentences [C, M] so far to those that are chosen now
Choice = Callable[[int, Tensor], Tensor]


class JointTask(Task):
    """Both stages of VL-LTR at once: w_c L_contrast + w_v L(visual, y) + w_l L(language, y).

    L_contrast is stage 1's loss (`ContrastiveTask`: unicl or clip, with or without distillation), over all pairs; the
    other two are stage 2's (`BranchLosses`), means over the images with a class: image-text pairs (label -1) take part
    in the contrast alone. One image feature serves all three, so the vision tower learns from both. The text tower
    learns from the contrast alone: anchors are constants between two choices, as in stage 2, and no gradient flows
    into them.

    choose: chooses anchors with the towers as they are and stores them in the head; called before the first batch of
    every `refresh_every`th epoch. A run that is resumed within an epoch finds its anchors in the checkpoint.
    teacher: as in `ContrastiveTask`. has_pairs: whether the training data has image-text pairs.
    """

    def __init__(
        self,
        model: VLLTRForImageClassification,
        options: ModelOptions,
        loss: LossOptions,
        class_counts: Tensor,
        choose: Choice,
        *,
        refresh_every: int = 1,
        teacher: UniCLModel | None = None,
        has_pairs: bool = False,
    ) -> None:
        super().__init__(model, model.vlltr, options)
        self.terms = BranchLosses(model, loss, class_counts)
        # in a tuple, so not registered: it is made of parts of the model
        self._contrast = (ContrastiveTask(model.vlltr, options, loss, teacher),)
        self.weight, self.has_pairs = loss.contrast_weight, has_pairs
        self.choose, self.refresh_every = choose, refresh_every
        # places in the corpus of the anchors, -1 for none: a resumed run goes on from them
        self.register_buffer("chosen", torch.full(model.head.anchor_mask.shape, -1, dtype=torch.int64))

    def start_epoch(self, epoch: int, batch: int) -> None:
        if batch == 0 and epoch % self.refresh_every == 0:
            self.chosen.copy_(self.choose(epoch, self.chosen))
            # encoding leaves frozen towers in training mode
            self.train(self.training)

    def encode(self, batch: Batch) -> Features:
        return self._contrast[0].encode(batch)

    def observe(self, batch: Batch) -> Features:
        return self._contrast[0].observe(batch)

    def objective(self, features: Features, seen: Features, batch: Batch) -> dict[str, Tensor]:
        contrast = self._contrast[0].objective(features, seen, batch)
        images, labelled = self._labelled(features["images"], batch)
        branches = self.terms(self.model, images, labelled, self.progress)
        loss = branches["loss"] + self.weight * contrast["loss"]
        return contrast | branches | {"loss": loss}

    def _labelled(self, images: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
        """The images [B, D] that have a class, and their labels with how many there are over all processes."""
        labels = real(batch, batch["labels"])
        if not self.has_pairs:
            return images, {"labels": labels, "rows": batch.get("rows", len(labels))}
        known = labels >= 0
        rows = sum(count for (count,) in gather_integers([int(known.sum())], labels.device))
        return images[known], {"labels": labels[known], "rows": max(1, rows)}
