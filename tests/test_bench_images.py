"""The scoreboard's image pipelines do the same work."""

from io import BytesIO

import pytest
import torch
from PIL import Image

from hf_vlr.bench.contests.images import (
    EVALUATION,
    LARGE,
    OPEN_CLIP,
    OURS,
    PILLOW,
    STD,
    TIMM,
    TRAINING,
    TRANSFORMERS,
    photographs,
)
from hf_vlr.bench.setting import Setting

# a grey level in normalised pixels
LEVEL = 1 / 255 / min(STD)


def contestants(contest):
    for package in contest.needs:
        pytest.importorskip(package)
    setting = Setting(torch.device("cpu"), 1, contest.size_for("quick", "cpu"), "quick")
    return {one.name: one for one in contest.enter(setting)}


@pytest.mark.parametrize("contest", [EVALUATION, LARGE], ids=lambda contest: contest.name)
def test_all_pipelines_give_the_same_pixels_but_for_rounding(contest):
    found = {name: one.call() for name, one in contestants(contest).items()}
    assert list(found) == [OURS, PILLOW, OPEN_CLIP, TRANSFORMERS, TIMM]
    for name, answers in found.items():
        assert len(answers) == contest.sizes["quick"]["photographs"]
        for key, pixels in answers.items():
            assert (pixels.shape, pixels.dtype) == ((3, 224, 224), torch.float32)
            # transformers resizes as we do, the others by Pillow
            limit = 1e-5 if name == TRANSFORMERS else 2.01 * LEVEL
            assert (pixels - found[OURS][key]).abs().max() <= limit
            torch.testing.assert_close(found[PILLOW][key], found[OPEN_CLIP][key], atol=1e-5, rtol=0)


def test_random_crops_are_the_same_at_every_call_and_for_both():
    one, other = contestants(TRAINING).values()
    first, again = one.call(), one.call()
    for key, pixels in other.call().items():
        assert torch.equal(first[key], again[key])
        assert (pixels - first[key]).abs().max() <= 2.01 * LEVEL


def test_ours_come_first_and_goals_name_those_who_take_part():
    for contest in (EVALUATION, LARGE, TRAINING):
        found = contestants(contest)
        assert next(iter(found.values())).ours
        assert {one.items for one in found.values()} == {contest.sizes["quick"]["photographs"]}
        assert {goal.peer for goal in contest.goals.get("cpu", ())} | set(contest.floors) <= set(found)


def test_the_callers_generator_and_threads_stay_as_they_are():
    one = next(iter(contestants(TRAINING).values()))
    torch.manual_seed(3)
    expected, threads = torch.rand(1), torch.get_num_threads()
    torch.manual_seed(3)
    one.call()
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads


def test_photographs_differ_and_have_the_size():
    files = photographs(8, 50, 40)
    assert len(set(files)) == 8
    assert {Image.open(BytesIO(data)).size for data in files} == {(50, 40)}
