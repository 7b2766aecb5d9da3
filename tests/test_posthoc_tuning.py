"""One parameter chosen: the best of the grid by scikit-learn's criteria, and what is told of the choice."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss

from hf_vlr.errors import UserError
from hf_vlr.posthoc import logit_adjustment, tuning
from hf_vlr.posthoc.scores import CHUNK_NUMBERS

COUNTS = np.array([400, 100, 20, 5])
GRID = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0]


def long_tailed(rows: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a model that has learnt `COUNTS`, and balanced labels with every class in them."""
    labels = np.arange(rows) % 4
    logits = np.random.default_rng(seed).normal(size=(rows, 4)) + np.log(COUNTS / COUNTS.sum())
    logits[np.arange(rows), labels] += 2.0
    return logits, labels


def search(criterion: str, grid=GRID, **changes) -> tuning.Tuned:
    z, labels = long_tailed()
    candidates = logit_adjustment.candidates(z, COUNTS)
    return tuning.search(
        "tau", grid, candidates, labels, 4, **{"split": "validation", "criterion": criterion, **changes}
    )


def nll(labels: np.ndarray, p: np.ndarray) -> float:
    return log_loss(labels, p, labels=range(4))


REFERENCES = {
    "nll": nll,
    "balanced-nll": lambda labels, p: np.mean([nll(labels[labels == one], p[labels == one]) for one in range(4)]),
    "accuracy": lambda labels, p: accuracy_score(labels, p.argmax(1)),
    "balanced-accuracy": lambda labels, p: balanced_accuracy_score(labels, p.argmax(1)),
}


@pytest.mark.parametrize("criterion", tuning.CRITERIA)
def test_the_criteria_are_scikit_learns(criterion):
    z, labels = long_tailed()
    labels[:37] = 0
    found = tuning.search(
        "tau", GRID, logit_adjustment.candidates(z, COUNTS), labels, 4, split="validation", criterion=criterion
    )
    adjusted = [np.exp(logit_adjustment.adjusted(z, COUNTS, tau)) for tau in GRID]
    expected = [REFERENCES[criterion](labels, p) for p in adjusted]
    np.testing.assert_allclose(found.scores, expected, rtol=1e-9)
    assert found.value == GRID[int(np.argmin(expected) if "nll" in criterion else np.argmax(expected))]
    loss = tuning.mean_loss(np.log(adjusted[2]), labels, criterion)
    assert loss == pytest.approx(expected[2] if "nll" in criterion else 1 - expected[2])


def test_the_choice_undoes_the_prior_that_was_put_in():
    found = search("balanced-nll")
    assert found.value == 1.0
    assert found.warning is None
    told = json.loads(json.dumps(found.as_dict()))
    assert told == {
        "parameter": "tau",
        "value": 1.0,
        "criterion": "balanced-nll",
        "score": min(found.scores),
        "grid": {"low": 0.0, "high": 2.0, "values": 7},
        "split": "validation",
        "images": 400,
        "at_edge": False,
    }


def test_a_choice_at_the_edge_is_warned_of():
    found = search("balanced-nll", [0.0, 0.5])
    assert found.warning == "tau=0.5 is the highest value tried on validation: try further ones"
    assert found.as_dict()["at_edge"]
    assert "lowest value tried" in search("balanced-nll", [1.5, 1.75, 2.0]).warning
    assert search("balanced-nll", [0.0, 0.5], limits=(0.0, 0.5)).warning.endswith("and the end of its range")
    assert search("balanced-nll", [0.7]).warning is None


def test_of_equal_values_the_one_that_changes_least():
    """Scores that no τ of the grid turns round."""
    candidates = logit_adjustment.candidates(np.array([[50.0, 0.0], [0.0, 50.0]]), [3, 1])
    for neutral, expected in ((0.0, 0.0), (1.0, 1.0), (0.6, 0.5)):
        found = tuning.search(
            "tau", [1.0, 0.5, 0.0], candidates, [0, 1], 2, split="v", criterion="accuracy", neutral=neutral
        )
        assert found.value == expected


def test_pieces_make_the_whole():
    rows = CHUNK_NUMBERS // 2
    z, labels = np.random.default_rng(0).normal(size=(rows, 4)), np.arange(rows) % 3
    found = tuning.search("tau", [1.0], logit_adjustment.candidates(z, COUNTS), labels, 4, split="v", criterion="nll")
    adjusted = logit_adjustment.adjusted(z, COUNTS, 1.0)
    assert found.scores[0] == pytest.approx(-adjusted[np.arange(rows), labels].mean())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"criterion": "f1"}, "unknown criterion 'f1': use balanced-nll, nll, balanced-accuracy, accuracy"),
        ({"criterion": "nll", "grid": []}, "give one finite number or more"),
        ({"criterion": "nll", "grid": [np.nan]}, "give one finite number or more"),
    ],
)
def test_what_cannot_be_searched(changes, said):
    with pytest.raises(UserError, match=said):
        search(**changes)


def test_no_images_to_tune_on():
    with pytest.raises(UserError, match="no images to tune on"):
        tuning.search("tau", GRID, lambda rows: None, np.empty(0, dtype=int), 4, split="v")
