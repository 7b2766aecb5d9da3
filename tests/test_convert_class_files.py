"""Files of class names and of numbers per class: what they may look like, and what is never guessed."""

import json

import pytest

from hf_vlr.convert.class_files import read_counts, read_labels
from hf_vlr.errors import UserError


def names(tmp_path, text, count, file="labels.txt"):
    (tmp_path / file).write_text(text, encoding="utf-8")
    return read_labels(str(tmp_path / file), count)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n02 2 x\n", ["n02 2 x"]),
        ("n01443537 1 gold_fish\nn01440764 0 tench\n", ["tench", "gold fish"]),
        ("n01440764 2 tench\nn01443537 1 gold_fish\n", ["tench", "gold fish"]),
        ("n03773504 0 missile\nn04008634 1 missile\n", ["missile (n03773504)", "missile (n04008634)"]),
        ("n01440764 tench, Tinca tinca\nn01443537 gold fish\n", ["tench", "gold fish"]),
        ("/b/beach_house 1\n/a/apartment_building/outdoor 0\n", ["apartment building outdoor", "beach house"]),
        ("/a/bar\n/b/bar\n", ["bar (0)", "bar (1)"]),
        ("beach_house 1\nairfield 0\n", ["airfield", "beach house"]),
        ("great_grey_owl\n\nelk\n", ["great grey owl", "elk"]),
        ("AC/DC\r\n\tred  fox \r\n", ["AC/DC", "red fox"]),
    ],
)
def test_label_files_as_the_benchmarks_have_them(tmp_path, text, expected):
    assert names(tmp_path, text, len(expected)) == expected


@pytest.mark.parametrize(
    "lines",
    [
        [f"thing {index}" for index in range(1000)],
        [f"thing {index}" for index in reversed(range(4))],
        ["level 3", "level 1"],
        ["big cat 0", "small cat 1"],
        ["Boeing 747 1", "Airbus A380 0"],
        ["cat 1", "dog 2"],
        ["cat 0", "dog 0"],
        ["cat 0", "dog 1", "elk"],
        ["route " + "9" * 5000, "way 0"],
    ],
)
def test_names_that_end_in_numbers_keep_them_and_their_order(tmp_path, lines):
    assert names(tmp_path, "\n".join(lines), len(lines)) == lines


@pytest.mark.parametrize("text", ["/a/airfield 1\n/b/bar 2\n", "/a/airfield 0\n/b/bar 0\n"])
def test_places_with_other_indices_are_refused(tmp_path, text):
    with pytest.raises(UserError, match=r"labels\.txt: the indices of its lines NAME INDEX must be 0 to 1, each once"):
        names(tmp_path, text, 2)


def test_indices_that_contradict_the_wordnet_ids_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"contradicts itself: n01440764 has the index 1, .* it is class 0"):
        names(tmp_path, "n01440764 1 tench\nn01443537 0 gold_fish\n", 2)
    with pytest.raises(UserError, match="names n01440764 twice"):
        names(tmp_path, "n01440764 0 tench\nn01440764 1 gold_fish\n", 2)


def test_names_in_json_stay_as_they_are(tmp_path):
    listed = ["snake_case", "AC/DC", "/a/bar", "thing 0", "two  spaces", "Ümläut 猫"]
    assert names(tmp_path, json.dumps(listed), 6, "labels.json") == listed
    mapping = {str(index): name for index, name in reversed(list(enumerate(listed * 2)))}
    expected = [f"{name} ({index})" for index, name in enumerate(listed * 2)]
    assert names(tmp_path, json.dumps(mapping), 12, "labels.JSON") == expected


def test_categories_of_inaturalist(tmp_path):
    rows = [{"id": 1, "name": "Vulpes vulpes", "kingdom": "Animalia"}, {"id": 0, "name": "Vulpes lagopus"}]
    assert names(tmp_path, json.dumps(rows), 2, "categories.json") == ["Vulpes lagopus", "Vulpes vulpes"]
    assert names(tmp_path, json.dumps([{**row, "id": str(row["id"] + 9)} for row in rows]), 2, "categories.json") == [
        "Vulpes lagopus",
        "Vulpes vulpes",
    ]
    without = [{"name": row["name"]} for row in rows]
    assert names(tmp_path, json.dumps(without), 2, "a.json") == ["Vulpes vulpes", "Vulpes lagopus"]


@pytest.mark.parametrize(
    ("file", "text", "note"),
    [
        ("a.txt", "/b/b 2\n/a/a_cabin 1\n/a/airfield 0\n", "a.txt, read as NAME INDEX: 0 airfield, 1 a cabin, …"),
        ("a.txt", "thing 1\nthing 0\n", "a.txt, read as a name a line: 0 thing 1, 1 thing 0"),
        ("a.txt", "n01440764 0 tench\n", "a.txt, read as WNID INDEX NAME, ordered by WNID: 0 tench"),
        ("a.txt", "n01440764 tench\n", "a.txt, read as WNID NAME, ordered by WNID: 0 tench"),
        ("a.json", '["a_b"]', "a.json, read as a list of names: 0 a_b"),
        ("a.json", '{"1": "b", "0": "a"}', "a.json, read as INDEX: NAME: 0 a, 1 b"),
        ("a.json", '[{"id": 4, "name": "a"}]', "a.json, read as objects with a name, ordered by id: 0 a"),
        ("a.json", '[{"name": "a"}]', "a.json, read as a list of objects with a name: 0 a"),
    ],
)
def test_how_a_file_was_read_is_said(tmp_path, file, text, note):
    (tmp_path / file).write_text(text)
    count = text.count("\n") or text.count('"a') + text.count('"b"')
    found, said = read_labels(str(tmp_path / file), count)
    assert said == f"class names from {note}"
    assert found == read_labels(str(tmp_path / file), count)[0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "one\n", "names 1 classes, the checkpoint has 2"),
        ("a.txt", "", "names 0 classes, the checkpoint has 2"),
        ("a.txt", "one\n_\n", "the name of class 1 is empty"),
        ("a.txt", "one\nt\x1b[31mwo\n", r"line 2 holds the control character U\+001B"),
        ("a.txt", "a\x1f0\nb 1\n", r"line 1 holds the control character U\+001F"),
        ("a.txt", "one\u2028two\nthree\n", r"line 1 holds the control character U\+2028"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "[" * 100_000, "is not JSON"),
        ("a.json", f"[{'9' * 5000}]", "is not JSON"),
        ("a.json", "3", "must hold a list"),
        ("a.json", '{"0": "x"}', "names 1 classes, the checkpoint has 2"),
        ("a.json", '{"1": "x", "2": "y"}', 'its keys must be "0", "1", … to "1"'),
        ("a.json", '{"x": 0, "y": 1}', 'its keys must be "0"'),
        ("a.json", '{"0": "x", "1": 2}', "must map indices to names"),
        ("a.json", '{"0": {"name": "x"}, "1": {"name": "y"}}', "must map indices to names"),
        ("a.json", "[1, 2]", "must be a list of names"),
        ("a.json", '["one", ""]', "the name of class 1 is empty"),
        ("a.json", '["one", " "]', "the name of class 1 is empty"),
        ("a.json", '["one", "t\\nwo"]', r"class 1 holds the control character U\+000A"),
        ("a.json", '["one", "\\ud800"]', r"class 1 holds the control character U\+D800"),
        ("a.json", '[{"id": "x", "name": "a"}, {"id": 1, "name": "b"}]', "the id of a must be a whole number"),
        ("a.json", '[{"id": null, "name": "a"}, {"id": 1, "name": "b"}]', "the id of a must be a whole number"),
        ("a.json", '[{"id": 0.5, "name": "a"}, {"id": 1, "name": "b"}]', "the id of a must be a whole number"),
        ("a.json", '[{"name": "a"}, {"id": 1, "name": "b"}]', "the id of a must be a whole number"),
        ("a.json", '[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]', "the id of b must be .* no other class has"),
        ("b.txt", None, "cannot be read"),
    ],
)
def test_a_label_file_that_is_wrong_is_named(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        read_labels(str(tmp_path / name), 2)
    assert name in str(caught.value) and str(caught.value).isprintable()


def test_a_mark_that_is_anothers_name_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"names a class twice: owl \(0\)"):
        names(tmp_path, "owl\nowl (0)\nowl\n", 3)


def test_counts_of_both_kinds(tmp_path):
    (tmp_path / "counts.txt").write_text("7\r\n 0\n\n9223372036854775807\n")
    (tmp_path / "counts.json").write_text("[7, 0, 9223372036854775807]")
    for file in ("counts.txt", "counts.json"):
        assert read_counts(str(tmp_path / file), 3, "images per class") == [7, 0, 2**63 - 1]


@pytest.mark.parametrize(
    "text",
    ["1\n", "1\n2\n3\n", "1\nx\n", "1\n-1\n", "1\n1_0\n", "1\n2.0\n", "1\n9223372036854775808\n", "1\n" + "9" * 5000],
)
def test_counts_that_are_wrong_are_refused(tmp_path, text):
    (tmp_path / "counts.txt").write_text(text)
    with pytest.raises(UserError, match=r"counts\.txt: images per class must be"):
        read_counts(str(tmp_path / "counts.txt"), 2, "images per class")


@pytest.mark.parametrize(
    "text",
    ["[1]", "[1, 2.5]", "[1, true]", "[1, null]", "[1, 1e400]", "[1, -1]", "[1, 9223372036854775808]", '{"0": 1}'],
)
def test_counts_in_json_that_are_wrong_are_refused(tmp_path, text):
    (tmp_path / "counts.json").write_text(text)
    with pytest.raises(UserError, match=r"counts\.json: images per class must be"):
        read_counts(str(tmp_path / "counts.json"), 2, "images per class")
