"""One grammar, one policy for errors, help that teaches."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hf_vlr import __version__
from hf_vlr.cli import data, protocol
from hf_vlr.cli.main import COMMANDS, main
from hf_vlr.training.options import describe_keys


@pytest.fixture
def hf_vlr(capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(list(words))
        return caught.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def recipe(tmp_path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text("task: cvlp\n")
    return str(path)


@pytest.fixture
def picture(tmp_path) -> str:
    path = tmp_path / "red.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return str(path)


def test_help_lists_every_command(hf_vlr):
    code, out, _ = hf_vlr("--help")
    assert code == 0
    for name, (_, line) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", out, re.M)


@pytest.mark.parametrize(
    "command",
    [*COMMANDS, *(f"data {name}" for name in data.COMMANDS), *(f"protocol {name}" for name in protocol.COMMANDS)],
)
def test_every_command_has_help(hf_vlr, command):
    code, out, _ = hf_vlr(*command.split(), "--help")
    assert code == 0
    assert out.startswith(f"Usage: hf-vlr {command} ")
    assert f"hf-vlr {command}" in out.split("\n", 1)[1] or command in {"env", "data"}, "an example is missing"


def test_the_help_of_train_lists_every_key(hf_vlr):
    _, out, _ = hf_vlr("train", "--help")
    assert all(f"  {key} " in out for key, *_ in describe_keys())


def test_version(hf_vlr):
    assert hf_vlr("--version") == (0, f"hf-vlr, version {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "unknown command trian; did you mean train?"),
        (["xyz"], "unknown command xyz; there are quickstart, train, "),
        (["data", "buidl"], "unknown command buidl; did you mean build?"),
        (["train"], "Missing argument 'RECIPE'."),
        (["train", "RECIPE", "--rseume"], "No such option '--rseume'."),
        (["train", "RECIPE", "lr=1"], "unknown key lr; did you mean optim.lr?"),
        (["train", "RECIPE", "fast"], "'fast' is not key=value; "),
        (["train", "RECIPE", "--data", "imagefolder:x", "--out"], "Option '--out' requires an argument."),
        (["train", "no-such-recipe"], "unknown recipe no-such-recipe; "),
        (["eval", "model"], "Missing option '--data'."),
        (["data", "stats", "shapes-lt", "data.options.clases=3"], "unknown option 'clases' of shapes-lt"),
        (["data", "stats", "imagefolder:no-such-folder"], "no-such-folder: there is no such folder"),
        (["data", "build", "openclipart", "--out", "x"], "no builder for a dataset 'openclipart'"),
        (["predict", "model", "no-such.png"], "image no-such.png: "),
        (["predict", "no-such-model", "PICTURE"], "model no-such-model cannot be read: "),
        (["predict", "FOLDER", "PICTURE"], "model "),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(hf_vlr, recipe, picture, words, said):
    places = {"RECIPE": recipe, "PICTURE": picture, "FOLDER": str(Path(picture).parent)}
    code, out, err = hf_vlr(*[places.get(word, word) for word in words])
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


def test_a_misspelt_key_writes_nothing(hf_vlr, recipe, tmp_path):
    assert hf_vlr("train", recipe, "modle.vision=x", "--out", str(tmp_path / "run"))[0] == 2
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback(hf_vlr, recipe, monkeypatch):
    monkeypatch.setenv("HF_VLR_DEBUG", "1")
    code, _, err = hf_vlr("train", recipe, "lr=1")
    assert code == 2
    assert err.startswith("Traceback")
    assert err.endswith("error: unknown key lr; did you mean optim.lr?\n")


def test_other_processes_print_nothing_but_their_own_errors(hf_vlr, recipe, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert hf_vlr("recipes", "--keys") == (0, "", "")
    assert hf_vlr("train", recipe, "--rseume") == (2, "", "")
    code, _, err = hf_vlr("train", recipe, "lr=1")
    assert (code, err) == (2, "error [process 3]: unknown key lr; did you mean optim.lr?\n")


def test_an_interrupt_exits_with_130(hf_vlr, recipe, monkeypatch):
    def interrupt(self: Path) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "is_dir", interrupt)
    assert hf_vlr("train", recipe) == (130, "", "\ninterrupted\n")


def test_recipes_and_keys(hf_vlr):
    from hf_vlr.training.recipe import packaged_recipes

    code, out, _ = hf_vlr("recipes")
    assert code == 0
    assert all(name in out for name in packaged_recipes())
    _, out, _ = hf_vlr("recipes", "--keys", "optim.")
    assert [line.split()[0] for line in out.splitlines()] == [
        key for key, *_ in describe_keys() if key.startswith("optim.")
    ]
    assert hf_vlr("recipes", "--keys", "qqqq")[1] == "no key contains qqqq\n"


def test_data_stats(hf_vlr):
    code, out, err = hf_vlr("data", "stats", "shapes-lt", "data.options={classes: 6, max_count: 30, imbalance: 10}")
    assert (code, err) == (0, "")
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in out.splitlines() if not line.startswith(" "))
    assert rows["classes"] == "6 of 30 … 3 training images"
    assert rows["groups (oltr)"].startswith("0 many, ")
    assert rows["class texts"].endswith("; 0 classes have none")


def test_predict(hf_vlr, picture, tmp_path):
    import torch
    from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPVisionConfig

    from hf_vlr.modeling import VLLTRConfig, VLLTRForImageClassification, VLLTRModel

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    config = VLLTRConfig(
        text_config=CLIPTextConfig(**small, **words).to_dict(),
        vision_config=CLIPVisionConfig(**small, image_size=32, patch_size=16).to_dict(),
        projection_dim=8,
        num_anchors=2,
        id2label={0: "cat", 1: "dog"},
    )
    torch.manual_seed(0)
    model = VLLTRForImageClassification(config)
    mask = torch.tensor([[True, True], [True, False]])
    model.set_anchors(torch.randn(2, 2, 8), mask, [["a cat", "a purring cat"], ["a dog", ""]])
    model.head.class_counts.copy_(torch.tensor([30, 3]))
    model.save_pretrained(tmp_path / "model")
    CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False).save_pretrained(tmp_path / "model")
    code, out, _ = hf_vlr("predict", str(tmp_path / "model"), picture, picture)
    lines = out.splitlines()
    assert code == 0
    assert lines[:6] == lines[6:]
    assert lines[0] in {f"{picture}: cat", f"{picture}: dog"}
    assert any(re.fullmatch(r" +1\.00  a dog", line) for line in lines)
    assert any(re.search(r"cat  \(visual [\d.]+%, language [\d.]+%; 30 training images\)$", line) for line in lines)

    VLLTRModel(config).save_pretrained(tmp_path / "stage1")
    code, out, err = hf_vlr("predict", str(tmp_path / "stage1"), picture)
    assert (code, out) == (2, "")
    assert "is a VLLTRModel, not a recogniser" in err


def test_env(hf_vlr):
    code, out, _ = hf_vlr("env")
    assert code == 0
    assert re.search(rf"^hf_vlr +{re.escape(__version__)}$", out, re.M)
    assert re.search(r"^torch +\d", out, re.M)


def test_python_dash_m(recipe):
    command = [sys.executable, "-m", "hf_vlr", "train", recipe, "lr=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown key lr; did you mean optim.lr?\n"


@pytest.mark.slow
def test_accelerate_launch_starts_the_same_command_line(recipe):
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "-m",
        "hf_vlr",
        "train",
        recipe,
        "lr=1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "error: unknown key lr; did you mean optim.lr?\n" in done.stderr


def test_data_stats_draws_the_tail(hf_vlr, tmp_path):
    options = "data.options={classes: 8, unseen: 2, max_count: 8, imbalance: 2, size: 16, validation: 1, test: 1}"
    code, out, err = hf_vlr("data", "stats", "shapes-lt", options, "--plot", str(tmp_path / "tail.png"))
    assert code == 0, err
    assert "imbalance factor  2" in out and "vocabulary" in out
    assert Image.open(tmp_path / "tail.png").size == (1200, 600)
    code, _, err = hf_vlr("data", "stats", "shapes-lt", options, "--plot", str(tmp_path / "none" / "tail.png"))
    assert code == 2 and "cannot be written" in err
