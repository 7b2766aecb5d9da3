"""VL-LTR's corpora: read as the original reads them, and cleaned."""

import json
import re
from pathlib import Path

import pytest

from hf_vlr.data.texts.clip_templates import clip_template_rows
from hf_vlr.data.texts.sentences import MAX_WORDS, sentences_of
from hf_vlr.data.texts.wiki import page_sentences, wiki_rows
from hf_vlr.data.texts.wiki_original import parse_original, split_original, wiki_original_rows
from hf_vlr.errors import UserError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "vlltr_testvectors.json").read_text())
NAMES = [category["name"] for category in GOLDEN["text_categories"]]
TENCH = """The tench or doctor fish (Tinca tinca) is a fresh- and brackish-water fish. \
It is found in the U.K. and e.g. lakes. J. Smith described it. Is it common? Yes.

== Ecology ==
The tench eats 1.5 kg of food.
=== Diet ===

  Animal matter.And algae.
== References ==
Drop me.
== See also ==
Keep me.
"""
FOX = "the kit fox is a fox. It lives in U.S. deserts\nSecond line without period"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "wiki").mkdir()
    (tmp_path / "wiki" / "desc_0.txt").write_text(TENCH, encoding="utf-8")
    (tmp_path / "wiki" / "desc_1.txt").write_text(FOX, encoding="utf-8")
    return tmp_path


def of(rows: list, label: int) -> list[str]:
    return [row.text for row in rows if row.label == label]


def test_the_original_reading_gives_the_golden_sentences(corpus):
    rows = list(wiki_original_rows(corpus, NAMES))
    assert [len(of(rows, label)) for label in (0, 1)] == GOLDEN["text_num_sent"]
    assert of(rows, 0)[:3] == GOLDEN["text_first3_class0"]
    assert of(rows, 0)[78:] == GOLDEN["text_from78_class0"]
    assert of(rows, 1)[78:] == GOLDEN["text_from78_class1"]
    parsed = parse_original(TENCH)
    assert parsed == GOLDEN["text_wiki_dict_0"]
    assert list(parsed) == list(GOLDEN["text_wiki_dict_0"])


def test_the_original_reading_names_its_sources(corpus):
    rows = list(wiki_original_rows(corpus, NAMES))
    prompts = [row for row in rows if row.license == "MIT"]
    # the last prompt of class 1 runs into Wikipedia's text, and is under its licence
    assert len(prompts) == 80 + 79
    assert all(row.source == "clip-templates" for row in prompts)
    assert {(row.source, row.license) for row in rows if row not in prompts} == {
        ("VL-LTR wiki desc_0.txt", "CC-BY-SA-3.0"),
        ("VL-LTR wiki desc_1.txt", "CC-BY-SA-3.0"),
    }


def test_the_original_lets_a_repeated_title_overwrite():
    page = "a\n== T ==\nfirst\n== U ==\nb\n== T ==\nsecond"
    assert parse_original(page) == {"summary": "a", "T": "second", "U": "b"}
    assert list(parse_original(page)) == ["summary", "T", "U"]


def test_the_original_split_loses_no_letter():
    text = TENCH + FOX + " What? No! Dr. X. etc."
    assert "".join("".join(part.split()) for _, part in split_original(text)) == "".join(text.split())
    assert [end for end, _ in split_original("One. Two")] == [4, 8]


def test_cleaned_sentences(corpus):
    rows = list(wiki_rows(corpus, NAMES))
    assert of(rows, 0) == [
        "The tench or doctor fish (Tinca tinca) is a fresh- and brackish-water fish.",
        "It is found in the U.K. and e.g. lakes.",
        "J. Smith described it.",
        "Is it common?",
        "The tench eats 1.5 kg of food.",
        "Animal matter.",
        "And algae.",
    ]
    assert of(rows, 1) == ["the kit fox is a fox."]
    assert {(row.source, row.license) for row in rows if row.label == 0} == {("VL-LTR wiki desc_0.txt", "CC-BY-SA-3.0")}


def test_prompts_of_the_cleaned_corpus_stand_alone_without_a_space_before_the_period():
    rows = list(clip_template_rows(["kit_fox", "missile (n04008634)"]))
    assert of(rows, 0)[-1] == "a tattoo of the kit fox."
    assert of(rows, 1)[0] == "a bad photo of a missile."
    assert [len(of(rows, label)) for label in (0, 1)] == [80, 80]
    assert not [row.text for row in rows if re.search(r"\s\.|\s\s", row.text)]


def test_both_readings_fall_back_to_gbk(tmp_path):
    (tmp_path / "desc_0.txt").write_bytes("The carp (鲤鱼) swims.".encode("gbk"))
    assert of(list(wiki_rows(tmp_path, ["carp"])), 0) == ["The carp (鲤鱼) swims."]
    assert list(wiki_original_rows(tmp_path, ["carp"]))[-1].text == "The carp (鲤鱼) swims."
    (tmp_path / "desc_0.txt").write_bytes(b"\xff\xff\xff")
    with pytest.raises(UserError, match=r"desc_0\.txt: its bytes are not utf-8 nor gbk"):
        list(wiki_rows(tmp_path, ["carp"]))


def test_names_come_from_the_corpus_s_own_list(corpus):
    # ordered by WordNet id, whatever the order of the lines
    (corpus / "labels.txt").write_text("n02119022 7 kit_fox\nn01440764 3 tench\n")
    assert of(list(wiki_original_rows(corpus, ["Tench", "Kit Fox"])), 1)[0] == "a bad photo of a kit fox ."
    (corpus / "labels.txt").write_text("kit/fox indoor 1\ntench 0\n")
    assert of(list(wiki_original_rows(corpus, NAMES)), 1)[0] == "a bad photo of a kit fox ."
    (corpus / "categories.json").write_text('[{"id": 0, "name": "Tinca tinca"}, {"id": 1, "name": "Vulpes macrotis"}]')
    assert of(list(wiki_original_rows(corpus, NAMES)), 0)[0] == "a bad photo of a Tinca tinca ."


@pytest.mark.parametrize("reader", [wiki_rows, wiki_original_rows])
def test_a_corpus_of_other_classes_is_refused(corpus, reader):
    (corpus / "labels.txt").write_text("n01440764 3 tench\nn02119022 7 kit_fox\n")
    with pytest.raises(UserError, match="'tench' is class 0 there but class 1 of the dataset"):
        list(reader(corpus, ["kit fox", "tench"]))
    with pytest.raises(UserError, match=r"desc_1\.txt, but the dataset has 1 classes"):
        list(reader(corpus, ["tench"]))
    (corpus / "wiki" / "desc_2.txt").write_text("A cat.")
    with pytest.raises(UserError, match="2 classes, the dataset has 3"):
        list(reader(corpus, [*NAMES, "cat"]))


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        list(wiki_rows(tmp_path / "none", NAMES))
    with pytest.raises(UserError, match=r"no files desc_0\.txt"):
        list(wiki_rows(tmp_path, NAMES))
    (tmp_path / "desc_1.txt").write_text("One tench. One fish.")
    assert [row.label for row in wiki_rows(tmp_path, NAMES)] == [1, 1]
    with pytest.raises(UserError, match=r"1 files are missing: desc_0\.txt"):
        list(wiki_original_rows(tmp_path, NAMES))
    (tmp_path / "desc_2.txt").write_text("One fox.")
    (tmp_path / "desc_1.txt").unlink()
    with pytest.raises(UserError, match="numbered from 1; class 0 is desc_0"):
        list(wiki_rows(tmp_path, NAMES))
    (tmp_path / "labels.txt").write_text("tench 1\nfox 1\n")
    (tmp_path / "desc_2.txt").rename(tmp_path / "desc_0.txt")
    with pytest.raises(UserError, match="its indices are not 0 … 1, each once"):
        list(wiki_rows(tmp_path, NAMES))
    (tmp_path / "labels.txt").write_text("tench\n")
    with pytest.raises(UserError, match="its lines are neither"):
        list(wiki_rows(tmp_path, NAMES))


def test_appendices_go_with_all_below_them():
    page = "It is one.\n== See also ==\nOther things here.\n=== More ===\nStill more things.\n== Use ==\nIt is used."
    assert page_sentences(page) == ["It is one.", "It is used."]
    page = "A fox is wild.\n=== Notes ===\nNot this one.\n=== Diet ===\nIt eats mice.\n== REFERENCES ==\nNor this one."
    assert page_sentences(page) == ["A fox is wild.", "It eats mice."]
    assert page_sentences("It is one.\n== T ==\nIt is two.\n== T ==\nIt is three.") == [
        "It is one.",
        "It is two.",
        "It is three.",
    ]


def test_a_page_without_marked_headings():
    page = "A fox is wild.\n\nDiet and habits\n\nIt eats mice.\n\nSee also\nOther foxes are here.\n\nSources of it."
    assert page_sentences(page) == ["A fox is wild.", "It eats mice."]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Look out! It bites.\nIt runs", ["Look out!", "It bites.", "It runs"]),
        ("It lives in the U.S. It eats 2.5 kg.", ["It lives in the U.S.", "It eats 2.5 kg."]),
        ("Named by J. R. Smith, cf. Dr. Jones of St. Ives.", ["Named by J. R. Smith, cf. Dr. Jones of St. Ives."]),
        (
            "See e.g. Asia. It grew in 1990. In 1991 it left.",
            ["See e.g. Asia.", "It grew in 1990.", "In 1991 it left."],
        ),
        ('He said "Go on." Then he[12] left. (It ends.)', ['He said "Go on."', "Then he left.", "(It ends.)"]),
        ("The fox ( ; ) is ( ) red[3][citation needed].", ["The fox is red."]),
        ("Yes. No! 1990. It is red.", ["It is red."]),
        ("狐狸是动物。它很红！", ["狐狸是动物。", "它很红！"]),
        ("", []),
    ],
)
def test_sentences(text, sentences):
    assert sentences_of(text) == sentences


def test_long_sentences_are_cut_at_their_last_mark():
    clause = "word " * 24 + "end; "
    (one, two, three) = sentences_of(clause * 5 + "the last.")
    assert one == two == (clause * 2).strip()
    assert three == (clause + "the last.").strip()
    assert max(len(piece.split()) for piece in sentences_of("word " * 500)) == MAX_WORDS
    assert " ".join(sentences_of("word " * 500)) == ("word " * 500).strip()


def test_cleaning_is_done_once_and_for_all():
    for page in (TENCH, FOX, "A b! C d? " * 30):
        found = page_sentences(page)
        assert sentences_of("\n".join(found)) == found
        assert all(len(one.split()) > 1 and "\n" not in one and "==" not in one for one in found)
