"""Glosses, descriptions, taxonomies, templates, and the parts of `data.texts` that name them."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_vlr.data.corpus import ClassTextCorpus, TextRow, build_corpus
from hf_vlr.data.source import ImageSource
from hf_vlr.data.texts.clip_templates import clip_template_rows, clip_templates
from hf_vlr.data.texts.coverage import by_group, by_source, least_covered
from hf_vlr.data.texts.labels import LabelEntry, class_wnids, read_labels
from hf_vlr.data.texts.llm import llm_rows
from hf_vlr.data.texts.names import NameIndex, plain_name
from hf_vlr.data.texts.taxonomy import taxonomy_rows, taxonomy_sentences
from hf_vlr.data.texts.wordnet import synset_of, wordnet_rows
from hf_vlr.errors import UserError

TENCH, FOX, MISSILE, PROJECTILE = "n01440764", "n02119789", "n03773504", "n04008634"
ACRIS = {
    "id": 1, "name": "Acris crepitans", "supercategory": "Amphibia", "kingdom": "Animalia", "phylum": "Chordata",
    "class": "Amphibia", "order": "Anura", "family": "Hylidae", "genus": "Acris",
}  # fmt: skip
ROSA = {"id": 0, "name": "Rosa canina", "common_name": "dog rose", "genus": "Rosa"}


def texts(rows, label: int = 0) -> list[str]:
    return [row.text for row in rows if row.label == label]


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def make_source(names: list[str]) -> ImageSource:
    labels = np.arange(len(names))
    return ImageSource("made", "train", [Image.new("RGB", (2, 2))] * len(names), labels, [None] * len(names), names)


# names


def test_names_are_found_whatever_their_spelling_but_not_where_they_mean_two():
    index = NameIndex(["kit_fox", "/a/Art_Gallery/indoor", f"missile ({MISSILE})", f"missile ({PROJECTILE})"])
    assert index.find("Kit Fox") == [0]
    assert index.find("art gallery indoor") == [1]
    assert index.find("missile") == [2, 3]
    assert index.find(f"missile ({PROJECTILE})") == [3]
    assert index.find("cat") == []
    assert [plain_name(name) for name in ("/a/x_y/z", f"missile ({MISSILE})", "(12)")] == ["x y z", "missile", "(12)"]


# labels


@pytest.mark.parametrize(
    "lines",
    [
        f"{FOX} 7 kit_fox\n\n{TENCH} 3 tench\n",
        f"{TENCH} tench, Tinca tinca\n{FOX} kit fox, Vulpes macrotis\n",
        f"{TENCH} tench\r\n{FOX} kit_fox",
    ],
)
def test_labels_are_ordered_by_wordnet_id(tmp_path, lines):
    assert read_labels(write(tmp_path / "labels.txt", lines)) == [
        LabelEntry(TENCH, "tench"),
        LabelEntry(FOX, "kit fox"),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("tench 3\n", "'tench' is no WordNet id"),
        (f"{TENCH} a\n{TENCH} b\n", "n01440764 occurs 2 times"),
        ("\n", "no classes in it"),
    ],
)
def test_wrong_labels_are_named(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        read_labels(write(tmp_path / "labels.txt", lines))


def test_ids_in_class_names_count_before_the_order_of_a_file(tmp_path):
    labels = write(tmp_path / "labels.txt", f"{TENCH} tench\n{FOX} kit fox\n{MISSILE} missile\n")
    assert class_wnids([f"x ({FOX})", TENCH], labels) == [LabelEntry(FOX, "kit fox"), LabelEntry(TENCH, "tench")]
    assert class_wnids([FOX, PROJECTILE], None) == [LabelEntry(FOX, ""), LabelEntry(PROJECTILE, "")]
    with pytest.raises(UserError, match="the class names hold no WordNet ids"):
        class_wnids(["fox", "tench"], None)
    with pytest.raises(UserError, match="3 classes, the dataset has 2"):
        class_wnids(["tench", "kit fox"], labels)
    with pytest.raises(UserError, match="'tench' is class 0 there but class 2 of the dataset"):
        class_wnids(["kit fox", "missile", "tench"], labels)


# WordNet


def test_glosses_speak_of_name_and_lemmas(tmp_path):
    labels = write(tmp_path / "labels.txt", f"{TENCH} doctor fish\n{FOX} kit fox\n")
    rows = list(wordnet_rows(labels, ["doctor fish", "kit fox"]))
    lemmas, gloss = synset_of(TENCH)
    assert lemmas == ["tench", "Tinca tinca"]
    assert texts(rows) == [
        f"doctor fish: {gloss}.",
        f"tench: {gloss}.",
        f"Tinca tinca: {gloss}.",
        "tench, also called Tinca tinca.",
    ]
    assert "fish" in gloss
    assert texts(rows, 1) == [f"{lemma}: {synset_of(FOX)[1]}." for lemma in synset_of(FOX)[0]] + [
        "kit fox, also called Vulpes macrotis."
    ]
    assert {(row.source, row.license) for row in rows if row.label == 0} == {
        (f"WordNet 3.0 {TENCH}", "WordNet 3.0 license")
    }


def test_glosses_lose_their_examples():
    assert synset_of("n04605163")[1].endswith("; woven of worsted yarns")


def test_unknown_ids_are_reported_and_get_nothing(caplog):
    rows = list(wordnet_rows(None, [TENCH, "n99999999"]))
    assert {row.label for row in rows} == {0}
    assert caplog.messages == ["no WordNet gloss for 1 of 2 classes: n99999999"]
    with pytest.raises(UserError, match="none of the 1 WordNet ids is a synset timm knows, such as n99999999"):
        list(wordnet_rows(None, ["n99999999"]))


# descriptions


def test_descriptions_by_name_number_and_position(tmp_path):
    file = tmp_path / "d.json"
    by_name = {"Kit Fox": ["It is small.", "It hears well."], "tench": "It swims."}
    expected = [TextRow(0, "It swims.", "llm d.json"), TextRow(1, "It is small.", "llm d.json")]
    for content in (by_name, {"0": ["It swims."], "1": by_name["Kit Fox"]}, [["It swims."], by_name["Kit Fox"]]):
        rows = sorted(llm_rows(write(file, content), ["tench", "kit_fox"]))
        assert rows == [expected[0], TextRow(1, "It hears well.", "llm d.json"), expected[1]]


def test_descriptions_of_repeated_names_are_never_assigned_by_guess(tmp_path):
    names = ["missile", "cat", "missile"]
    with pytest.raises(UserError, match="1 names do not tell which class they mean: missile; key the file by index"):
        list(llm_rows(write(tmp_path / "d.json", {"missile": ["a"], "cat": ["b"]}), names))
    twice = '{"missile": ["on a launcher"], "cat": ["furry"], "missile": ["in the air"]}'
    assert [row[:2] for row in llm_rows(write(tmp_path / "d.json", twice), names)] == [
        (0, "on a launcher"),
        (1, "furry"),
        (2, "in the air"),
    ]
    shuffled = '{"missile": ["a"], "missile": ["b"], "cat": ["c"]}'
    with pytest.raises(UserError, match="2 names do not tell"):
        list(llm_rows(write(tmp_path / "d.json", shuffled), names))
    with pytest.raises(UserError, match="2 names do not tell which class they mean: crane, crane"):
        list(llm_rows(write(tmp_path / "d.json", '{"crane": ["a"], "crane": ["b"], "cat": ["c"]}'), ["crane", "cat"]))


def test_descriptions_of_other_classes_are_counted(tmp_path, caplog):
    content = {"cat": ["furry"], "dog": ["loud"], "cow": ["big"]}
    with caplog.at_level(logging.WARNING):
        assert texts(llm_rows(write(tmp_path / "d.json", content), ["cat"])) == ["furry"]
    assert caplog.messages == [f"{tmp_path / 'd.json'}: 2 of 3 names are no class: dog, cow"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"d\.json line 1: not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('"x"', "must be an object or a list of lists"),
        ({"dog": ["x"]}, "none of its 1 names is a class: dog"),
        ({}, "none of its 0 names is a class"),
        ([["x"]], "a list of 1 entries, the dataset has 2 classes"),
        ({"2": ["x"]}, "class 2 is outside 0 … 1"),
        ('{"1": ["x"], "01": ["y"]}', "class 1 occurs 2 times"),
        ({"cat": {"a": ["x"]}}, "the entry 'cat' is not a list of sentences"),
        ({"cat": ["x", 3]}, "the entry 'cat' is not a list of sentences"),
        ([["x"], None], "the entry '1' is not a list of sentences"),
    ],
)
def test_wrong_descriptions_are_named(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as caught:
        list(llm_rows(write(tmp_path / "d.json", content), ["cat", "bee"]))
    assert "\n" not in str(caught.value)


def test_numbers_that_are_names_of_other_classes_are_refused(tmp_path):
    path = write(tmp_path / "d.json", {"0": ["x"], "1": ["y"]})
    assert [row.label for row in llm_rows(path, ["0", "1"])] == [0, 1]
    with pytest.raises(UserError, match="'0' is a number of one class and the name of class 1"):
        list(llm_rows(path, ["1", "0"]))


# taxonomy


def test_a_sentence_for_every_rank():
    assert taxonomy_sentences(ACRIS) == [
        "a photo of Acris crepitans.",
        "a photo of Acris crepitans, a species of the genus Acris.",
        "a photo of Acris crepitans, a species of the family Hylidae.",
        "a photo of Acris crepitans, a species of the order Anura.",
        "a photo of Acris crepitans, a species of the class Amphibia.",
        "a photo of Acris crepitans, a species of the phylum Chordata.",
        "a photo of Acris crepitans, a species of the kingdom Animalia.",
        "a photo of Acris crepitans, a species of the genus Acris, family Hylidae, order Anura.",
        "a photo of Acris crepitans, an amphibian.",
    ]
    assert taxonomy_sentences(ROSA) == [
        "a photo of dog rose (Rosa canina).",
        "a photo of a dog rose.",
        "a photo of Rosa canina.",
        "a photo of dog rose (Rosa canina), a species of the genus Rosa.",
    ]
    assert taxonomy_sentences({"name": "x y", "supercategory": "Things"})[-1] == "a photo of x y, one of the Things."


@pytest.mark.parametrize("names", [["Acris crepitans", "Rosa canina"], ["1", "0"], ["00001", "00000"]])
def test_species_are_found_by_name_or_number(tmp_path, names):
    for content in ([ROSA, ACRIS], {"categories": [ACRIS, ROSA], "images": []}):
        rows = list(taxonomy_rows(write(tmp_path / "categories.json", content), names))
        assert texts(rows, 0) == taxonomy_sentences(ACRIS)
        assert texts(rows, 1) == taxonomy_sentences(ROSA)
    assert {(row.source, row.license) for row in rows} == {("taxonomy categories.json", "CC0-1.0")}


def test_species_and_classes_without_each_other_are_counted(tmp_path, caplog):
    rows = list(taxonomy_rows(write(tmp_path / "c.json", [ACRIS, ROSA]), ["Rosa canina", "Vulpes macrotis"]))
    assert {row.label for row in rows} == {0}
    assert caplog.messages == [
        f"{tmp_path / 'c.json'}: 1 of 2 categories are no class; 1 classes are no category: Vulpes macrotis"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, "must be a list of categories"),
        ([], "must be a list of categories"),
        ([{"id": 0}], "every category must be an object with a name"),
        ([{"name": " "}], "every category must be an object with a name"),
        ([{"name": "cat"}], "none of its 1 categories is a class: cat"),
        ([ROSA, ROSA], "'Rosa canina' does not tell which class it means"),
    ],
)
def test_wrong_taxonomies_are_named(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        list(taxonomy_rows(write(tmp_path / "c.json", content), ["Rosa canina"]))


# CLIP's templates


def test_clip_s_templates_speak_the_name():
    assert len({fill("xyz") for fill in clip_templates()}) == 80
    assert all(fill("xyz").count("xyz") == 1 for fill in clip_templates())
    rows = list(clip_template_rows(["recreation/board_games"]))
    assert rows[0] == TextRow(0, "a bad photo of a board games, recreation.", "clip-templates", "MIT")


def test_clip_s_templates_come_without_importing_open_clip():
    code = (
        "import sys; from hf_vlr.data.texts.clip_templates import clip_templates; clip_templates();"
        "print('open_clip' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_without_open_clip_its_extra_is_named(monkeypatch):
    clip_templates.cache_clear()
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"pip install 'hf_vlr\[convert\]'"):
        list(clip_template_rows(["cat"]))


# parts


def test_parts_are_joined(tmp_path):
    (tmp_path / "wiki").mkdir()
    write(tmp_path / "wiki" / "desc_0.txt", "The tench is a fish.")
    write(tmp_path / "wiki" / "desc_1.txt", "The fox is a dog.")
    labels = write(tmp_path / "l.txt", f"{TENCH} tench\n{FOX} kit fox\n")
    descriptions = write(tmp_path / "d.json", {"tench": ["Green and slimy."]})
    species = write(tmp_path / "c.json", [{"name": "kit fox", "genus": "Vulpes"}])
    plain = write(tmp_path / "t.csv", "label,text\n0,It lives in ponds.\n")
    parts = f"wiki:{tmp_path}+wordnet:{labels}+llm:{descriptions}+taxonomy:{species}+clip-templates+{plain}"
    corpus = build_corpus(parts, make_source(["tench", "kit fox"]))
    assert corpus.coverage().tolist() == [1 + 3 + 1 + 0 + 80 + 1, 1 + 3 + 0 + 2 + 80 + 0]
    assert {source for source, _, _ in by_source(corpus)} == {
        "clip-templates", "WordNet 3.0 n*", "VL-LTR wiki desc_*.txt", "llm d.json", "taxonomy c.json", "t.csv",
    }  # fmt: skip
    original = build_corpus(f"wiki-original:{tmp_path}", make_source(["tench", "kit fox"]))
    assert original.coverage().tolist() == [81, 81]


def test_wordnet_needs_no_file_where_names_hold_ids():
    corpus = build_corpus("wordnet", make_source([f"missile ({MISSILE})", f"missile ({PROJECTILE})"]))
    assert corpus.of(0)[0] == f"missile: {synset_of(MISSILE)[1]}."
    assert corpus.of(0)[0] != corpus.of(1)[0]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("wiki", "data.texts=wiki needs its place: wiki:DIR"),
        ("llm:", "data.texts=llm: needs its place: llm:FILE"),
        ("wordnet", "the class names hold no WordNet ids"),
        ("wordnet:none.txt", "none.txt: cannot be read"),
        ("taxonomy:none.json", "none.json: cannot be read"),
        ("wikipedia:x", "wikipedia:x: there is no such file"),
    ],
)
def test_a_wrong_part_is_named(part, message):
    with pytest.raises(UserError, match=message):
        build_corpus(part, make_source(["cat"]))


def test_a_path_called_like_a_part_stays_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wiki").mkdir()
    write(tmp_path / "wiki" / "cat.txt", "It purrs.")
    assert build_corpus("wiki", make_source(["cat"])).texts == ["It purrs."]


# coverage


def test_coverage_counts_classes_and_sentences():
    site = "https://en.wikipedia.org/wiki/"
    rows = [TextRow(0, "a", f"{site}A", "CC"), TextRow(0, "b", f"{site}B", "CC")]
    rows += [TextRow(2, "c", "VL-LTR wiki desc_12.txt"), TextRow(2, "d", "VL-LTR wiki desc_3.txt"), TextRow(2, "e")]
    corpus = ClassTextCorpus(rows, 4)
    assert by_source(corpus) == [("en.wikipedia.org", "CC", 2), ("VL-LTR wiki desc_*.txt", "", 2), ("", "", 1)]
    groups = {"many": np.array([True, True, False, False]), "none": np.zeros(4, dtype=bool)}
    assert by_group(corpus, groups) == [("all", 4, 2, 1.25), ("many", 2, 1, 1.0), ("none", 0, 0, 0.0)]
    assert least_covered(corpus) == [1, 3, 0, 2]
    assert least_covered(corpus, 1) == [1]
