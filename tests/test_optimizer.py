"""Parameter groups and the learning-rate schedule."""

import math

import pytest
import torch
from torch import nn

from hf_vlr.errors import UserError
from hf_vlr.training.optimizer import build_optimizer, build_schedule, learning_rate, parameter_groups
from hf_vlr.training.options import OptimOptions


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.tower_head = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.tensor(1.0))


def rates(options: OptimOptions, model: nn.Module | None = None) -> dict[str, tuple[float, float]]:
    """(learning rate, weight decay) of each trained parameter."""
    model = model or Model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, options)
    found = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(found) == len(dict(found)), "a parameter is in two groups"
    return dict(found)


def test_only_matrices_decay():
    found = rates(OptimOptions(lr=0.1, weight_decay=0.3))
    matrices = {"tower.0.weight", "tower_head.weight"}
    assert found == {name: (0.1, 0.3 if name in matrices else 0.0) for name, _ in Model().named_parameters()}


def test_rates_are_scaled_by_whole_names_and_the_longest_wins():
    found = rates(OptimOptions(lr=1.0, lr_scales={"tower": 0.1, "tower.1": 0.5, "scale": 2.0}))
    assert {name: rate for name, (rate, _) in found.items()} == {
        "tower.0.weight": 0.1,
        "tower.0.bias": 0.1,
        "tower.1.weight": 0.5,
        "tower.1.bias": 0.5,
        "tower_head.weight": 1.0,
        "tower_head.bias": 1.0,
        "scale": 2.0,
    }


@pytest.mark.parametrize("name", ["towe", "tower.2", "head"])
def test_a_scale_for_nothing_is_an_error(name):
    with pytest.raises(UserError, match=rf"optim\.lr_scales\.{name} names no trained module"):
        rates(OptimOptions(lr_scales={name: 0.1}))


def test_a_scale_for_a_frozen_module_is_an_error():
    model = Model()
    model.tower.requires_grad_(False)
    assert not [name for name in rates(OptimOptions(), model) if name.startswith("tower.")]
    with pytest.raises(UserError, match=r"optim\.lr_scales\.tower names no trained module"):
        rates(OptimOptions(lr_scales={"tower": 0.1}), model)
    with pytest.raises(UserError, match="nothing to train"):
        rates(OptimOptions(), model.requires_grad_(False))


@pytest.mark.parametrize(("warmup", "least"), [(0.0, 0.0), (0.1, 0.0), (0.1, 0.25), (1.0, 0.0)])
def test_the_schedule_rises_linearly_and_falls_as_a_cosine(warmup, least):
    steps = 100
    factor = learning_rate(OptimOptions(warmup_fraction=warmup, min_lr_ratio=least), steps)
    values = [factor(step) for step in range(steps + 1)]
    rising = round(warmup * steps)
    assert values[:rising] == pytest.approx([(step + 1) / (rising + 1) for step in range(rising)])
    expected = [
        least + (1 - least) * (1 + math.cos(math.pi * step / max(1, steps - rising))) / 2
        for step in range(steps - rising + 1)
    ]
    assert values[rising:] == pytest.approx(expected)
    assert values[rising] == pytest.approx(1.0)
    if rising < steps:
        assert values[-1] == pytest.approx(least)
    assert factor(10 * steps) == pytest.approx(least if rising < steps else factor(10 * steps))


def test_the_schedule_scales_every_group():
    options = OptimOptions(lr=0.2, lr_scales={"tower": 0.5}, warmup_fraction=0.0)
    model = Model()
    optimizer = build_optimizer(model, options)
    schedule = build_schedule(optimizer, options, 2)
    peaks = [group["lr"] for group in optimizer.param_groups]
    assert set(peaks) == {0.2, 0.1}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([peak / 2 for peak in peaks])
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.0] * len(peaks))
