"""Where the seconds of the contrast go: kinds of operations that add up."""

import pytest
import torch

from hf_vlr.bench.contests.contrast_parts import EXPONENTIALS, PARTS, PASSES, PRODUCTS, REST, seconds_by_kind
from hf_vlr.bench.setting import Setting
from hf_vlr.timing import Turns, in_turns


def test_seconds_go_to_what_spends_them():
    square, few = torch.ones(400, 400), torch.ones(4, 4)
    of_products = seconds_by_kind(lambda: (square @ square, few.exp()), runs=3)
    assert of_products[PRODUCTS] > of_products[EXPONENTIALS] > 0
    of_exponentials = seconds_by_kind(lambda: (few @ few, square.exp()), runs=3)
    assert of_exponentials[EXPONENTIALS] > of_exponentials[PRODUCTS] > 0
    assert seconds_by_kind(lambda: square.sort(), runs=1)[REST] > 0


def test_the_kinds_add_up_to_a_call():
    square = torch.randn(600, 600)

    def call():
        (square @ square).exp().sort()

    found = seconds_by_kind(call, runs=5)
    # the machine may be busy while either is measured
    assert sum(found.values()) == pytest.approx(in_turns({"": call}, Turns(runs=5))[""].median, rel=0.8)


def test_the_line_says_how_near_products_alone_come():
    found = PARTS.measure(Setting(torch.device("cpu"), 1, {"pairs": 64, "texts": 64, "width": 8, "runs": 1}, "quick"))
    assert {PRODUCTS, EXPONENTIALS, PASSES, REST, "roof"} == set(found["numbers"])
    assert "products alone" in found["lines"][0] and found["numbers"]["roof"] > 0
