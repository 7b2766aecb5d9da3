"""Reading list files: every form and every fault, and where the images are looked for."""

import hashlib
from pathlib import Path

import pytest

from hf_vlr.data.list_files import (
    ClassName,
    Known,
    Line,
    as_listed,
    checksum_table,
    class_folders,
    class_texts,
    find_lists,
    folder_name,
    image_roots,
    place_lists,
    read_class_names,
    read_list,
    recognised,
)
from hf_vlr.errors import UserError

ROWS = ["train/a/1.jpg 0", "train/a/2.jpg 0", "train/b/3.jpg 11", "train/b/4.jpg 11"]
LINES = [Line("train/a/1.jpg", 0), Line("train/a/2.jpg", 0), Line("train/b/3.jpg", 11), Line("train/b/4.jpg", 11)]


def listed(folder: Path, content: str | bytes) -> Path:
    file = folder / "list.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(ROWS) + "\n",
        "\n".join(ROWS),
        "\r\n".join(ROWS) + "\r\n",
        "\ufeff" + "\n".join(ROWS) + "\n",
        ("\n".join(ROWS) + "\n").encode("utf-16"),
        "\n\n".join(ROWS) + "\n \n\n",
        "\n".join(ROWS).replace(" ", "\t") + "\n",
        "\n".join(f"  {row.replace(' ', '   ')} " for row in ROWS) + "\n",
        "\n".join(f"./{row}" for row in ROWS) + "\n",
    ],
    ids=["unix", "no last line end", "windows", "mark", "utf-16", "blank lines", "tabs", "spaces", "dot"],
)
def test_every_form_of_a_list_reads_the_same(tmp_path, content):
    assert read_list(listed(tmp_path, content)) == LINES


def test_a_path_may_hold_blanks(tmp_path):
    assert read_list(listed(tmp_path, "my images/b c.jpg\t7\n")) == [Line("my images/b c.jpg", 7)]


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ("train/b/5", "list.txt line 5: 'train/b/5' is not `PATH LABEL`, the file is cut off there"),
        ("train/b/5.jpg 1", "list.txt line 5: cut off after train/b/5.jpg 1; its folder is class 11"),
    ],
)
def test_a_last_line_that_is_cut_is_a_fault_with_its_number(tmp_path, last, told):
    lines = read_list(listed(tmp_path, "\n".join([*ROWS, last])))
    assert lines[:4] == LINES
    assert lines[4] == Line("", -1, told)


@pytest.mark.parametrize("last", ["train/b/5.jpg 11", "train/c/5.jpg 1"])
def test_a_whole_last_line_is_no_fault(tmp_path, last):
    assert not any(line.fault for line in read_list(listed(tmp_path, "\n".join([*ROWS, last]))))


@pytest.mark.parametrize("row", ["train/a/5.jpg", "5", "train/a/5.jpg x", "a\0b 1", "a.jpg 1.5", f"a.jpg {'9' * 5000}"])
def test_a_line_that_is_none_is_a_fault(tmp_path, row):
    lines = read_list(listed(tmp_path, "\n".join([ROWS[0], row, *ROWS[1:]]) + "\n"))
    assert [line for line in lines if not line.fault] == LINES
    assert lines[1].label == -1
    assert lines[1].fault.startswith("list.txt line 2: ")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../secret.jpg",
        "train/../../secret.jpg",
        "train/..",
        "\\\\host\\x",
        "..\\x.jpg",
        "C:\\x",
        "c:x.jpg",
    ],
)
def test_a_path_that_leaves_the_images_is_refused(tmp_path, path):
    with pytest.raises(UserError, match=r"line 5.*leaves the images' folder"):
        read_list(listed(tmp_path, "\n".join([*ROWS, f"{path} 1"]) + "\n"))


def test_two_dots_in_a_name_are_no_way_out(tmp_path):
    assert read_list(listed(tmp_path, "train/a..b/c..jpg 1\n")) == [Line("train/a..b/c..jpg", 1)]


@pytest.mark.parametrize(
    "content", ["", "\n\n", "<html>\n<body>quota exceeded</body>\n</html>\n", b"\xff\xd8\xff\xe0\0"]
)
def test_a_file_that_is_no_list_is_refused(tmp_path, content):
    with pytest.raises(UserError, match=r"list\.txt"):
        read_list(listed(tmp_path, content))


def test_lists_are_found_or_named(tmp_path):
    wanted = {"train": ("T.txt",), "test": ("t.txt", "v.txt")}
    with pytest.raises(UserError, match=r"T\.txt is not here; put T\.txt, t\.txt there, published by them"):
        find_lists(tmp_path, None, ["below"], wanted, "by them")
    (tmp_path / "below").mkdir()
    for name in ("T.txt", "v.txt"):
        (tmp_path / "below" / name).touch()
    found = find_lists(tmp_path, None, ["below"], wanted, "by them")
    assert found == {"train": tmp_path / "below/T.txt", "test": tmp_path / "below/v.txt"}
    assert find_lists(tmp_path, tmp_path / "below", [], wanted, "") == found
    with pytest.raises(UserError, match="no such folder"):
        find_lists(tmp_path, tmp_path / "away", [], wanted, "")


def test_images_are_looked_for_and_the_roots_named(tmp_path):
    lists = {"train": LINES, "test": [Line("val/x.jpg", 0)]}
    roots = image_roots(tmp_path, None, ["one", "two", "three"])
    with pytest.raises(
        UserError, match=rf"train/a/1\.jpg below any of: {tmp_path}, .*one, .*two, .*three; .*images_dir="
    ):
        place_lists(lists, roots, [as_listed])
    # two folders hold equally many of the images, one holds fewer: the first of the best is taken
    for file in (tmp_path / root / line.path for root in ("two", "three") for line in LINES[:3]):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "one" / "train/a").mkdir(parents=True)
    (tmp_path / "one" / LINES[0].path).touch()
    placed = place_lists(lists, roots, [as_listed])
    assert [entry.image for entry in placed["train"]] == [tmp_path / "two" / line.path for line in LINES]
    assert placed["test"][0].image == tmp_path / "two/val/x.jpg"
    assert [entry.file for entry in placed["train"]] == [line.path for line in LINES]


def test_a_fault_becomes_an_entry_of_no_class(tmp_path):
    (tmp_path / "x.jpg").touch()
    placed = place_lists({"train": [Line("x.jpg", 3), Line("", -1, "line 9: what")]}, [tmp_path], [as_listed])
    assert [(entry.label, entry.file) for entry in placed["train"]] == [(3, "x.jpg"), (-1, "line 9: what")]


def test_a_class_has_the_folder_that_most_lines_give_it():
    lines = [Line("a/1", 0), Line("a/2", 0), Line("b/1", 1), Line("a/3", 999), Line("b/2", 0), Line("", -1, "bad")]
    assert class_folders([lines], lambda path: path[:1]) == {0: "a", 1: "b"}


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("n02 x\n", [("n02 x", "0")]),
        ("n01443537 goldfish\nn01440764 tench\n", [("tench", "n01440764"), ("goldfish", "n01443537")]),
        ("n01443537 2 gold_fish\nn01440764 1 tench\n", [("tench", "n01440764"), ("gold fish", "n01443537")]),
        ("n01440764 tench, Tinca tinca\n", [("tench", "n01440764")]),
        ("n01484850 great white shark\r\n\r\n", [("great white shark", "n01484850")]),
        ("/a/arena/hockey 1\n/a/airfield 0\n", [("airfield", "airfield"), ("arena hockey", "arena/hockey")]),
        ("missile\nice_bear\nmissile\n", [("missile", "0"), ("ice bear", "1"), ("missile", "2")]),
    ],
)
def test_class_names_of_every_form(tmp_path, text, classes):
    assert read_class_names(listed(tmp_path, text)) == [ClassName(*one) for one in classes]


@pytest.mark.parametrize("text", ["", "a 1\nb 1\n", "n01440764 tench\nn01440764 tench\n"])
def test_class_names_that_are_wrong_are_refused(tmp_path, text):
    with pytest.raises(UserError, match=r"list\.txt"):
        read_class_names(listed(tmp_path, text))


def test_folder_names_of_scenes():
    assert [folder_name(name) for name in ("/a/airfield", "arena-hockey", "a/arena/hockey", "bar")] == [
        "airfield", "arena/hockey", "arena/hockey", "bar",
    ]  # fmt: skip


def test_class_texts_by_a_spec(tmp_path):
    assert class_texts(None, "toy", ["a"], ["0"]) == []
    (tmp_path / "own.jsonl").write_text('{"label": 1, "text": "It swims."}\n')
    names, marks = ["crane", "crane"], ["n02012849", "n03126707"]
    rows = class_texts(f"{tmp_path / 'own.jsonl'}+templates", "toy", names, marks)
    assert next(row.text for row in rows if row.label == 1) == "It swims."
    assert {row.label for row in rows} == {0, 1}
    # the very same name: only the mark tells the bird from the machine
    rows = class_texts("wordnet", "toy", names, marks)
    assert any("bird" in row.text for row in rows if row.label == 0)
    assert not any("bird" in row.text for row in rows if row.label == 1)


def test_checksums_say_which_file_it_is(tmp_path):
    file = listed(tmp_path, "x 0\n")
    digest = hashlib.sha256(b"x 0\n").hexdigest()
    assert recognised(digest, None) == "no checksum is on record"
    assert recognised(digest, Known(digest, "", "it")) == "is it"
    assert recognised(digest, Known(digest[:9], digest[-4:], "it")) == "begins and ends like it"
    assert recognised(digest, Known(digest[:9], "----", "it")) == "differs from it"
    assert f"| `list.txt` | 4 | `{digest}` | is it |" in checksum_table([file], {"list.txt": Known(digest, "", "it")})
