"""A run that was interrupted anywhere and resumed ends with the bits of one that was not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from hf_vlr.errors import UserError
from hf_vlr.training.checkpoints import last_checkpoint, read_checkpoint, write_checkpoint
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import override_recipe
from hf_vlr.training.run import run
from hf_vlr.training.tokenizer import train_tokenizer
from hf_vlr.training.trainer import Trainer

TINY = (
    "data.options={classes: 8, unseen: 2, max_count: 8, imbalance: 2, size: 16, validation: 1, test: 1}",
    "data.image_size=16",
    "data.max_text_length=24",
    "vision=scratch:resnet",
    "model.projection_dim=16",
    "model.num_anchors=4",
    "train.batch_size=12",
    "train.steps=9",
    "train.save_every=2",
    "train.log_every=3",
)
CACHED = ("model.freeze=vision_model,text_model", "data.cache_views=2")
# what must come out the same; recognition starts from a stage-1 folder
RUNS = {
    "contrast": (),
    "contrast with dropout": ("text=DROPOUT",),
    "contrast on states": CACHED,
    "contrast in two parts": ("train.accumulation=2",),
    "distillation": ("task=cvlp", "loss.distillation=0.5"),
    "recognition": ("task=recognition", "model.init=STAGE1"),
    "recognition on states": ("task=recognition", "model.init=STAGE1", *CACHED),
}


# what a log line says of the machine, not of the run
MEASURED = ("seconds", "rows_per_second", "peak_memory_mib")


class Interrupted(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """A text tower with dropout, and what stage 1 wrote."""
    root = tmp_path_factory.mktemp("towers")
    tokenizer = train_tokenizer(["a red square", "two dotted stars"], 300, 24)
    settings = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **settings)
    assert config.hidden_dropout_prob > 0
    BertModel(config).save_pretrained(root / "bert")
    tokenizer.save_pretrained(root / "bert")
    run(tiny(root / "stage1", "task=cvlp", "train.steps=2"))
    return {"DROPOUT": str(root / "bert"), "STAGE1": str(root / "stage1")}


def tiny(output: Path, *words: str) -> Recipe:
    return override_recipe(Recipe(task="unicl"), [*TINY, *words, f"output={output}"])


def interrupt_after(monkeypatch, batches: int) -> None:
    """Let the next run die in the middle of a batch, as a lost process would."""
    taken = iter(range(batches))
    whole = Trainer._batch

    def part(self, batch):
        if next(taken, None) is None:
            raise Interrupted
        return whole(self, batch)

    monkeypatch.setattr(Trainer, "_batch", part)


def log_of(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def assert_same_run(first: Path, second: Path) -> None:
    one, other = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
    assert log_of(first) == log_of(second)
    scores = [json.loads((folder / "metrics.json").read_text())["predictors"] for folder in (first, second)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_uninterrupted_one(name, places, tmp_path, monkeypatch):
    words = [places_in(word, places) for word in RUNS[name]]
    whole = run(tiny(tmp_path / "whole", *words))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 12 if "two parts" in name else 7)  # of 7 or 4 in an epoch
        with pytest.raises(Interrupted):
            run(tiny(tmp_path / "parts", *words))
    assert last_checkpoint(tmp_path / "parts" / "checkpoints").name == "step-00000006.pt"
    assert not (tmp_path / "parts" / "config.json").exists()
    parts = run(tiny(tmp_path / "parts", *words), resume=True)
    assert_same_run(whole, parts)
    assert [line["step"] for line in log_of(parts)] == [3, 6, 9]


def places_in(word: str, places: dict[str, str]) -> str:
    for name, path in places.items():
        word = word.replace(name, path)
    return word


def test_a_resume_from_before_the_log_repeats_no_line(tmp_path, monkeypatch):
    words = ("train.log_every=1", "train.save_every=4")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)
        with pytest.raises(Interrupted):
            run(tiny(tmp_path / "run", *words))
    assert [line["step"] for line in log_of(tmp_path / "run")] == [1, 2, 3, 4, 5, 6, 7]
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    run(tiny(tmp_path / "run", *words), resume=True)
    assert [line["step"] for line in log_of(tmp_path / "run")] == list(range(1, 10))


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "another model"])
def test_a_damaged_checkpoint_is_named(damage, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(Interrupted):
            run(tiny(tmp_path / "run"))
    path = last_checkpoint(tmp_path / "run" / "checkpoints")
    assert path.name == "step-00000004.pt"
    if damage == "another model":
        state = read_checkpoint(path)
        state["task"].popitem()
        torch.save(state, path)
    else:
        content = path.read_bytes()
        path.write_bytes(
            {"cut": content[: len(content) // 2], "garbage": b"\x80\x02 no checkpoint", "empty": b""}[damage]
        )
    with pytest.raises(UserError) as caught:
        run(tiny(tmp_path / "run"), resume=True)
    message = str(caught.value)
    assert message.startswith(f"checkpoint {path} cannot be resumed from (")
    assert message.endswith("delete it, and --resume takes the one before")
    assert "\n" not in message
    path.unlink()  # what the message says
    run(tiny(tmp_path / "run"), resume=True)
    assert_same_run(run(tiny(tmp_path / "whole")), tmp_path / "run")


def test_a_hostile_checkpoint_is_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"model": Hostile()}, tmp_path / "step-00000001.pt")
    with pytest.raises(UserError, match="cannot be resumed from"):
        read_checkpoint(tmp_path / "step-00000001.pt")
    assert not (tmp_path / "executed").exists()


def test_checkpoints_are_complete_or_absent_and_few(tmp_path):
    for step in range(1, 5):
        write_checkpoint(tmp_path, step, {"step": step}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003.pt", "step-00000004.pt"]
    half = tmp_path / ".step-00000005.pt.partial"
    half.write_bytes(b"half")
    assert read_checkpoint(last_checkpoint(tmp_path)) == {"step": 4}
    write_checkpoint(tmp_path, 6, {"step": 6}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006.pt"]
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_resuming_a_complete_run_writes_it_again(tmp_path):
    first = run(tiny(tmp_path / "run"))
    before, loss = load_file(first / "model.safetensors"), log_of(first)[-1]["loss"]
    run(tiny(tmp_path / "run"), resume=True)
    after = load_file(first / "model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert json.loads((first / "metrics.json").read_text())["protocol"]["training"]["loss"] == loss


def test_a_run_is_not_resumed_with_another_recipe(tmp_path):
    run(tiny(tmp_path / "run", "train.steps=2"))
    with pytest.raises(UserError, match=r"cannot resume .* with another optim\.lr; start anew with out="):
        run(tiny(tmp_path / "run", "train.steps=2", "optim.lr=0.5"), resume=True)
    run(tiny(tmp_path / "run", "train.steps=2", "train.log_every=1", "data.workers=1"), resume=True)
