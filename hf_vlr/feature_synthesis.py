"""New states for rare classes, made of states of frozen towers at the moment training draws them.

The sampler "over" brings every class to the size of the largest by repeating its rows. Here the first time that a row
comes in an epoch it is itself, and every further time it is a synthetic state of its class. Nothing is stored: a draw
is a function of its view, its row and two numbers of [0, 1), which the loader takes from (seed, epoch, position).

Letters: `K` views, `N` rows, `n_c` rows of class c, `W` tower width, `C` classes, `k` neighbours, `B` draws.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hf_vlr.data.shots import SHOT_RULES
from hf_vlr.errors import UserError


class Synthesis(Protocol):
    """Makes states [B, W] in place of views `view` [B] of `rows` [B]; `chance` float64 [2, B] is uniform in [0, 1)."""

    def __call__(self, view: Tensor, rows: Tensor, chance: Tensor) -> Tensor: ...


def build_synthesis(kind: str, views: Tensor, labels: np.ndarray, neighbours: int) -> Synthesis | None:
    """What `data.synthesis` names ("none", "smote" or "transfer") on states [K, N, W] of labelled rows [N].

    Raises `UserError` for image-text pairs, which have no class to make more of.
    """
    if kind == "none":
        return None
    if (labels < 0).any():
        raise UserError(f"data.synthesis={kind} works on labelled images only; set it to none for image-text pairs")
    classes = torch.from_numpy(labels)
    return SmoteStates(views, classes, neighbours) if kind == "smote" else TransferredStates(views, classes)


class SmoteStates:
    """Points between a state and a near one of its class (Chawla et al., JAIR 2002): x + λ (x' - x), λ ~ U(0, 1).

    x' is one of the k rows of the class nearest to x, by Euclidean distance between first views (those of the
    evaluation); both x and x' are then taken in the view that was drawn. A class of fewer rows has fewer neighbours,
    and a class of one row repeats it.

    Besides the states it keeps the neighbours, int64 [N, k]; they are found once.
    """

    def __init__(self, views: Tensor, labels: Tensor, neighbours: int) -> None:
        self.views = views
        self.nearest = class_neighbours(views[0], labels, neighbours)
        self.known = (labels.bincount()[labels] - 1).clamp(max=neighbours)

    def __call__(self, view: Tensor, rows: Tensor, chance: Tensor) -> Tensor:
        near = self.nearest[rows, (chance[0] * self.known[rows]).long()]
        return torch.lerp(self.views[view, rows], self.views[view, near], chance[1].to(self.views.dtype)[:, None])


class TransferredStates:
    """The spread of a common class around the mean of the row's own class: μ_c + (x_d - μ_d).

    The centre-based transfer of Yin et al. (CVPR 2019): classes are taken to differ in their mean and to share the
    spread around it, which a rare class has too few images to show. Chosen over Chu et al. (ECCV 2020), whose
    class-generic part comes from activation maps that a pooled state no longer has. Yin et al. pass x_d - μ_d through
    the leading principal directions of that spread; here all directions are kept, and nothing has to be chosen.

    The donor class d is one of those that are not few-shot (at least 20 images), or where there is none, one of those
    of at least the median size; each of them equally often, and of it each row. Means are over rows and views, so that
    the transferred states of a class have its mean; they take float32 [C, W].
    """

    def __init__(self, views: Tensor, labels: Tensor) -> None:
        self.views, self.labels = views, labels
        counts = labels.bincount()
        self.means = class_means(views, labels, counts)
        self.donors = donor_classes(counts)
        self.by_class, self.counts = labels.argsort(stable=True), counts
        self.first = counts.cumsum(0) - counts

    def __call__(self, view: Tensor, rows: Tensor, chance: Tensor) -> Tensor:
        donor = self.donors[(chance[0] * len(self.donors)).long()]
        other = self.by_class[self.first[donor] + (chance[1] * self.counts[donor]).long()]
        return self.means[self.labels[rows]] + (self.views[view, other] - self.means[donor])


def repetitions(order: np.ndarray) -> np.ndarray:
    """Whether the row at each position of an epoch's order [T] has come before in it, bool [T]."""
    repeated = np.ones(len(order), dtype=bool)
    repeated[np.unique(order, return_index=True)[1]] = False
    return repeated


def donor_classes(counts: Tensor) -> Tensor:
    """The classes whose spread is lent, int64, of n_c images each [C]: not few-shot, else at least of median size."""
    enough = SHOT_RULES["oltr"].few_below
    if counts.max() < enough:
        enough = counts[counts > 0].median()
    return (counts >= enough).nonzero()[:, 0]


def class_means(views: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Means [C, W] of states [K, N, W] over the views and the n_c rows of each class; zero for a class without any."""
    sums = views.new_zeros(len(counts), views.shape[2], dtype=torch.float64)
    for view in views:
        sums.index_add_(0, labels, view.double())
    return (sums / (len(views) * counts.clamp(min=1))[:, None]).to(views.dtype)


def class_neighbours(states: Tensor, labels: Tensor, count: int, chunk: int = 1024) -> Tensor:
    """The rows of the same class nearest to each row, nearest first, int64 [N, k], k = min(count, max n_c - 1, at
    least 1).

    Exact: all distances ‖x - y‖ within a class, `chunk` rows against the class at a time, in the states' precision
    (float32: chunk · n_c numbers at once). Where a class has fewer other rows the row itself fills up.
    """
    sizes = labels.bincount()
    width = max(1, min(count, int(sizes.max()) - 1))
    nearest = torch.arange(len(labels))[:, None].repeat(1, width)
    for rows in labels.argsort(stable=True).split(sizes.tolist()):
        found = min(width, len(rows) - 1)
        if found < 1:
            continue
        # ‖x - y‖² = ‖x‖² - 2 x·y + ‖y‖² loses few digits around the class's mean, and ‖x‖² does not change the order
        own = states[rows] - states[rows].mean(0)
        squares = own.square().sum(1)
        for start in range(0, len(rows), chunk):
            distances = squares - 2 * own[start : start + chunk] @ own.t()
            distances[:, start:].fill_diagonal_(torch.inf)
            nearest[rows[start : start + chunk], :found] = rows[distances.topk(found, largest=False).indices]
    return nearest


def class_neighbours_reference(states: Tensor, labels: Tensor, count: int) -> list[list[int]]:
    """What `class_neighbours` finds, row by row in float64, without filling up."""
    found = []
    for row, label in enumerate(labels.tolist()):
        others = [other for other, its in enumerate(labels.tolist()) if its == label and other != row]
        others.sort(key=lambda other: (states[other].double() - states[row].double()).norm().item())
        found.append(others[:count])
    return found
