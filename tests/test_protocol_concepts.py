"""The gallery, nearest concepts and class queries against brute force and hand counts."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from hf_vlr.errors import UserError
from hf_vlr.protocols.attributes import known_attributes, shared_attributes
from hf_vlr.protocols.concepts import Concepts, attribute_shares, candidate_names, class_image_means, nearest_concepts
from hf_vlr.protocols.gallery import image_classes, sentence_classes
from hf_vlr.protocols.options import QueriesOptions
from hf_vlr.protocols.queries import chances, shown_classes
from hf_vlr.protocols.retrieval import by_group, class_precisions, unique_rows


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_gallery_is_that_of_brute_force():
    images, sentences = draw(30, 5), draw(12, 5, seed=1)
    generator = np.random.default_rng(0)
    labels = np.sort(generator.integers(0, 4, 20))
    columns = np.concatenate([np.arange(12), generator.integers(0, 12, 8)])
    one, several = sentence_classes(images, sentences, labels, columns, 4, 5)
    cosines = (normalize(images, dim=1) @ normalize(sentences, dim=1).t()).numpy()[:, columns]
    for row, scores in enumerate(cosines):
        order = sorted(range(20), key=lambda item: (-scores[item], item))[:5]
        votes = [labels[item] for item in order]
        assert one[row] == votes[0]
        # Python's max gives the first of equals: the class that is ranked highest
        assert several[row] == max(dict.fromkeys(votes), key=votes.count)
    found = image_classes(sentences, columns, images, np.arange(30) % 4)
    cosines = (normalize(sentences, dim=1) @ normalize(images, dim=1).t()).numpy()
    assert found.tolist() == [cosines[column].argmax() % 4 for column in columns]


def test_a_sentence_of_several_classes_is_as_near_in_each():
    images = torch.tensor([[1.0, 0.0]])
    sentences = torch.tensor([[1.0, 0.0], [0.9, 0.1]])
    # class 0 has the second text, classes 1 and 2 both have the first
    one, several = sentence_classes(images, sentences, np.array([0, 1, 2]), np.array([1, 0, 0]), 3, 5)
    assert (one.tolist(), several.tolist()) == ([1], [1])


def test_unique_rows():
    firsts, index = unique_rows(["b", "a", "b", "c", "a"])
    assert (firsts.tolist(), index.tolist()) == ([0, 1, 3], [0, 1, 0, 2, 1])


def test_class_image_means_weigh_directions_not_lengths():
    features = torch.tensor([[10.0, 0], [0, 1], [0, 3]])
    means = class_image_means(features, np.array([0, 0, 2]), 3)
    torch.testing.assert_close(means, torch.tensor([[0.5**0.5, 0.5**0.5], [0, 0], [0, 1]]))


def test_a_concept_does_not_find_itself():
    vectors = draw(5, 4)
    names = ["a", "b", "c", "d", "e"]
    _, places = nearest_concepts(Concepts(names, vectors), Concepts(names, vectors), 9)
    assert all(row not in found for row, found in enumerate(places.tolist()))
    assert places.shape == (5, 4)
    cosines, places = nearest_concepts(Concepts(["x"], vectors[:1]), Concepts(names, vectors), 2)
    assert places[0, 0] == 0
    assert cosines[0, 0] == pytest.approx(1.0)


def test_one_concept_has_no_others():
    alone = Concepts(["Red_Fox"], draw(1, 4))
    with pytest.raises(UserError, match=r"no other concept to be near to Red_Fox; .*candidates=FILE") as caught:
        nearest_concepts(Concepts(["red fox"], draw(1, 4)), alone, 5)
    assert "neighbours of" not in str(caught.value)
    assert nearest_concepts(Concepts(["oak"], draw(1, 4)), alone, 5)[1].tolist() == [[0]]


def test_shared_attributes_by_hand():
    first = [frozenset({"red", "plain", "one"}), None]
    second = [frozenset({"red", "striped", "one"}), frozenset({"blue", "striped", "one"}), None]
    # "one" belongs to all and is left out
    shares = shared_attributes(first, second)
    np.testing.assert_array_equal(shares, [[0.5, 0.0, np.nan], [np.nan] * 3])


def test_attribute_shares_leave_the_query_itself_out():
    shares = np.array([[1.0, 0.5, 0.0], [0.5, np.nan, 1.0]])
    found = attribute_shares(shares, np.array([[1, 2], [2, 0]]), np.array([0, -1]))
    assert found["nearest"].tolist() == [0.5, 1.0]
    assert found["nearest 2"].tolist() == [0.25, 0.75]
    assert found["by chance"].tolist() == [0.25, 0.75]


def test_shapes_know_their_attributes_and_others_read_a_file(tmp_path):
    names = ["red plain circle", "two blue striped crosses"]
    assert known_attributes(None, names, "shapes-lt") == [
        frozenset({"red", "plain", "circle", "one"}),
        frozenset({"blue", "striped", "cross", "two"}),
    ]
    assert known_attributes(None, names, "imagefolder:x") is None
    file = tmp_path / "kinds.json"
    file.write_text(json.dumps({"Red_Fox": ["canine", "animal"], "other": []}))
    assert known_attributes(str(file), ["red fox", "oak"], "x") == [frozenset({"canine", "animal"}), None]
    with pytest.raises(UserError, match="none of its names"):
        known_attributes(str(file), ["oak"], "x")
    file.write_text('{"fox": "canine"}')
    with pytest.raises(UserError, match="must hold"):
        known_attributes(str(file), ["fox"], "x")
    with pytest.raises(UserError, match="cannot be read"):
        known_attributes(str(tmp_path / "none.json"), ["fox"], "x")


def test_candidate_names(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("oak\n\n elm \noak\n")
    assert candidate_names(file) == ["oak", "elm"]
    file.write_text("oak\n")
    with pytest.raises(UserError, match="holds 1 names"):
        candidate_names(file)
    with pytest.raises(UserError, match="neither classes, unseen nor a text file"):
        candidate_names(tmp_path / "none.txt")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read as class names"):
        candidate_names(file)


def test_class_precisions_of_a_perfect_and_a_reversed_ranking():
    images = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    labels = np.array([0, 0, 1, 1])
    perfect = class_precisions(images, torch.tensor([[1.0, 0], [0, 1], [1, 1]]), labels, 2)
    assert perfect == {"average_precision": [1.0, 1.0, None], "precision": [1.0, 1.0, None]}
    reversed_ = class_precisions(images, torch.tensor([[0, 1.0], [1.0, 0]]), labels, 2)
    assert reversed_["precision"] == [0.0, 0.0]
    assert reversed_["average_precision"] == pytest.approx([(1 / 3 + 2 / 4) / 2] * 2)


def test_means_by_group():
    found = by_group([1.0, 0.5, None, 0.0], np.array([200, 50, 30, 3]), "oltr")
    assert found == {"all": 0.5, "many": 1.0, "medium": 0.5, "few": 0.0}
    assert by_group([1.0], np.array([200]), "oltr")["few"] is None


def test_the_rarest_classes_are_shown_first():
    counts, labels = np.array([200, 5, 9, 2, 1]), np.array([0, 1, 2, 3])
    assert shown_classes(counts, labels, "oltr", QueriesOptions()) == [3, 1, 2]
    assert shown_classes(counts, labels, "oltr", QueriesOptions(group="all", show=2)) == [3, 1]
    assert shown_classes(counts, labels, "oltr", QueriesOptions(group="medium")) == []
    assert chances(labels, 5) == [0.25] * 4 + [None]
