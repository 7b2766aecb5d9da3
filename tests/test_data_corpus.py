import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_vlr.data.corpus import ClassTextCorpus, TextRow, build_corpus, default_texts
from hf_vlr.data.source import ImageSource, load_source
from hf_vlr.data.templates import TEMPLATES, spoken_name
from hf_vlr.errors import UserError

# two classes of one name, as ImageNet has
NAMES = ["missile", "cat", "missile"]


def make_source(
    split: str = "train", captions: tuple[str | None, ...] = ("old cat", None, "rocket", "")
) -> ImageSource:
    labels = np.array([1, 0, 2, -1][: len(captions)])
    return ImageSource("pets", split, [Image.new("RGB", (2, 2))] * len(labels), labels, list(captions), NAMES)


def test_rows_are_class_major_whatever_order_they_come_in() -> None:
    corpus = ClassTextCorpus([TextRow(2, "c"), TextRow(0, "a"), TextRow(2, "d")], 4)
    assert corpus.texts == ["a", "c", "d"]
    assert corpus.offsets.tolist() == [0, 1, 1, 3, 3]
    assert corpus.coverage().tolist() == [1, 0, 2, 0]
    assert [corpus.of(label) for label in range(4)] == [["a"], [], ["c", "d"], []]
    assert len(corpus) == 3


def test_equal_sentences_of_a_class_are_kept_once_and_empty_ones_not() -> None:
    rows = [TextRow(0, " a  b\n"), TextRow(0, "a b", "second"), TextRow(1, "a b"), TextRow(1, "  ")]
    corpus = ClassTextCorpus(rows, 2)
    assert list(corpus.rows()) == [TextRow(0, "a b"), TextRow(1, "a b")]


def test_draws_are_uniform_over_the_class_and_repeatable() -> None:
    corpus = ClassTextCorpus([TextRow(1, str(index)) for index in range(4)], 2)
    drawn = [corpus.draw(1, np.random.default_rng(seed)) for seed in range(4000)]
    counts = np.array([drawn.count(str(index)) for index in range(4)])
    assert np.all(np.abs(counts - 1000) < 150)
    assert drawn == [corpus.draw(1, np.random.default_rng(seed)) for seed in range(4000)]
    with pytest.raises(UserError, match="class 0 has no text"):
        corpus.draw(0, np.random.default_rng(0))


def test_saving_and_reading_gives_the_same_corpus(tmp_path: Path) -> None:
    corpus = ClassTextCorpus([TextRow(0, "größer", "wiki", "CC-BY-SA-4.0"), TextRow(2, 'a "b"', "me")], 3)
    corpus.save(tmp_path / "texts.jsonl")
    read = ClassTextCorpus.from_file(tmp_path / "texts.jsonl", NAMES)
    assert next(read.rows()) == TextRow(0, "größer", "wiki", "CC-BY-SA-4.0")
    assert read.texts == corpus.texts
    assert read.num_classes == 3


def test_csv_names_and_numbers(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('class_name,label,text\ncat,,"furry, small"\n,2,flies\n', encoding="utf-8")
    corpus = ClassTextCorpus.from_file(tmp_path / "t.csv", NAMES)
    assert [corpus.of(label) for label in range(3)] == [[], ["furry, small"], ["flies"]]


def test_a_folder_of_text_files(tmp_path: Path) -> None:
    (tmp_path / "desc_0.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    (tmp_path / "2.txt").write_text("three\n", encoding="utf-8")
    (tmp_path / "animals_cat.txt").write_text("four\n", encoding="utf-8")
    corpus = ClassTextCorpus.from_file(tmp_path, ["missile", "animals/cat", "missile"])
    assert [corpus.of(label) for label in range(3)] == [["one", "two"], ["four"], ["three"]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"label": 3, "text": "x"}', "line 2: label 3 is outside 0 … 2"),
        ('{"label": -1, "text": "x"}', "line 2: label -1 is outside"),
        ('{"label": 0}', "line 2: needs a column 'text'"),
        ('{"class_name": "dog", "text": "x"}', "line 2: 'dog' is not the name of exactly one class"),
        ('{"class_name": "missile", "text": "x"}', "line 2: 'missile' is not the name of exactly one class"),
        ('{"label": "cat", "text": "x"}', "line 2: label 'cat' is not a class number"),
        ('{"label": true, "text": "x"}', "line 2: label True is not a class number"),
        ('["x"]', "line 2: needs a column"),
        ("{", "line 2: not a JSON object"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"label": 0, "text": "fine"}) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        ClassTextCorpus.from_file(path, NAMES)


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file of class texts"):
        ClassTextCorpus.from_file(tmp_path / "x.jsonl", NAMES)
    (tmp_path / "x.yaml").write_text("a: b")
    with pytest.raises(UserError, match=r"not '\.yaml'"):
        ClassTextCorpus.from_file(tmp_path / "x.yaml", NAMES)
    with pytest.raises(UserError, match=r"no \.txt files"):
        ClassTextCorpus.from_file(tmp_path, NAMES)
    (tmp_path / "desc_3.txt").write_text("a")
    with pytest.raises(UserError, match="neither a class name nor a class number below 3"):
        ClassTextCorpus.from_file(tmp_path, NAMES)
    (tmp_path / "bytes.jsonl").write_bytes(b'{"label": 0, "text": "\xff"}\n')
    with pytest.raises(UserError, match="not UTF-8"):
        ClassTextCorpus.from_file(tmp_path / "bytes.jsonl", NAMES)


def test_templates_fill_every_class_even_where_names_repeat() -> None:
    corpus = ClassTextCorpus.from_templates(NAMES)
    assert corpus.coverage().tolist() == [len(TEMPLATES)] * 3
    assert corpus.of(0) == corpus.of(2)
    corpus.require_every_class(NAMES)


def test_names_are_spoken_as_words() -> None:
    assert spoken_name("recreation/board_games") == "board games, recreation"
    assert spoken_name("cat") == "cat"


def test_captions_come_from_labelled_training_rows_only() -> None:
    corpus = ClassTextCorpus.from_captions(make_source(captions=("old cat", None, "rocket", "a pair")))
    assert [corpus.of(label) for label in range(3)] == [[], ["old cat"], ["rocket"]]
    for split in ("validation", "test"):
        with pytest.raises(UserError, match=f"captions of the split train only, not {split}"):
            ClassTextCorpus.from_captions(make_source(split))


def test_classes_without_text_are_named() -> None:
    corpus = ClassTextCorpus.from_captions(make_source())
    with pytest.raises(UserError, match=r"no text for class missile; add sentences for it or join '\+templates'"):
        corpus.require_every_class(NAMES)
    with pytest.raises(UserError, match="the texts are for 3 classes, the images for 2"):
        corpus.require_every_class(NAMES[:2])


def test_sources_are_joined_by_plus(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    ClassTextCorpus([TextRow(0, "it flies"), TextRow(1, "old cat")], 3).save(path)
    corpus = build_corpus(f"captions+{path}+templates", make_source())
    assert corpus.coverage().tolist() == [1 + len(TEMPLATES)] * 3
    assert corpus.texts == build_corpus(["captions", str(path), "templates"], make_source()).texts


def test_the_default_uses_what_there_is() -> None:
    assert default_texts(make_source()) == "captions+templates"
    assert default_texts(make_source(captions=(None, "", None))) == "templates"
    assert default_texts(load_source("shapes-lt", "validation", options={"validation": 1})) == "shapes"


def test_shapes_texts_are_refused_for_other_classes() -> None:
    with pytest.raises(UserError, match="'missile' is not a class of shapes-lt"):
        build_corpus("shapes", make_source())


def test_a_saved_corpus_says_its_classes_and_is_read_by_them(tmp_path: Path) -> None:
    rows = [TextRow(0, "purrs"), TextRow(1, "barks"), TextRow(2, "flies")]
    ClassTextCorpus(rows, 3, ["cat", "dog", "kite"]).save(tmp_path / "texts.jsonl")
    assert '"class_name": "dog"' in (tmp_path / "texts.jsonl").read_text()
    read = ClassTextCorpus.from_file(tmp_path / "texts.jsonl", ["dog", "kite", "cat"])
    assert [read.of(label) for label in range(3)] == [["barks"], ["flies"], ["purrs"]]
    read.save(tmp_path / "again.jsonl")
    assert ClassTextCorpus.from_file(tmp_path / "again.jsonl", ["cat", "dog", "kite"]).of(0) == ["purrs"]
    with pytest.raises(UserError, match="line 3: 'kite' is not the name of exactly one class, nor that of class 2"):
        ClassTextCorpus.from_file(tmp_path / "texts.jsonl", ["dog", "cat", "bird"])


def test_classes_of_one_name_keep_their_numbers(tmp_path: Path) -> None:
    names = ["crane", "hen", "crane"]
    ClassTextCorpus([TextRow(0, "it wades"), TextRow(2, "it lifts")], 3, names).save(tmp_path / "texts.jsonl")
    read = ClassTextCorpus.from_file(tmp_path / "texts.jsonl", names)
    assert [read.of(label) for label in range(3)] == [["it wades"], [], ["it lifts"]]
