"""Models between two models: tensors by definition, ends bit by bit, folders that load, and what cannot be mixed."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from hf_vlr.errors import UserError
from hf_vlr.posthoc.weight_interpolation import interpolate, mixed_tensor, sweep


def folder(place, tensors, **files):
    place.mkdir()
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    for name, text in {"config.json": "{}", **files}.items():
        (place / name.replace("_", ".")).write_text(text)
    return place


@pytest.fixture
def two(tmp_path):
    """Folders of three tensors: weights, a scalar, counts."""
    torch.manual_seed(0)
    made = []
    for name in ("before", "after"):
        tensors = {"w": torch.randn(3, 4), "scale": torch.randn(()), "counts": torch.tensor([5, 3])}
        made.append(folder(tmp_path / name, tensors))
    return made


@pytest.mark.parametrize("weight", [0.25, 0.5, 0.9])
def test_every_tensor_lies_between(two, tmp_path, weight):
    made = load_file(interpolate(*two, weight, tmp_path / "between") / "model.safetensors")
    before, after = (load_file(one / "model.safetensors") for one in two)
    for name in ("w", "scale"):
        torch.testing.assert_close(made[name], torch.lerp(before[name], after[name], weight))
    assert made["counts"].tolist() == [5, 3]


def test_the_ends_are_the_models_bit_by_bit(two, tmp_path):
    special = torch.tensor([-0.0, 1e-45, 3.4e38, float("nan"), float("inf")])
    for place, extra in zip(two, (special, torch.full((5,), float("nan")))):
        tensors = load_file(place / "model.safetensors") | {"extra": extra}
        save_file(tensors, place / "model.safetensors")
    for weight, place in zip((0.0, 1.0), two):
        made = load_file(interpolate(*two, weight, tmp_path / f"at{weight}") / "model.safetensors")
        for name, tensor in load_file(place / "model.safetensors").items():
            assert made[name].numpy().tobytes() == tensor.numpy().tobytes()


def test_half_precision_is_mixed_in_double_and_the_wider_dtype_wins():
    one, other = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0078125], dtype=torch.bfloat16)
    assert mixed_tensor(one, other, 0.75).dtype == torch.bfloat16
    assert mixed_tensor(one, other.float(), 0.75).tolist() == [1 + 0.75 * 0.0078125]


def test_a_model_of_ours_between_two_is_loaded_and_computes(tmp_path, tiny):
    before = tiny.model()
    torch.manual_seed(1)
    after = tiny.model()
    with torch.no_grad():
        for parameter in after.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    before.save_pretrained(tmp_path / "before")
    after.save_pretrained(tmp_path / "after")
    tiny.processor().save_pretrained(tmp_path / "after")
    for name in ("metrics.json", "log.jsonl", "predictions.npz", "per_class.csv", "README.md", ".hidden"):
        (tmp_path / "after" / name).write_text("measured of the other")
    made = interpolate(tmp_path / "before", tmp_path / "after", 0.5, tmp_path / "deep" / "between")
    found = AutoModel.from_pretrained(made).state_dict()
    for name, tensor in after.state_dict().items():
        torch.testing.assert_close(found[name], (before.state_dict()[name] + tensor) / 2)
    beside = {path.name for path in made.iterdir()}
    assert {"config.json", "tokenizer.json", "processor_config.json"} <= beside
    assert not any("measured of the other" in (made / name).read_text(errors="ignore") for name in beside)
    assert [path.name for path in made.parent.iterdir()] == ["between"]


def test_shards_stay_shards(two, tmp_path):
    before, after = two
    tensors = load_file(after / "model.safetensors")
    (after / "model.safetensors").unlink()
    names = {"w": "model-00001-of-00002.safetensors", "scale": "model-00002-of-00002.safetensors"}
    names["counts"] = names["scale"]
    for shard in set(names.values()):
        save_file({name: tensors[name] for name in names if names[name] == shard}, after / shard)
    (after / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    made = interpolate(before, after, 0.5, tmp_path / "between")
    assert json.loads((made / "model.safetensors.index.json").read_text())["weight_map"] == names
    whole = load_file(before / "model.safetensors")
    for name, shard in names.items():
        torch.testing.assert_close(load_file(made / shard)[name] * 2, whole[name] + tensors[name], check_dtype=False)


def change(place, **tensors):
    save_file(load_file(place / "model.safetensors") | tensors, place / "model.safetensors")


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"w": torch.zeros(3, 5)}, r"w is \[3, 4\] in .*before, \[3, 5\] in .*after: sizes differ"),
        ({"head": torch.zeros(1)}, "before has no head, which .*after has: give two models of one architecture"),
        ({"head": torch.zeros(1), "top": torch.zeros(1)}, "has no head and 1 more"),
        ({"w": torch.zeros(3, 4, dtype=torch.int64)}, "w holds fractions in one of .* only"),
        ({"counts": torch.tensor([5, 4])}, "counts holds other values .* made for different classes or texts"),
    ],
)
def test_models_that_do_not_fit_are_named(two, tmp_path, extra, said):
    change(two[1], **extra)
    with pytest.raises(UserError, match=said):
        interpolate(*two, 0.5, tmp_path / "between")
    assert not (tmp_path / "between").exists()


def test_counts_of_batches_may_differ(two, tmp_path):
    for place, count in zip(two, (3, 9)):
        change(place, **{"norm.num_batches_tracked": torch.tensor(count)})
    made = interpolate(*two, 0.5, tmp_path / "between")
    assert load_file(made / "model.safetensors")["norm.num_batches_tracked"] == 9


def test_places_that_cannot_be_used(two, tmp_path):
    for weight in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match="between 0 and 1"):
            interpolate(*two, weight, tmp_path / "between")
    with pytest.raises(UserError, match="exists already"):
        interpolate(*two, 0.5, two[0])
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        interpolate(tmp_path, two[1], 0.5, tmp_path / "between")
    (two[0] / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        interpolate(*two, 0.5, tmp_path / "between")
    index = tmp_path / "sharded" / "model.safetensors.index.json"
    index.parent.mkdir()
    for text, said in (("{", "no index"), ('{"weight_map": {"w": "../before/model.safetensors"}}', "same folder")):
        index.write_text(text)
        with pytest.raises(UserError, match=said):
            interpolate(index.parent, two[1], 0.5, tmp_path / "between")


def test_a_sweep_finds_the_share_that_fits(two):
    """Scores that are right where the first weight is 0.7 of the way."""
    before, after = (load_file(place / "model.safetensors")["w"][0, 0] for place in two)
    labels = np.array([0, 1, 0, 1])

    def score(place):
        share = float((load_file(place / "model.safetensors")["w"][0, 0] - before) / (after - before))
        sure = 5.0 - 30.0 * abs(share - 0.7)
        return np.where(np.eye(2)[labels] > 0, sure, 0.0)

    found = sweep(*two, score, labels, split="validation")
    assert (found.value, found.split, found.images, found.warning) == (0.7, "validation", 4, None)
    assert found.scores[7] == pytest.approx(np.log1p(np.exp(-5.0)), rel=1e-4)
    accurate = sweep(*two, lambda place: np.eye(2)[labels], labels, split="validation", criterion="accuracy")
    assert (accurate.value, set(accurate.scores)) == (1.0, {1.0})
    with pytest.raises(UserError, match="unknown criterion"):
        sweep(*two, score, labels, split="validation", criterion="auc")


@pytest.mark.slow
def test_the_command_line_chooses_and_writes_a_model(tmp_path, capsys):
    from hf_vlr.cli.interpolate import command
    from hf_vlr.evaluate import evaluate_checkpoint
    from hf_vlr.training.options import Recipe
    from hf_vlr.training.recipe import override_recipe
    from hf_vlr.training.run import run

    small = ["data.options={classes: 4, max_count: 12, imbalance: 4}", "data.image_size=32", "data.max_text_length=16"]
    small += ["train.batch_size=4", "eval.report=false", "eval.resamples=0", "vision=scratch:resnet"]
    first = [*small, "model.projection_dim=16", "train.steps=1", f"output={tmp_path / 'first'}"]
    run(override_recipe(Recipe(task="unicl"), first))
    second = [*small, f"model.init={tmp_path / 'first'}", "train.steps=2", f"output={tmp_path / 'second'}"]
    run(override_recipe(Recipe(task="unicl"), second))
    capsys.readouterr()
    places = [str(tmp_path / name) for name in ("first", "second")]
    out = tmp_path / "between"
    command([*places, "weight=0,0.5,1", "--out", str(out)], standalone_mode=False)
    said = capsys.readouterr().out
    told = json.loads((out / "interpolation.json").read_text())
    assert [line.split()[0] for line in said.splitlines()[1:4]] == ["weight=0", "weight=0.5", "weight=1"]
    assert said.startswith("balanced-nll on validation of shapes-lt, ")
    assert said.endswith(f"weight={told['weight']:g}, written to {out}\n")
    assert told["tuned"]["grid"] == {"low": 0.0, "high": 1.0, "values": 3}
    assert evaluate_checkpoint(str(out), ["eval.splits=[validation]"])[0]["predictors"]
    command([*places, "weight=0.5", "--out", str(tmp_path / "half")], standalone_mode=False)
    assert json.loads((tmp_path / "half" / "interpolation.json").read_text())["tuned"] is None
    for words, error in (
        (["weight=2"], "from 0 to 1"),
        (["weight=x"], "give a number"),
        (["criterion=auc"], "unknown criterion"),
        (["criterion=nll", "weight=0.5"], "weight is given, so nothing is chosen: leave criterion= out"),
        (["weight=0.5", "--data", "shapes-lt"], "leave data.source= out"),
        (["weight=0.5", "--predictor", "fused"], "leave --predictor out"),
    ):
        with pytest.raises(UserError, match=error):
            command([*places, *words, "--out", str(tmp_path / "none")], standalone_mode=False)
    assert not (tmp_path / "none").exists()
