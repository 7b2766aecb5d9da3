"""A full disk ends a run in one line, keeps the last good checkpoint, and the run can be finished afterwards."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hf_vlr.disk import error_number, writing
from hf_vlr.errors import UserError
from hf_vlr.features import StateCache
from hf_vlr.training.checkpoints import last_checkpoint, read_checkpoint, write_checkpoint
from hf_vlr.training.log import cut_log, write_line
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import override_recipe, recipe_to_yaml

TINY = (
    "data.options={classes: 8, unseen: 2, max_count: 8, imbalance: 2, size: 16, validation: 1, test: 1}",
    "data.texts=templates",
    "data.image_size=16",
    "data.max_text_length=16",
    "vision=scratch:resnet",
    "model.projection_dim=16",
    "model.num_anchors=4",
    "train.batch_size=12",
    "train.steps=7",
    "train.save_every=2",
    "train.log_every=1",
)
SPACE = os.strerror(errno.EFBIG).lower()
# bytes that a file may have: no checkpoint and no model fits; no line of a log; no result
NO_MODEL, NO_LINE, NOTHING = 100_000, 700, 10


def write_recipe(path: Path, *words: str) -> str:
    path.write_text(recipe_to_yaml(override_recipe(Recipe(task="unicl"), [*TINY, *words])))
    return str(path)


@pytest.fixture(scope="module")
def whole(children, tmp_path_factory) -> Path:
    """What the run becomes where there is room."""
    folder = tmp_path_factory.mktemp("disk")
    codes, said = children("train", write_recipe(folder / "mine.yaml"), "--out", str(folder / "whole"))
    assert codes == [0], said
    return folder / "whole"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "limit", "refused", "kept"),
    [
        (("batch", 6), NO_MODEL, "checkpoints/step-00000006.pt", 4),
        (("batch", 4), NO_LINE, "log.jsonl", 2),
        (("measurement", 1), NOTHING, "predictions.npz", 7),
        (("measurement", 1), NO_MODEL, "model.safetensors", 7),
    ],
)
def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_is_finished_later(
    where, limit, refused, kept, whole, children, tmp_path
):
    recipe, folder = write_recipe(tmp_path / "mine.yaml"), tmp_path / "run"
    words = ("train", recipe, "--out", str(folder))
    codes, said = children(*words, at=(*where, f"limit {limit}"))
    last = folder / "checkpoints" / f"step-{kept:08d}.pt"
    expected = f"error: {folder / refused} cannot be written ({SPACE}); mend that, then --resume goes on from {last}"
    assert codes == [2], said
    assert said.rstrip().splitlines()[-1] == expected
    assert "Traceback" not in said
    assert last_checkpoint(folder / "checkpoints") == last
    assert read_checkpoint(last)["progress"]["step"] == kept
    assert not list(folder.rglob(".*"))
    assert not (folder / "config.json").exists()
    assert children(*words, "--resume")[0] == [0]
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert sorted(path.name for path in folder.rglob("*")) == sorted(path.name for path in whole.rglob("*"))


@pytest.mark.slow
def test_two_processes_stop_together_where_one_cannot_write(children, tmp_path):
    recipe, folder = write_recipe(tmp_path / "mine.yaml"), tmp_path / "run"
    codes, said = children("train", recipe, "--out", str(folder), processes=2, at=("batch", 4, f"limit {NO_MODEL}"))
    assert codes == [2, 2], said
    assert f"error: {folder}/checkpoints/step-00000004.pt cannot be written ({SPACE}); mend that" in said
    assert "error [process 1]: the first process could not write a checkpoint" in said
    assert last_checkpoint(folder / "checkpoints").name == "step-00000002.pt"


@pytest.fixture
def small(tmp_path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_small_file_system_keeps_the_last_checkpoint(small):
    """No limit on a file but a disk that is full: half a checkpoint fits beside the one before."""
    write_checkpoint(small, 1, {"step": 1, "task": torch.zeros(160_000)}, keep=2)
    with pytest.raises(UserError) as caught:
        write_checkpoint(small, 2, {"step": 2, "task": torch.zeros(160_000)}, keep=2)
    last = small / "step-00000001.pt"
    assert str(caught.value) == (
        f"{small}/step-00000002.pt cannot be written ({os.strerror(errno.ENOSPC).lower()}); "
        f"mend that, then --resume goes on from {last}"
    )
    assert list(small.iterdir()) == [last]
    assert read_checkpoint(last)["step"] == 1


def test_a_full_cache_is_named_and_left_without_half_a_file(small):
    cache = StateCache(str(small / "cache"))
    said = r"\.safetensors cannot be written \(no space left on device\); mend that, or name another data\.cache_dir"
    with pytest.raises(UserError, match=said):
        cache.get(lambda: ["large"], lambda: torch.zeros(400_000))
    assert list((small / "cache").iterdir()) == []
    assert cache.get(lambda: ["small"], lambda: torch.ones(3)).tolist() == [1, 1, 1]


def test_the_first_checkpoint_that_does_not_fit_leaves_nothing(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(UserError) as caught:
        write_checkpoint(tmp_path / "checkpoints", 3, {}, keep=1)
    reason = os.strerror(errno.EEXIST).lower()
    name = f"{tmp_path}/checkpoints/step-00000003.pt"
    assert str(caught.value) == f"{name} cannot be written ({reason}); mend that and start again"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_log_on_a_full_disk_is_named(tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"log\.jsonl cannot be written \(no space left on device\); mend that"):
        write_line(tmp_path, {"step": 1, "loss": 2.0})


def test_only_what_the_system_refuses_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"), writing(tmp_path, "then"):
        raise RuntimeError("a bug")
    assert error_number(ValueError()) is None
    try:
        try:
            raise OSError(errno.EDQUOT, "quota")
        finally:
            raise RuntimeError("hides it")
    except RuntimeError as error:
        assert error_number(error) == errno.EDQUOT


def test_a_log_is_cut_at_the_step_and_before_damage(tmp_path):
    lines = [{"step": step, "loss": 1.5} for step in (1, 2, 2, 3)]
    for line in lines:
        write_line(tmp_path, line)
    path = tmp_path / "log.jsonl"
    whole = path.read_bytes()
    cut_log(tmp_path, 2)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
    for damage in (b'{"step": 2, "lo', b"\0\0\0\0\n", b'"step"\n', b'{"loss": 1}\n', b"\xff\n"):
        path.write_bytes(whole + damage)
        cut_log(tmp_path, 9)
        assert path.read_bytes() == whole
    cut_log(tmp_path / "nowhere", 1)


def test_numbers_that_json_does_not_know_are_null(tmp_path):
    write_line(tmp_path, {"step": 1, "grad_norm": float("inf"), "loss": float("nan")})
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1, "grad_norm": null, "loss": null}\n'
