"""Lists of datasets, metrics of a table, and the words of a protocol."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hf_vlr.errors import UserError
from hf_vlr.protocols.downstream import mean_of, metric_value, reasons, table
from hf_vlr.protocols.listing import METRICS, read_listing
from hf_vlr.protocols.options import ConceptsOptions, KnnOptions, LinearProbeOptions
from hf_vlr.protocols.result import result_document, write_result
from hf_vlr.protocols.running import PROTOCOLS
from hf_vlr.protocols.words import split_words
from hf_vlr.training.keys import check_value, leaves


def test_the_packaged_list_names_twenty_datasets():
    entries = read_listing("elevater")
    assert len({entry.name for entry in entries}) == 20
    assert all(entry.source is None and entry.classes > 1 for entry in entries)
    assert {entry.metric for entry in entries} == set(METRICS)
    by_name = {entry.name: (entry.classes, entry.metric) for entry in entries}
    assert by_name["caltech101"] == (102, "mean-per-class")
    assert by_name["hateful-memes"] == (2, "roc-auc")


def test_a_file_lies_over_its_base_and_a_root_over_what_has_no_source(tmp_path):
    (tmp_path / "sets" / "dtd" / "test" / "knit").mkdir(parents=True)
    (tmp_path / "sets" / "mnist").mkdir()
    (tmp_path / "sets" / "mnist" / "test.parquet").touch()
    file = tmp_path / "mine.yaml"
    file.write_text(
        "base: elevater\ndatasets:\n  - {name: gtsrb, source: ORG/SIGNS}\n  - {name: own, texts: templates}"
    )
    entries = {entry.name: entry for entry in read_listing(str(file), str(tmp_path / "sets"))}
    assert len(entries) == 21
    assert (entries["gtsrb"].source, entries["gtsrb"].classes) == ("ORG/SIGNS", 43)
    assert entries["dtd"].source == f"imagefolder:{tmp_path / 'sets' / 'dtd'}"
    assert entries["mnist"].source == str(tmp_path / "sets" / "mnist")
    assert (entries["own"].source, entries["own"].texts, entries["own"].metric) == (None, "templates", "accuracy")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("datasets: [{name: a, metrik: accuracy}]", "metrik"),
        ("datasets: [{name: a, metric: f1}]", "a has metric=f1"),
        ("datasets: [{name: a}, {name: a}]", "a name of its own"),
        ("datasets: [{source: a}]", "a name of its own"),
        ("base: imagenet\ndatasets: [{name: a}]", "base=imagenet is no packaged list"),
        ("- a", "holds no `datasets:`"),
        ("datasets: [a]", "holds no `datasets:`"),
        ("datasets: [{name: a, classes: many}]", "many"),
        ("{", "is not YAML"),
        ("datasets: [{name: ../evil}]", "'../evil' is no name"),
        ("datasets: [{name: 'a\\\\b'}]", "is no name"),
        ("datasets: [{name: /evil}]", "is no name"),
        ("datasets: [{name: ..}]", "is no name"),
        ("datasets: [{name: [a]}]", "a name of its own"),
    ],
)
def test_a_wrong_list_is_told(tmp_path, text, said):
    file = tmp_path / "list.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match="list") as caught:
        read_listing(str(file))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_list_is_told():
    with pytest.raises(UserError, match="unknown list elevator; name a YAML file or one of elevater"):
        read_listing("elevator")


def test_metrics_of_a_table():
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.7, 0.3]])
    labels = np.array([0, 0, 0, 1])
    assert metric_value(scores, labels, "accuracy") == 0.75
    assert metric_value(scores, labels, "mean-per-class") == 0.5
    assert metric_value(scores, labels, "roc-auc") == pytest.approx(roc_auc_score(labels, scores[:, 1]))
    with pytest.raises(UserError, match="roc-auc needs images of two classes"):
        metric_value(scores, np.zeros(4, dtype=int), "roc-auc")


def test_what_was_not_run_is_no_number_and_means_say_over_how_many():
    results = {
        "a": {"metric": "accuracy", "classes": 3, "zero-shot": 0.5, "linear-probe": 0.75},
        "b": {"metric": "accuracy", "classes": None, "not run": {}},
        "c": {"metric": "accuracy", "classes": 3, "zero-shot": 0.25},
    }
    means = {column: mean_of(results, column) for column in ("zero-shot", "linear-probe")}
    assert means["zero-shot"] == {"value": 0.375, "run": 2, "of": 3}
    assert mean_of({"b": results["b"]}, "zero-shot")["value"] is None
    assert table(results, means)[1:] == [
        ("a", "3", "accuracy", "50.0", "75.0"),
        ("b", "-", "accuracy", "not run", "not run"),
        ("c", "3", "accuracy", "25.0", "not run"),
        ("mean", "", "", "37.5 (of 2 of 3)", "75.0 (of 1 of 3)"),
    ]


def test_the_table_says_why_something_was_not_run():
    absent = {"zero-shot": "no source is named", "linear-probe": "no source is named"}
    results = {
        "a": {"metric": "accuracy", "classes": 3, "zero-shot": 0.5, "linear-probe": 0.75},
        "b": {"metric": "accuracy", "classes": 3, "not run": absent},
        "c": {"metric": "accuracy", "classes": 3, "zero-shot": 0.5, "not run": {"linear-probe": "no train"}},
        "d": {"metric": "accuracy", "classes": 3, "not run": absent},
    }
    assert reasons(results) == ["not run: b, d (no source is named)", "not run: linear-probe of c (no train)"]


def test_words_are_the_protocols_own_or_a_recipes():
    words = ["k=5,20", "data.source=x", "temperature=0.1", "seed=3", "eval.splits=test"]
    settings, rest = split_words(words, KnnOptions)
    assert settings == KnnOptions(k=[5, 20], temperature=0.1)
    assert rest == ["data.source=x", "seed=3", "eval.splits=test"]
    assert split_words(["shots=[5, 0]", "C=null"], LinearProbeOptions)[0] == LinearProbeOptions(shots=[5, 0])
    assert split_words(["attributes=a=b.json"], ConceptsOptions)[0].attributes == "a=b.json"


def test_draws_are_different_ones():
    with pytest.raises(UserError, match="shots names 5 twice"):
        split_words(["shots=[5,5]"], LinearProbeOptions)
    with pytest.raises(UserError, match="seeds names 0 twice"):
        split_words(["shots=[5]", "seeds=[0,0]"], LinearProbeOptions)
    with pytest.raises(UserError, match=r"seeds=\[\] names nothing"):
        split_words(["shots=[5]", "seeds=[]"], LinearProbeOptions)
    assert split_words(["shots=[]", "seeds=[4]"], LinearProbeOptions)[0] == LinearProbeOptions(shots=[], seeds=[4])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("temprature=1", "unknown key temprature; did you mean temperature?"),
        ("batchsize=1", "unknown key batchsize; did you mean eval.batch_size?"),
        ("qqqq=1", "unknown key qqqq; this protocol has k, temperature, choose_by"),
        ("k=a", "k=a: expected a list of whole numbers"),
        ("k=0", "k=0 is out of range: it must be at least 1"),
        ("temperature=warm", "temperature=warm: expected a number"),
        ("choose_by=acuracy", "did you mean accuracy?"),
        ("fast", "'fast' is not key=value"),
        ("k=[]", "k=[] names nothing"),
        ("k=5,5", "k names 5 twice"),
    ],
)
def test_a_wrong_word_is_told(word, said):
    with pytest.raises(UserError) as caught:
        split_words([word], KnnOptions)
    assert said in str(caught.value)


def test_defaults_of_every_protocol_are_within_their_own_limits():
    for kind, _ in PROTOCOLS.values():
        settings = kind()
        for key, leaf in leaves(kind):
            check_value(key, leaf, getattr(settings, key))
            assert leaf.metadata["help"]


def test_a_result_is_whole_or_not_there(tmp_path):
    document = result_document("knn", KnnOptions(), {"split": "test"}, {"value": float("nan")})
    with pytest.raises(UserError, match=r"protocol.json cannot be written"):
        write_result(tmp_path, document)
    assert not list(tmp_path.iterdir())
    write_result(tmp_path, document | {"numbers": {"value": None}})
    assert [path.name for path in tmp_path.iterdir()] == ["protocol.json"]
    write_result(None, document)
