"""The last layer of a trained classifier made anew for balanced classes (Kang et al., ICLR 2020, §4).

Logits are z = W x + b of frozen features x. Letters: `N` images, `C` classes, `W` width of the features.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

# the grid of the authors' code
TAUS = [round(0.1 * step, 1) for step in range(21)]
# inverse temperatures for a feature of mean length, in half octaves
SCALES = [2.0 ** (step / 2) for step in range(21)]


def tau_normalise(weight: Tensor, tau: float) -> Tensor:
    """w_c / ‖w_c‖^τ of the rows of a weight [C, W]: unchanged at τ = 0, unit vectors at τ = 1; a zero row stays."""
    return weight / row_norms(weight).pow(tau)[:, None]


def tau_classifier(weight: Tensor, tau: float) -> Tensor:
    """`tau_normalise` times g^τ, g the geometric mean of the ‖w_c‖: logits keep the scale they were trained to have.

    A factor common to all classes changes no prediction, but the probabilities, and with them a mixture with those of
    another branch.
    """
    return tau_normalise(weight, tau) * row_norms(weight).log().mean().mul(tau).exp()


def row_norms(weight: Tensor) -> Tensor:
    """‖w_c‖ [C], 1 for a zero row."""
    norms = weight.norm(dim=1)
    return torch.where(norms > 0, norms, torch.ones_like(norms))


def choose_tau(logits: Tensor, weight: Tensor, labels: Tensor) -> float:
    """The τ of `TAUS` (0, 0.1, … 2) with the highest mean accuracy of the classes; the smallest of several.

    logits: [N, C], W x without bias. weight: [C, W]. labels: int64 [N]; a class without images does not count.
    """
    norms = row_norms(weight)
    return max(TAUS, key=lambda tau: (balanced_accuracy(logits / norms.pow(tau), labels), -tau))


def balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    """The mean over the classes of labels [N] of the part that logits [N, C] get right."""
    right = (logits.argmax(1) == labels).double()
    return float((right * balanced_weights(labels)).sum())


def balanced_weights(labels: Tensor) -> Tensor:
    """Weights [N] that sum to 1 and give each class of labels [N] as much as any other, float64."""
    counts = labels.bincount()
    return 1.0 / (counts[labels] * counts.count_nonzero()).double()


def ncm_classifier(batches: Iterable[tuple[Tensor, Tensor]], num_classes: int) -> Tensor:
    """The weight [C, W] of the nearest class mean by cosine: unit vectors along the means of the unit features.

    batches: features [n, W] and labels int64 [n] of the training images. argmax_c w_c·x is the class whose mean has
    the largest cosine with x, whatever the length of x. Sums are in float64; a class without images gets zeros.
    """
    total: Tensor | None = None
    for features, labels in batches:
        if total is None:
            total = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, device=features.device)
        total.index_add_(0, labels, normalize(features.double(), dim=1))
    if total is None:
        raise ValueError("class means need at least one batch of features")
    return normalize(total, dim=1).float()


def choose_scale(logits: Tensor, labels: Tensor) -> float:
    """The s of `SCALES` with the lowest class-balanced negative log-likelihood of softmax(s z), z [N, C]."""
    weights = balanced_weights(labels)

    def loss(scale: float) -> float:
        likelihood = (scale * logits.double()).log_softmax(1)
        return float(-(weights * likelihood.gather(1, labels[:, None])[:, 0]).sum())

    return min(SCALES, key=loss)


class ScaledClassifier(nn.Module):
    """Logits f_c (w_c·x + b_c) with a trained scale f_c per class, 1 at first, of a layer that stays as it is.

    Learnable weight scaling; the bias is scaled too, as in the authors' code. The layer is not registered: scales [C]
    are all there is to train and to keep.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.ones(layer.out_features, device=layer.weight.device))
        self._layer = (layer,)

    def forward(self, features: Tensor) -> Tensor:
        return self.scales * self._layer[0](features)

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the scales into the layer."""
        layer = self._layer[0]
        layer.weight.mul_(self.scales[:, None])
        layer.bias.mul_(self.scales)
