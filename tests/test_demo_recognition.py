"""Ranking and language of the demonstration, against the model's own outputs and against sums by hand."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch.nn.functional import normalize

from hf_vlr.anchors import AnchorSelection
from hf_vlr.data.templates import TEMPLATES
from hf_vlr.demo import language
from hf_vlr.demo.exhibit import open_exhibit, read_json
from hf_vlr.demo.language import (
    Taught,
    answers,
    class_vector,
    filled,
    labels_of,
    lines_of,
    rank_of,
    ranked_with_taught,
    teach,
    text_scores,
    usual_template,
)
from hf_vlr.demo.recognition import Classes, Opinion, best, ranked, scores_of
from hf_vlr.errors import UserError
from hf_vlr.evaluation.predictors import class_vectors

SPEC = importlib.util.spec_from_file_location("demo_models", Path(__file__).with_name("demo_models.py"))
models = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(models)

COUNTS = np.array([120, 60, 25, 7, 1])
CLASSES = Classes.of(["a", "b", "c", "d", "e"], COUNTS, "oltr")


@pytest.fixture(scope="module")
def exhibit(tiny, tmp_path_factory):
    return open_exhibit(str(models.recogniser(tiny, tmp_path_factory.mktemp("demo") / "model")))


def opinion(seed=0, language=True):
    rng = np.random.default_rng(seed)
    visual, other = (np.log(softmax(3 * rng.normal(size=5))).astype(np.float32) for _ in range(2))
    return Opinion(visual, other if language else None)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_scores_are_the_mixture_divided_by_the_prior(weight, tau):
    said = opinion()
    mixed = weight * np.exp(said.visual.astype(float)) + (1 - weight) * np.exp(said.language.astype(float))
    wanted = mixed / (COUNTS / COUNTS.sum()) ** tau
    found = np.exp(scores_of(said, CLASSES, weight, tau))
    np.testing.assert_allclose(found, wanted / wanted.sum(), rtol=1e-6)


def test_without_language_or_counts_the_sliders_do_nothing():
    said, unknown = opinion(language=False), Classes.of("abcde", np.zeros(5, dtype=np.int64), "oltr")
    assert unknown.train_counts is None and unknown.groups == ("",) * 5
    np.testing.assert_allclose(scores_of(said, unknown, 0.2, 1.0), said.visual, rtol=1e-6)
    row = ranked(said, unknown, 0.2, 1.0, 1)[0]
    assert row.language is None and row.train_images is None and row.document()["group"] is None


def test_rows_are_what_predict_of_the_model_says(exhibit, tiny):
    pictures = [tiny.picture(seed) for seed in range(3)]
    features = exhibit.image_features(pictures)
    wanted = exhibit.model.predict(pictures, top_k=5, num_sentences=3, processor=exhibit.processor)
    for feature, said, one in zip(features, exhibit.opinions(features), wanted, strict=True):
        rows = ranked(said, exhibit.classes, exhibit.config.fusion_weight, 0.0, 5)
        assert [row.name for row in rows] == [found["label"] for found in one["classes"]]
        assert [row.group for row in rows if row.index == 0] == ["many"]
        for row, found in zip(rows, one["classes"], strict=True):
            document = row.document()
            assert document.pop("group") in ("many", "medium", "few")
            for key, value in document.items():
                assert value == (pytest.approx(found[key], rel=1e-4, abs=1e-6) if "score" in key else found[key])
            sentences = exhibit.attended(feature, row.index, 3)
            assert [text for _, text in sentences] == [given["text"] for given in found["sentences"]]
            np.testing.assert_allclose(
                [weight for weight, _ in sentences], [given["weight"] for given in found["sentences"]], rtol=1e-4
            )


def test_attention_of_a_class_adds_up_and_one_without_sentences_has_none(exhibit, tiny):
    feature = exhibit.image_features([tiny.picture()])[0]
    assert sum(weight for weight, _ in exhibit.attended(feature, 0, 99)) == pytest.approx(1)
    assert exhibit.attended(feature, 4, 3) == []


def test_features_do_not_depend_on_how_many_come_together(exhibit, tiny):
    pictures = [tiny.picture(seed) for seed in range(20)]
    together = exhibit.image_features(pictures)
    alone = np.concatenate([exhibit.image_features([one]) for one in pictures])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_text_features_are_the_models(exhibit, tiny):
    texts = ["a red fox.", "x"]
    batch = tiny.processor()(text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = exhibit.encoder.get_text_features(batch["input_ids"], batch["attention_mask"]).numpy()
    np.testing.assert_allclose(exhibit.text_features(texts), wanted, rtol=1e-4, atol=1e-5)


def test_known_vectors_are_the_mean_of_the_anchors(exhibit):
    head = exhibit.head
    labels = [label for label, row in enumerate(head.anchor_mask) for _ in range(int(row.sum()))]
    features = head.anchors[head.anchor_mask]
    wanted = class_vectors(
        features, labels, 5, AnchorSelection(torch.arange(len(labels))[None], torch.ones(1, len(labels)).bool())
    )
    np.testing.assert_allclose(exhibit.known_vectors, wanted.numpy(), rtol=1e-5, atol=1e-7)
    assert not exhibit.known_vectors[4].any()


def test_the_rule_is_that_of_the_measurement(tiny, tmp_path):
    folder = models.recogniser(tiny, tmp_path / "model")
    assert open_exhibit(str(folder)).rule == "oltr"
    (folder / "metrics.json").write_text(json.dumps({"protocol": {"rule": {"name": "vl-ltr"}}}))
    assert open_exhibit(str(folder)).classes.rule == "vl-ltr"
    for broken in ("{", "[]", '{"protocol": {"rule": {"name": "none"}}}'):
        (folder / "metrics.json").write_text(broken)
        assert open_exhibit(str(folder)).rule == "oltr"
    assert read_json(str(folder), "no.json") == {}


def test_a_model_without_texts_says_so(tiny, tmp_path):
    exhibit = open_exhibit(str(models.visual_only(tiny, tmp_path / "model")))
    assert not exhibit.has_language and not exhibit.reads_texts
    features = exhibit.image_features([tiny.picture()])
    assert exhibit.opinions(features)[0].language is None and exhibit.attended(features[0], 0, 3) == []
    with pytest.raises(UserError, match="no text tower"):
        exhibit.text_features(["a fox"])
    with pytest.raises(UserError, match="keeps no sentences"):
        _ = exhibit.known_vectors


def test_a_text_tower_without_a_tokenizer_says_so(tiny, tmp_path):
    folder = tmp_path / "model"
    tiny.recogniser().save_pretrained(folder)
    tiny.processor().image_processor.save_pretrained(folder)
    with pytest.raises(UserError, match="no tokenizer beside it"):
        open_exhibit(str(folder)).text_features(["a fox"])


@pytest.mark.parametrize("kind", models.KINDS)
def test_a_dual_encoder_knows_no_classes(kind, tiny, tmp_path):
    exhibit = open_exhibit(str(models.dual_encoder(tiny, tmp_path / "model", kind)))
    assert exhibit.classes is None and not exhibit.recogniser and exhibit.reads_texts
    assert exhibit.template == TEMPLATES[0]
    with pytest.raises(UserError, match="dual encoder"):
        exhibit.opinions(np.zeros((1, 16), dtype=np.float32))


def test_what_cannot_be_shown_is_refused(tiny, tmp_path):
    tiny.model(text=None).save_pretrained(tmp_path / "mute")
    tiny.processor().image_processor.save_pretrained(tmp_path / "mute")
    with pytest.raises(UserError, match="nothing to ask it"):
        open_exhibit(str(tmp_path / "mute"))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"is a bert: .* hf-vlr convert"):
        open_exhibit(str(tmp_path / "foreign"))
    with pytest.raises(UserError, match="cannot be read"):
        open_exhibit(str(tmp_path / "nothing"))


def test_best_takes_the_first_of_equals():
    assert best(np.array([1.0, 3.0, 3.0, 2.0]), 3) == [1, 2, 3]
    assert best(np.array([1.0, 2.0]), 0) == [1] and rank_of(np.array([1.0, 3.0, 3.0]), 2) == 2


def test_lines_and_labels():
    assert lines_of(" a cat \n\n a cat\r\na dog\n") == ["a cat", "a dog"] and lines_of(None) == []
    for text, said in (
        (" \n ", "no label"),
        ("\n".join(map(str, range(201))), "201 labels"),
        ("x" * 1001, "longer than 1000"),
    ):
        with pytest.raises(UserError, match=said):
            labels_of(text)


def test_templates():
    assert filled("a photo of a {}.", ["cat", "{0}"]) == ["a photo of a cat.", "a photo of a {0}."]
    assert filled(" ", ["cat"]) == filled(None, ["cat"]) == ["cat"]
    for wrong in ("a photo", "{} and {}", "{0}", "{} {", "{label.__class__}"):
        with pytest.raises(UserError, match="once"):
            filled(wrong, ["cat"])


def test_the_usual_template_is_how_most_classes_are_spoken_of():
    sentences = [["a cat.", "it purrs", "see the cat now"], ["a dog.", "see the dog now"], ["a bird."]]
    assert usual_template(["cat", "dog", "bird"], sentences) == "a {}."
    assert usual_template(["cat", "dog", "bird"], [["a cat."], ["two dogs"], ["{} bird"]]) == TEMPLATES[0]
    assert usual_template([], []) == TEMPLATES[0]


def test_answers_are_a_softmax_of_cosines():
    rng = np.random.default_rng(0)
    feature, vectors = rng.normal(size=8).astype(np.float32), rng.normal(size=(4, 8)).astype(np.float32)
    cosines = normalize(torch.tensor(vectors), dim=-1) @ normalize(torch.tensor(feature), dim=-1)
    wanted = (7 * cosines).softmax(0).numpy()
    rows = answers(feature, vectors, list("abcd"), 7)
    assert [row.index for row in rows] == np.argsort(-wanted).tolist()
    np.testing.assert_allclose([row.score for row in rows], np.sort(wanted)[::-1], rtol=1e-5)


def taught(seed, name="new"):
    return Taught(name, ("a new one.",), class_vector(np.random.default_rng(seed).normal(size=(3, 8))))


def known(seed=9):
    return np.stack([class_vector(row) for row in np.random.default_rng(seed).normal(size=(5, 2, 8))])


def test_taught_and_known_classes_share_one_scale():
    feature = np.random.default_rng(1).normal(size=8).astype(np.float32)
    both = [taught(2, "x"), taught(3, "y")]
    wanted = softmax(7 * np.concatenate([known(), [one.vector for one in both]]) @ (feature / np.linalg.norm(feature)))
    np.testing.assert_allclose(text_scores(feature, known(), both, 7), wanted, rtol=1e-5)
    # as a known class it would score the same
    swapped = text_scores(feature, np.concatenate([known(), [both[0].vector]]), both[1:], 7)
    np.testing.assert_allclose(swapped, wanted, rtol=1e-5)


def test_an_advantage_changes_log_odds_against_known_classes_alone():
    feature = np.random.default_rng(1).normal(size=8).astype(np.float32)
    both = [taught(2), taught(3)]
    plain, raised = (text_scores(feature, known(), both, 7, advantage) for advantage in (0, 2.5))
    change = np.log(raised) - np.log(plain)
    np.testing.assert_allclose(change[5:] - change[0], 2.5)
    np.testing.assert_allclose(change[:5], change[0])
    assert raised.sum() == pytest.approx(1)


def test_a_class_without_a_sentence_takes_no_part():
    vectors = known()
    vectors[2] = 0
    scores = text_scores(np.ones(8, dtype=np.float32), vectors, [taught(2)], 7)
    assert scores[2] == 0 and scores.sum() == pytest.approx(1)


def test_every_taught_class_is_listed_wherever_it_comes():
    scores = np.array([0.3, 0.2, 0.15, 0.15, 0.1, 0.05, 0.05])
    rows = ranked_with_taught(scores, CLASSES, [taught(0, "x"), taught(1, "y")], 2)
    assert [(row.index, row.name, row.group, row.train_images) for row in rows] == [
        (0, "a", "many", 120),
        (1, "b", "medium", 60),
        (5, "x", "taught", 0),
        (6, "y", "taught", 0),
    ]


def test_teaching(exhibit):
    one = teach("  snow   leopard ", " a spotted cat.\n\nthick fur\n", exhibit.text_features, ["lynx"])
    assert one.name == "snow leopard" and one.sentences == ("a spotted cat.", "thick fur")
    vectors = normalize(torch.tensor(exhibit.text_features(one.sentences)), dim=-1)
    np.testing.assert_allclose(one.vector, normalize(vectors.mean(0), dim=-1), rtol=1e-5, atol=1e-6)
    assert teach("owl", " ", exhibit.text_features, []).sentences == ("a owl.",)


@pytest.mark.parametrize(
    ("name", "description", "said"),
    [
        (" ", "a cat", "no name"),
        ("LYNX", "a cat", "already"),
        ("owl", "\n".join(map(str, range(65))), "65 sentences"),
        ("owl", "x" * 1001, "longer"),
        ("x" * 1001, "an owl", "longer"),
    ],
)
def test_teaching_refuses_in_words_and_before_the_tower(name, description, said):
    def tower(_):
        raise AssertionError("a tower ran")

    with pytest.raises(UserError, match=said):
        teach(name, description, tower, ["lynx"])
    assert language.MAX_TAUGHT == 20
