"""Class weights and margins against their definition and their limits."""

import math

import pytest
import torch
from torch import Tensor

from hf_vlr.losses.classification import (
    class_weights,
    class_weights_reference,
    ldam_margins,
    ldam_margins_reference,
)

COUNTS = torch.tensor([500, 120, 30, 7, 1])


@pytest.mark.parametrize("counts", [COUNTS, torch.tensor([3, 0, 90, 0]), torch.tensor([1]), torch.tensor([8, 8])])
@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
@pytest.mark.parametrize("kind", ["none", "inverse", "class-balanced"])
def test_weights_agree_with_the_reference_and_average_to_one(counts: Tensor, kind: str, beta: float) -> None:
    weights = class_weights(counts, kind, beta)
    torch.testing.assert_close(weights, class_weights_reference(counts, kind, beta))
    assert weights.isfinite().all() and weights.min() > 0
    assert (counts.double() @ weights / counts.sum()).item() == pytest.approx(1.0, abs=1e-12)
    assert (weights[counts.argsort(descending=True)].diff() >= 0).all()


def test_effective_numbers_lie_between_uniform_and_inverse() -> None:
    uniform, inverse = torch.ones(5, dtype=torch.float64), class_weights(COUNTS, "inverse")
    torch.testing.assert_close(inverse, COUNTS.sum() / (5.0 * COUNTS.double()))
    torch.testing.assert_close(class_weights(COUNTS, "class-balanced", 0.0), uniform)
    torch.testing.assert_close(class_weights(COUNTS, "class-balanced", 1 - 1e-12), inverse)
    ratios = [(w := class_weights(COUNTS, "class-balanced", beta))[-1] / w[0] for beta in (0.0, 0.9, 0.99, 0.9999)]
    assert ratios == sorted(ratios) and ratios[0] == 1 and ratios[-1] < 500


@pytest.mark.parametrize("counts", [COUNTS, torch.tensor([3, 0, 90, 0]), torch.tensor([1])])
def test_margins_agree_with_the_reference(counts: Tensor) -> None:
    margins = ldam_margins(counts, 0.5)
    torch.testing.assert_close(margins, ldam_margins_reference(counts, 0.5))
    assert margins.max() == 0.5 and margins[counts.argmin()] == 0.5
    assert ldam_margins(torch.tensor([16, 1]), 0.5).tolist() == [0.25, 0.5]
    assert ldam_margins(counts, 0.0).abs().max() == 0


def test_a_class_without_images_stands_in_for_the_rarest() -> None:
    counts = torch.tensor([100, 0, 4])
    for values in (class_weights(counts), class_weights(counts, "inverse"), ldam_margins(counts)):
        assert values[1] == values[2]
    torch.testing.assert_close(class_weights(counts)[[0, 2]], class_weights(counts[[0, 2]]))
    torch.testing.assert_close(ldam_margins(counts)[[0, 2]], ldam_margins(counts[[0, 2]]))


@pytest.mark.parametrize("counts", [[0, 0], [[1, 2]], [3, -1], [1.0, math.nan]])
def test_impossible_counts_are_refused(counts: list) -> None:
    with pytest.raises(ValueError, match="counts must be"):
        class_weights(torch.tensor(counts))
    with pytest.raises(ValueError, match="counts must be"):
        ldam_margins(torch.tensor(counts))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="beta must lie"):
        class_weights(COUNTS, beta=1.0)
    with pytest.raises(ValueError, match="kind must be"):
        class_weights(COUNTS, "sqrt")
    with pytest.raises(ValueError, match="max_margin"):
        ldam_margins(COUNTS, -0.1)
