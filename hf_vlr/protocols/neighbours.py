"""Nearest neighbours by cosine, in pieces that fit into memory.

Letters: `Q` queries, `G` gallery items, `D` width, `k` neighbours, `C` classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_vlr.errors import UserError

# similarities held at a time: 256 MiB of float32
MOST_NUMBERS = 2**26


def nearest(
    queries: Tensor, gallery: Tensor, k: int, *, columns: Tensor | None = None, skip: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k gallery items of the highest cosine for each query: cosines `[Q, k]`, falling, and indices `[Q, k]`.

    queries `[Q, D]`, gallery `[G, D]`: float, of any norm; a zero vector has the cosine 0 with everything. Equal
    cosines stand in the order of the gallery. columns: int64 `[G']` or None; item i of the gallery is row
    `columns[i]`, so that equal items have exactly equal cosines. skip: int64 `[Q]` or None; one item that each query
    must not find, -1 for none. Queries are taken in pieces of at most `MOST_NUMBERS` cosines. Raises `UserError`
    unless 1 <= k <= number of items (less the skipped one).
    """
    items = len(gallery) if columns is None else len(columns)
    if not 1 <= k <= items - (skip is not None):
        raise UserError(f"{k} neighbours of {items} items; ask for fewer")
    unit = normalize(gallery.float(), dim=-1).t().contiguous()
    piece = max(1, MOST_NUMBERS // max(items, 1))
    cosines, indices = [], []
    for start in range(0, len(queries), piece):
        similarity = normalize(queries[start : start + piece].float(), dim=-1) @ unit
        if columns is not None:
            similarity = similarity[:, columns]
        if skip is not None:
            own = skip[start : start + piece]
            rows = (own >= 0).nonzero()[:, 0]
            similarity[rows, own[rows]] = -torch.inf
        values, places = _top(similarity, k)
        cosines.append(values)
        indices.append(places)
    if not cosines:
        return unit.new_zeros(0, k), torch.zeros(0, k, dtype=torch.int64)
    return torch.cat(cosines), torch.cat(indices)


def nearest_reference(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same by sorting everything."""
    similarity = normalize(queries.float(), dim=-1) @ normalize(gallery.float(), dim=-1).t()
    values, places = similarity.sort(dim=1, descending=True, stable=True)
    return values[:, :k], places[:, :k]


def _top(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of each row, equal ones by rising index (which `topk` leaves open)."""
    values, places = similarity.topk(k, dim=1)
    tied = ((similarity >= values[:, -1:]).sum(dim=1) > k).nonzero()[:, 0]
    if len(tied):
        places[tied] = similarity[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    places = places.sort(dim=1).values
    values, order = similarity.gather(1, places).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, order)


def weighted_vote(cosines: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """The class of the largest sum of exp(cos/T) over a query's neighbours, int64 `[Q]`.

    cosines, labels: `[Q, k]`, the neighbours of each query. Source: Wu et al., Unsupervised Feature Learning via
    Non-Parametric Instance Discrimination, CVPR 2018, §3.4 (there T = 0.07 and k = 200). Equal sums: the lower class.
    """
    weights = ((cosines - cosines[:, :1]) / temperature).exp().double()
    votes = torch.zeros(len(labels), num_classes, dtype=torch.float64).scatter_add_(1, labels, weights)
    return votes.argmax(dim=1)


def majority_vote(labels: Tensor, num_classes: int) -> Tensor:
    """The most frequent class of each row of `labels` `[Q, k]`, nearest first; among equals the nearest one's."""
    votes = torch.zeros(len(labels), num_classes, dtype=torch.int32)
    votes.scatter_add_(1, labels, torch.ones_like(labels, dtype=torch.int32))
    # argmax gives the first of equals
    first = votes.gather(1, labels).argmax(dim=1, keepdim=True)
    return labels.gather(1, first)[:, 0]
