"""Neighbours, votes and ranked lists against brute force, scikit-learn and hand counts."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from hf_vlr.errors import UserError
from hf_vlr.protocols import neighbours, ranking
from hf_vlr.protocols.knn import best_k, knn_predictions
from hf_vlr.protocols.neighbours import majority_vote, nearest, nearest_reference, weighted_vote
from hf_vlr.protocols.ranking import average_precision, pair_ranks, precision_at, recall_at


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(*shape: int, seed: int = 0) -> torch.Tensor:
    """Vectors of few directions, so that many cosines are exactly equal."""
    found = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).float()
    found[:, 0] = 1.0
    return found


@pytest.mark.parametrize("make", [draw, whole])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_nearest_is_a_stable_sort(make, k):
    queries, gallery = make(23, 3, seed=1), make(40, 3, seed=2)
    values, places = nearest(queries, gallery, k)
    wanted_values, wanted_places = nearest_reference(queries, gallery, k)
    assert torch.equal(places, wanted_places)
    assert torch.equal(values, wanted_values)


def test_nearest_is_the_same_in_pieces(monkeypatch):
    queries, gallery = whole(23, 4, seed=1), whole(40, 4, seed=2)
    once = nearest(queries, gallery, 5)
    monkeypatch.setattr(neighbours, "MOST_NUMBERS", 3 * 40)
    assert all(torch.equal(a, b) for a, b in zip(once, nearest(queries, gallery, 5)))


def test_nearest_holds_no_more_than_a_piece(monkeypatch):
    widest = []
    top = neighbours._top
    monkeypatch.setattr(neighbours, "_top", lambda part, k: widest.append(part.numel()) or top(part, k))
    monkeypatch.setattr(neighbours, "MOST_NUMBERS", 1000)
    values, _ = nearest(draw(300, 4), draw(130, 4, seed=1), 3)
    assert len(values) == 300
    assert max(widest) <= 1000


def test_nearest_leaves_one_item_out_and_repeats_rows():
    gallery = torch.tensor([[1.0, 0], [1, 1], [0, 1]])
    _, places = nearest(gallery, gallery, 2, skip=torch.tensor([0, -1, 2]))
    assert places.tolist() == [[1, 2], [1, 0], [1, 0]]
    _, places = nearest(gallery[:1], gallery, 4, columns=torch.tensor([2, 0, 1, 0]))
    assert places.tolist() == [[1, 3, 2, 0]]


def test_nearest_refuses_more_neighbours_than_there_are():
    with pytest.raises(UserError, match="4 neighbours of 3 items"):
        nearest(draw(2, 4), draw(3, 4), 4)
    with pytest.raises(UserError, match="3 neighbours of 3 items"):
        nearest(draw(2, 4), draw(3, 4), 3, skip=torch.tensor([0, 1]))


@pytest.mark.parametrize("k", [1, 5, 20, 80])
def test_weighted_votes_are_those_of_scikit_learn(k):
    train, queries, temperature = draw(80, 6, seed=3), draw(50, 6, seed=4), 0.07
    labels = np.random.default_rng(0).integers(0, 7, 80)
    unit, unit_queries = (torch.nn.functional.normalize(part, dim=1).numpy() for part in (train, queries))
    # on unit vectors d² = 2 - 2 cos
    other = KNeighborsClassifier(k, weights=lambda distance: np.exp((1 - distance**2 / 2) / temperature))
    wanted = other.fit(unit, labels).predict(unit_queries)
    found = knn_predictions(train, labels, queries, [k], 7, temperature)
    assert (found["weighted", k] == wanted).all()


@pytest.mark.parametrize("k", [1, 3, 11])
def test_majorities_are_those_of_scikit_learn_where_none_is_tied(k):
    train, queries = draw(80, 6, seed=3), draw(50, 6, seed=4)
    labels = np.random.default_rng(0).integers(0, 2, 80)
    unit, unit_queries = (torch.nn.functional.normalize(part, dim=1).numpy() for part in (train, queries))
    wanted = KNeighborsClassifier(k).fit(unit, labels).predict(unit_queries)
    assert (knn_predictions(train, labels, queries, [k], 2, 0.07)["majority", k] == wanted).all()


def test_one_search_serves_every_k():
    train, queries, labels = draw(60, 5), draw(20, 5, seed=1), np.random.default_rng(1).integers(0, 4, 60)
    together = knn_predictions(train, labels, queries, [1, 9, 500], 4, 0.1)
    for k in (1, 9, 60):
        alone = knn_predictions(train, labels, queries, [k], 4, 0.1)
        for vote in ("weighted", "majority"):
            assert (together[vote, 500 if k == 60 else k] == alone[vote, k]).all()


def test_equal_votes_go_to_the_class_that_is_nearest():
    labels = torch.tensor([[3, 1, 1, 3, 0], [0, 2, 2, 2, 0], [4, 3, 2, 1, 0], [2, 1, 1, 0, 0]])
    assert majority_vote(labels, 5).tolist() == [3, 2, 4, 1]


def test_a_near_neighbour_outvotes_two_far_ones_only_when_the_temperature_is_low():
    cosines, labels = torch.tensor([[0.9, 0.8, 0.8]]), torch.tensor([[1, 0, 0]])
    assert weighted_vote(cosines, labels, 2, 0.07).item() == 1
    assert weighted_vote(cosines, labels, 2, 1.0).item() == 0


def test_the_smallest_of_equally_good_k_is_chosen():
    assert best_k({20: 0.5, 5: 0.7, 50: 0.7}) == 5


def brute_rank(scores: np.ndarray, own: set[int]) -> int:
    best = max(scores[item] for item in own)
    return 1 + sum(score >= best for item, score in enumerate(scores) if item not in own)


@pytest.mark.parametrize("make", [draw, whole])
def test_pair_ranks_are_those_of_brute_force(make, monkeypatch):
    monkeypatch.setattr(ranking, "MOST_NUMBERS", 60)
    images, texts = make(9, 4, seed=5), make(14, 4, seed=6)
    generator = np.random.default_rng(2)
    image_of = np.concatenate([np.arange(9), generator.integers(0, 9, 12)])
    text_of = np.concatenate([generator.integers(0, 14, 9), np.arange(12)])
    to_text, to_image = pair_ranks(images, texts, image_of, text_of)
    unit = [torch.nn.functional.normalize(part, dim=1) for part in (images, texts)]
    cosines = (unit[0] @ unit[1].t()).numpy()
    for image in range(9):
        assert to_text[image] == brute_rank(cosines[image], set(text_of[image_of == image]))
    for text in range(12):
        assert to_image[text] == brute_rank(cosines[:, text], set(image_of[text_of == text]))


def test_features_that_are_all_the_same_have_the_last_place():
    same = torch.ones(6, 3)
    to_text, to_image = pair_ranks(same, same, np.arange(6), np.arange(6))
    assert to_text.tolist() == to_image.tolist() == [6] * 6


def test_without_a_pair_the_place_is_behind_the_list():
    to_text, to_image = pair_ranks(draw(2, 3), draw(4, 3, seed=1), np.array([0, 0]), np.array([1, 3]))
    assert to_text[1] == 5
    assert to_image[[0, 2]].tolist() == [3, 3]


def test_any_caption_of_an_image_counts():
    images = torch.tensor([[1.0, 0], [0, 1]])
    # image 0 has one good and one bad caption, image 1 a middling one
    texts = torch.tensor([[1.0, 0.1], [0.2, 1.0], [0.5, 0.6]])
    to_text, to_image = pair_ranks(images, texts, np.array([0, 0, 1]), np.array([0, 1, 2]))
    assert to_text.tolist() == [1, 2]
    assert to_image.tolist() == [1, 2, 1]
    assert recall_at(to_text, [1, 5]) == {"recall@1": 0.5, "recall@5": 1.0, "median_rank": 1.5}


@pytest.mark.parametrize("tied", [False, True])
def test_average_precision_is_that_of_scikit_learn(tied):
    generator = np.random.default_rng(3)
    for _ in range(20):
        scores = generator.normal(size=40)
        scores = scores.round() if tied else scores
        positive = generator.random(40) < 0.3
        assert average_precision(scores, positive) == pytest.approx(average_precision_score(positive, scores))


def test_average_precision_by_hand():
    scores, positive = np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False])
    assert average_precision(scores, positive) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert average_precision(scores, np.zeros(4, dtype=bool)) is None
    assert precision_at(scores, positive, 3) == pytest.approx(2 / 3)
    assert precision_at(scores, positive, 100) == 0.5
