"""What is shown and kept of a conversion: readable in a narrow terminal, whole in the card."""

import hashlib
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from hf_vlr.convert import convert
from hf_vlr.convert.card import write_card
from hf_vlr.convert.conversion import Conversion
from hf_vlr.convert.keymap import Move
from hf_vlr.convert.report import render

GOLDEN = Path(__file__).with_name("golden")
SOURCES = ("vlltr_cvlp_rn_tiny", "vlltr_lgr_vit_tiny", "unicl_swin_tiny")
NUMBERS = r" +(\d+) +([\d,]+)$"


@pytest.fixture(scope="module")
def conversions(tmp_path_factory) -> dict[str, Conversion]:
    folder = tmp_path_factory.mktemp("converted")
    formats = {name: "unicl" if name.startswith("unicl") else "vl-ltr" for name in SOURCES}
    return {
        name: convert(format, GOLDEN / f"{name}.pth", folder / name, tokenizer="none")
        for name, format in formats.items()
    }


def made(moves, tensors, **more) -> Conversion:
    """A conversion that nothing was written of."""
    rest = {"interpolated": (), "dropped": {}, "made": (), "notes": ()} | more
    return Conversion(folder=Path("out"), model="UniCLModel", moves=tuple(moves), tensors=tensors, **rest)


def shown(conversion: Conversion, width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(render(conversion))
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [60, 80, 110, 200])
@pytest.mark.parametrize("name", SOURCES)
def test_every_tensor_is_counted_in_any_width(conversions, name, width):
    conversion = conversions[name]
    found = shown(conversion, width)
    assert max(map(len, found)) <= width
    until = next(index for index, line in enumerate(found) if line.startswith(f"{conversion.model}:"))
    if "dtype" in found[0] or "what" in found[0]:
        rows = [re.search(r"  (\d+) +([\d,]+) ", line) for line in found[1 : until - 1]]
    else:
        rows = [match for line in found[2:until] if (match := re.search(NUMBERS, line))]
    assert sum(int(row[1]) for row in rows) == len(conversion.tensors)
    assert sum(int(row[2].replace(",", "")) for row in rows) == sum(one.numel() for one in conversion.tensors.values())


@pytest.mark.parametrize("name", SOURCES)
def test_in_80_columns_no_name_is_broken_within_a_part(conversions, name):
    found = shown(conversions[name], 80)
    parts = {
        part for move in conversions[name].moves for one in (move.source, *move.targets) for part in one.split(".")
    }
    until = found.index("")
    parts |= {part for one in conversions[name].made for part in one.split(".")}
    for line in found[2:until]:
        for part in filter(
            None, re.split(r"[.|]", re.sub(r"(^|  ) .*$", "", re.sub(r"^(  -> | {5}(?! ))", "", line)).strip())
        ):
            word = part.partition(" (made")[0]
            assert any(one.startswith(word.rstrip("*")) if "*" in word else word in (one, "q", "k") for one in parts), (
                line
            )


def test_a_family_takes_two_lines_and_what_was_done_stands_at_the_right(conversions):
    found = shown(conversions["vlltr_lgr_vit_tiny"], 80)
    at = found.index("text_embeddings".ljust(62) + "     1       1,120"[-18:])
    assert found[at + 1] == "  -> head.anchors"
    source = next(index for index, line in enumerate(found) if line.startswith("visual.proj "))
    assert re.fullmatch(r"  -> vlltr\.visual_projection\.weight {2,}transposed", found[source + 1])
    assert len(found[source]) == len(found[source + 1]) == 80
    assert any(re.fullmatch(r"  -> head\.anchor_mask \(made, bool\) +1 +35", line) for line in found)


def test_blocks_whose_insides_keep_their_names_are_one_family(conversions):
    found = shown(conversions["vlltr_cvlp_rn_tiny"], 80)
    at = next(index for index, line in enumerate(found) if line.startswith("visual.layer1.*"))
    assert re.fullmatch(r"visual\.layer1\.\* +24 +452", found[at])
    assert re.fullmatch(r"  -> vision_model\.layer1\.\* {2,}float32, int64", found[at + 1])
    # Swin's blocks have other names inside
    swin = shown(conversions["unicl_swin_tiny"], 80)
    assert not any(re.match(r"image_encoder\.layers\.\* ", line) for line in swin)


def test_totals_what_was_dropped_and_notes_come_last(conversions):
    conversion = conversions["unicl_swin_tiny"]
    for width in (80, 240):
        found = shown(conversion, width)
        last = " ".join(line.strip() for line in found[found.index("") + 1 :])
        assert last.startswith("UniCLModel: 116 tensors, 79,645 numbers, float32 dropped (derived): 5 tensors")
        assert last.endswith(conversion.notes[-1])


def test_a_dtype_that_is_everyones_is_said_once(conversions):
    wide = shown(conversions["unicl_swin_tiny"], 240)
    assert wide[0].split() == ["checkpoint", "model", "tensors", "parameters", "what"]
    assert [line.count("float32") for line in wide if "float32" in line] == [1]
    several = shown(conversions["vlltr_lgr_vit_tiny"], 240)
    assert several[0].split() == ["checkpoint", "model", "tensors", "parameters", "dtype", "what"]


@pytest.mark.parametrize("width", [50, 240])
def test_a_dtype_that_changed_is_shown_with_what_it_was(width):
    moves = [
        Move("a.weight", ("b.weight",), "", "float16", (30,)),
        Move("c.weight", ("d.weight",), "", "bfloat16", (2,)),
        Move("logit_scale", ("logit_scale",), "", "float32", ()),
    ]
    tensors = {"b.weight": torch.zeros(30), "d.weight": torch.zeros(2), "logit_scale": torch.zeros(())}
    found = shown(made(moves, tensors), width)
    assert "UniCLModel: 3 tensors, 33 numbers, float16 -> float32 (others above)" in " ".join(" ".join(found).split())
    assert any("d.weight" in line and "bfloat16 -> float32" in line for line in found)
    assert any(re.search(r"(the same|logit_scale) .*float32$", line.rstrip()) for line in found)


def test_a_name_that_stays_is_said_once():
    names = [f"vision_model.layers.{index}.{index * 'very_long_'}norm.weight" for index in range(3)]
    moves = [Move(name, (name,), "", "float32", (4,)) for name in names]
    found = shown(made(moves, {move.source: torch.zeros(4) for move in moves}), 60)
    assert [line.split() for line in found[2:4]] == [["vision_model.layers.*", "3", "12"], []]


def test_notes_are_text_and_no_markup():
    note = "class names from a.txt: 0 [bold]x[/bold], 1 [/]"
    assert note in shown(made([], {}, notes=(note,)), 80)


def test_the_card_names_every_source_with_its_digest(conversions, tmp_path):
    first, second = GOLDEN / "vlltr_cvlp_vit_tiny.pth", GOLDEN / "vlltr_lgr_vit_tiny.pth"
    write_card(tmp_path, conversions["vlltr_lgr_vit_tiny"], "vl-ltr", second, [first])
    card = (tmp_path / "README.md").read_text()
    rows = re.findall(r"\| source \| `(.*)` \|\n\| SHA-256 \| (.*) \|\n", card)
    assert rows == [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in (second, first)]
    assert str(GOLDEN) not in card


def test_no_note_or_name_leaves_its_cell_of_the_card(tmp_path):
    notes = ("class names: 0 a|b\n1 c",)
    conversion = made([], {}, notes=notes)
    (tmp_path / "a|b").mkdir()
    write_card(tmp_path, conversion, "hf-clip", tmp_path / "a|b")
    card = (tmp_path / "README.md").read_text()
    assert "| note | class names: 0 a\\|b 1 c |\n" in card
    assert "| source | `a\\|b` |\n| SHA-256 | not a single file |\n" in card
    write_card(tmp_path, conversion, "hf-clip", "some/name")
    assert "| source | `some/name` |\n" in (tmp_path / "README.md").read_text()
