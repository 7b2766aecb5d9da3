"""`hf-vlr recipes`: the list by families, and one recipe explained."""

import re

import pytest

from hf_vlr.cli.main import main
from hf_vlr.cli.recipes import FAMILIES, comment_parts, family
from hf_vlr.training.options import describe_keys
from hf_vlr.training.recipe import changed_values, load_recipe, packaged_recipes, spell_value


@pytest.fixture
def recipes(capsys, monkeypatch):
    """The lines that `hf-vlr recipes` prints on a terminal of eighty columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: str) -> list[str]:
        with pytest.raises(SystemExit) as caught:
            main(["recipes", *words])
        printed = capsys.readouterr()
        assert caught.value.code == 0, printed.err
        return printed.out.splitlines()

    return run


def test_the_list_is_by_families(recipes):
    lines = recipes()
    assert max(map(len, lines)) <= 80 and not any(line.endswith(" ") for line in lines)
    assert [line for line in lines if line in FAMILIES] == list(FAMILIES)
    heading, found = "", {}
    for line in lines:
        if line in FAMILIES:
            heading = line
        name = re.match(r"  (\S+)  +\S", line)
        if name and not line.startswith("   "):
            found[name[1]] = heading
    assert found == {name: family(name) for name in packaged_recipes()}


def test_titles_are_whole(recipes):
    text = " ".join(" ".join(recipes("shapes-")).split())
    assert "shapes-stage1 shapes-lt from scratch on a CPU: class-wise image-text contrast (stage 1)" in text
    assert "UniCL" not in text


def test_a_part_that_no_recipe_has(recipes):
    assert recipes("qqqq") == ["no recipe contains qqqq"]
    assert recipes("--keys", "qqqq") == ["no key contains qqqq"]


@pytest.mark.parametrize("name", ["vlltr-inat18-rn50-stage2", "shapes-stage1", "unicl"])
def test_one_recipe_is_explained(recipes, name):
    lines = recipes(name)
    assert max(map(len, lines)) <= 80
    assert lines[0] == name
    text = " ".join(" ".join(lines).split())
    assert packaged_recipes()[name] in text
    meanings = {key: meaning for key, _, _, meaning in describe_keys()}
    for key, value in changed_values(load_recipe(name)):
        if key != "output":
            assert f"{key}={spell_value(value)} " in text and " ".join(meanings[key].split()) in text
    assert "optim.lr=0.001" not in text
    assert any(re.match(r"  (hf-vlr|accelerate launch -m hf_vlr) train ", line) for line in lines)


def test_the_bases_of_a_recipe_are_named(recipes):
    text = " ".join(" ".join(recipes("vlltr-inat18-rn50-stage2")).split())
    assert "Base vlltr-inat18-vitb16-stage2 → vlltr-imagenet-lt-vitb16-stage2 → vlltr-vitb16-stage2" in text
    assert "optim.lr=2e-05 (default 0.001) peak learning rate" in text
    assert not any(line.strip().startswith("Base ") for line in recipes("shapes-stage1"))


def test_a_file_is_explained_too(recipes, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("# What I do\n#\n# Source: my own\n#   idea.\n# A remark.\nbase: shapes-stage1\nseed: 8\n")
    lines = recipes(str(path))
    assert lines[:2] == ["mine", "What I do"]
    text = " ".join(" ".join(lines).split())
    assert "Source my own idea." in text and "A remark." in text and "Base shapes-stage1" in text
    assert "seed=8 (default 0) seed of every random draw" in text


def test_the_parts_of_a_comment():
    comment = "Title\n\nSource: here,\n  and there.\nHardware: none.\nhf-vlr train x\naccelerate launch y"
    assert comment_parts(comment) == (
        "Title",
        [("Source", "here, and there."), ("Hardware", "none.")],
        ["hf-vlr train x", "accelerate launch y"],
    )
    assert comment_parts("") == ("", [], [])


def test_other_processes_print_nothing(recipes, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert recipes() == recipes("unicl") == []
