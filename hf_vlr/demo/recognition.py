"""From an image's feature to ranked classes, and again for other settings without running a tower.

Letters: `C` classes, `D` width of the common space, `M` anchor sentences per class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hf_vlr.data.shots import shot_names
from hf_vlr.modeling.recognition import fuse_logits, language_guided_logits
from hf_vlr.posthoc.logit_adjustment import adjusted

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Classes:
    """The classes a recogniser was trained on: names [C], training images [C] and shot groups [C].

    `train_counts` is None and every group "" where the checkpoint was not told. rule: what the groups are by.
    """

    names: tuple[str, ...]
    train_counts: npt.NDArray[np.int64] | None
    groups: tuple[str, ...]
    rule: str

    @classmethod
    def of(cls, names: Sequence[str], train_counts: npt.NDArray[np.int64], rule: str) -> "Classes":
        """Counts that are all zero are none."""
        if not train_counts.any():
            return cls(tuple(names), None, ("",) * len(names), rule)
        return cls(tuple(names), train_counts, tuple(shot_names(train_counts, rule)), rule)


@dataclass(frozen=True)
class Opinion:
    """What the two branches make of an image: log-probabilities [C] each, `language` None without anchors."""

    visual: Floats
    language: Floats | None


@dataclass(frozen=True)
class Row:
    """A class as it is shown. Scores are probabilities; `visual` and `language` None where there is no such branch.

    group: many, medium, few, "taught", or "" where it is not known; train_images None where they are not known.
    """

    index: int
    name: str
    score: float
    visual: float | None = None
    language: float | None = None
    group: str = ""
    train_images: int | None = None

    def document(self) -> dict[str, Any]:
        """The row as JSON, by the names that `predict` of the recogniser gives them."""
        return {
            "label": self.name,
            "index": self.index,
            "score": self.score,
            "visual_score": self.visual,
            "language_score": self.language,
            "group": self.group or None,
            "train_images": self.train_images,
        }


def scores_of(opinion: Opinion, classes: Classes, fusion_weight: float, tau: float) -> npt.NDArray[np.float64]:
    """Log-probabilities [C], log softmax(log(α visual + (1 − α) language) − τ log π).

    α `fusion_weight` in [0, 1], without meaning where there is one branch; π the shares of the classes in training;
    τ without meaning where they are not known. Sources: VL-LTR's fusion; Menon et al., ICLR 2021, logit adjustment.
    """
    fused = torch.from_numpy(opinion.visual).double()[None]
    if opinion.language is not None:
        fused = fuse_logits(fused, torch.from_numpy(opinion.language).double()[None], fusion_weight)
    fused = fused.numpy()
    return (fused if classes.train_counts is None else adjusted(fused, classes.train_counts, tau))[0]


def ranked(opinion: Opinion, classes: Classes, fusion_weight: float, tau: float, top: int) -> list[Row]:
    """The `top` best classes, best first; of equal scores the earlier class. The branches' scores stay as they are."""
    probabilities = np.exp(scores_of(opinion, classes, fusion_weight, tau))
    counts = classes.train_counts
    return [
        Row(
            index=index,
            name=classes.names[index],
            score=float(probabilities[index]),
            visual=float(np.exp(opinion.visual[index])),
            language=None if opinion.language is None else float(np.exp(opinion.language[index])),
            group=classes.groups[index],
            train_images=None if counts is None else int(counts[index]),
        )
        for index in best(probabilities, top)
    ]


def best(scores: npt.NDArray[Any], top: int) -> list[int]:
    """Indices of the `top` highest of scores [C], highest first; of equal ones the first."""
    return np.argsort(-scores, kind="stable")[: max(top, 1)].tolist()


@torch.no_grad()
def attended(head: Any, scale: float, feature: Floats, label: int, count: int) -> list[tuple[float, str]]:
    """(attention, sentence) of the `count` anchors of class `label` that an image attends to most, heaviest first.

    head: a `LanguageGuidedHead`; scale: of its cosines, the attention does not depend on it; feature: [D], projected,
    not normalised. The text is "" for a sentence that the checkpoint does not keep. Empty without anchors. Computes one
    class, where the model's own output computes all.
    """
    if head.query is None or not head.anchor_mask[label].any():
        return []
    one = slice(label, label + 1)
    _, attention = language_guided_logits(
        torch.from_numpy(feature)[None],
        head.anchors[one],
        head.anchor_mask[one],
        head.query.weight,
        head.key.weight,
        head.norm_query.weight,
        head.norm_query.bias,
        head.norm_key.weight,
        head.norm_key.bias,
        torch.tensor(scale),
        eps=head.norm_key.eps,
        return_attention=True,
    )
    weights, anchors = attention[0, 0].topk(min(count, int(head.anchor_mask[label].sum())))
    return [(weight, head.sentence(label, anchor)) for weight, anchor in zip(weights.tolist(), anchors.tolist())]
