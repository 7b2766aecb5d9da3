"""The contest of the recognition stage: a step of ours is a run's step, and nothing of it lasts."""

import math

import pytest
import torch

from hf_vlr.bench.contests import head_epoch
from hf_vlr.bench.setting import Setting

SIZE = {"images": 50, "classes": 5, "anchors": 3, "width": 16, "layers": 1, "hidden": 64, "pixels": 32}
SIZE |= {"batch": 8, "epochs": 2, "pictures": 4}
SETTING = Setting(torch.device("cpu"), 1, SIZE, "quick")


def test_what_is_kept_is_what_the_tower_saw():
    seen = torch.randn(4, 64)
    views = head_epoch._states(SETTING, seen).views
    assert views.shape == (1, 50, 64) and torch.equal(views[0, :4], seen)


def test_both_can_be_called_again_and_again():
    for one in head_epoch.EPOCH.enter(SETTING):
        assert one.call() == one.call() == {}


def test_calls_and_images_make_the_whole():
    ours, tower = head_epoch.EPOCH.enter(SETTING)
    assert (ours.items, ours.calls_of_whole) == (8, 2 * math.ceil(50 / 8))
    assert (tower.items, tower.calls_of_whole) == (4, 2 * math.ceil(50 / 4))


@pytest.fixture
def trained():
    """A task, its step and the gradients that the optimiser of each step has met."""
    model = head_epoch._model(SETTING)
    batches = head_epoch._states(SETTING, torch.zeros(4, 64))
    task = head_epoch.RecognitionTask(
        model, head_epoch.ModelOptions(freeze=head_epoch.FROZEN), head_epoch.LossOptions(), torch.full((5,), 10)
    ).train()
    met = []
    weight = model.head.query.weight
    weight.register_post_accumulate_grad_hook(lambda parameter: met.append(parameter.grad.clone()))
    return task, head_epoch._training_step(task, batches, SETTING.device), met


def test_every_step_trains_the_head_on_another_batch_and_none_lasts(trained):
    task, step, met = trained
    before = {name: value.clone() for name, value in task.state_dict().items()}
    for _ in range(2 * math.ceil(50 / 8)):  # through the end of an epoch
        step()
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert all(gradient.norm() > 0 for gradient in met)
    assert len({float(gradient.norm()) for gradient in met}) == len(met) == 14
    names = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert names and all(name.startswith("model.head.") for name in names)
