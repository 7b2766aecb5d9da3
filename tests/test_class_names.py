"""Which output of a classifier is which class of a dataset."""

import numpy as np
import pytest

from hf_vlr.errors import UserError
from hf_vlr.evaluation.class_names import match_classes, plain_name


def test_names_in_another_order_are_found():
    assert match_classes(["a", "b", "c"], ["c", "a", "b"]).tolist() == [2, 0, 1]
    assert match_classes(["a", "b", "c", "d"], ["d", "b"]).tolist() == [3, 1]


def test_case_underscores_and_wordnet_ids_do_not_matter():
    assert match_classes(["Red_Fox", "arctic-fox"], ["arctic fox", "red fox"]).tolist() == [1, 0]
    assert match_classes(["tench", "goldfish"], ["n01443537 Goldfish", "n01440764_tench"]).tolist() == [1, 0]
    assert plain_name("n01440764: Tench__x") == "tench x"


def test_synonyms_between_commas_are_found():
    model = ["tench, Tinca tinca", "great white shark, white shark", "hen"]
    assert match_classes(model, ["White_shark", "hen", "tinca tinca"]).tolist() == [1, 2, 0]
    assert match_classes(["shark", "tench"], ["tench, Tinca tinca", "shark, fish"]).tolist() == [1, 0]


def test_imagenets_repeated_names_go_in_their_order():
    # as in ImageNet: two cranes with one name, and maillots of which one says more
    model = ["crane", "hen", "crane", "maillot", "maillot, tank suit"]
    assert match_classes(model, model).tolist() == [0, 1, 2, 3, 4]
    assert match_classes(model, ["hen", "crane", "crane", "maillot, tank suit", "maillot"]).tolist() == [1, 0, 2, 4, 3]
    # what this package writes into a configuration
    written = ["crane (0)", "hen", "crane (2)"]
    assert match_classes(written, ["crane", "hen", "crane"]).tolist() == [0, 1, 2]


def test_what_is_ambiguous_or_unknown_is_refused():
    with pytest.raises(UserError, match=r"no output for 1 of the dataset's 2 classes: 'wolf'.*--class-order"):
        match_classes(["fox", "LABEL_1"], ["fox", "wolf"], model="model m")
    # one crane of the dataset could be either of the model's
    with pytest.raises(UserError, match="'crane'"):
        match_classes(["crane", "crane"], ["crane"])
    with pytest.raises(UserError, match="'crane, bird'"):
        match_classes(["crane, machine", "crane, big"], ["crane, bird", "crane, small"])
    with pytest.raises(UserError, match="'a', 'b', 'c', 'd', 'e' and 2 more; it knows 3"):
        match_classes(["x", "y", "z"], list("abcdefg"))


def test_the_order_can_be_taken_as_it_is():
    assert match_classes(["LABEL_0", "LABEL_1"], ["a", "b"], same_order=True).tolist() == [0, 1]
    with pytest.raises(UserError, match="model m knows 3 classes and the dataset has 2"):
        match_classes(["a", "b", "c"], ["a", "b"], same_order=True, model="model m")


def test_no_output_is_taken_twice():
    rng = np.random.default_rng(0)
    for _ in range(50):
        model = [f"{a}, {b}" if a != b else str(a) for a, b in rng.integers(0, 9, (8, 2))]
        order = rng.permutation(8)
        try:
            found = match_classes(model, [model[index] for index in order])
        except UserError:
            continue
        assert sorted(found.tolist()) == list(range(8))
        assert [model[index] for index in found] == [model[index] for index in order]


def test_the_order_is_not_offered_where_the_numbers_differ():
    with pytest.raises(UserError, match="it knows 3") as caught:
        match_classes(["x", "y", "z"], ["a", "b"])
    assert "--class-order" not in str(caught.value)
