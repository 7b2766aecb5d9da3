"""Ranked lists: at which place the right ones stand.

Letters: `Q` queries, `G` gallery items, `D` width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_vlr.protocols.neighbours import MOST_NUMBERS


def pair_ranks(
    images: Tensor, texts: Tensor, image_of: np.ndarray, text_of: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The place of each image's first own text among all texts, and of each text's first own image, from 1.

    images `[I, D]`, texts `[T, D]`, of any norm; pair p says that text `text_of[p]` belongs to image `image_of[p]`
    (int64 `[P]`); any number of either may belong to one of the other. Returns int64 `[I]` and `[T]`. Place = 1 +
    number of strangers whose cosine is at least that of the best own one, so equal cosines count against the model:
    features that are all the same have the last place, not the first. What has no pair gets the length of the list
    + 1.
    """
    return best_ranks(images, texts, image_of, text_of), best_ranks(texts, images, text_of, image_of)


def best_ranks(queries: Tensor, gallery: Tensor, query_of: np.ndarray, item_of: np.ndarray) -> np.ndarray:
    """One direction of `pair_ranks`: the place of each query's first own item, int64 `[Q]`."""
    unit = normalize(gallery.float(), dim=-1).t().contiguous()
    order = np.argsort(query_of, kind="stable")
    query_of, item_of = torch.as_tensor(query_of)[order], torch.as_tensor(item_of)[order]
    piece, ranks = max(1, MOST_NUMBERS // max(len(gallery), 1)), []
    for start in range(0, len(queries), piece):
        similarity = normalize(queries[start : start + piece].float(), dim=-1) @ unit
        first, last = torch.searchsorted(query_of, torch.tensor([start, start + len(similarity)])).tolist()
        own = torch.zeros_like(similarity, dtype=torch.bool)
        own[query_of[first:last] - start, item_of[first:last]] = True
        best = similarity.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append(((similarity >= best) & ~own).sum(dim=1) + 1)
    return torch.cat(ranks).numpy()


def recall_at(ranks: np.ndarray, places: Sequence[int]) -> dict[str, float]:
    """Share of queries whose first positive is among the first K: `recall@K` by K; and `median_rank`."""
    found = {f"recall@{place}": float((ranks <= place).mean()) for place in places}
    return found | {"median_rank": float(np.median(ranks))}


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """AP = Σ_n (R_n - R_{n-1}) P_n over the thresholds of falling score; None without a positive.

    scores `[N]`, positive bool `[N]`. P_n and R_n are precision and recall of all items whose score is at least the
    n-th distinct one, so the order of equal scores does not matter. No interpolation (not VOC 2007's 11 points).
    """
    total = int(positive.sum())
    if total == 0:
        return None
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    # the last item of each run of equal scores
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    precision, recall = hits[ends] / (ends + 1), hits[ends] / total
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def precision_at(scores: np.ndarray, positive: np.ndarray, place: int) -> float:
    """Share of positives among the `place` highest scores (all, where there are fewer); equal ones by index."""
    return float(positive[np.argsort(-scores, kind="stable")[:place]].mean())
