"""The scoreboard in README.md is what the packaged results say."""

import re
from pathlib import Path

import pytest

from hf_vlr.bench.board import BOARD
from hf_vlr.bench.results import read_results
from hf_vlr.bench.table import document

ROOT = Path(__file__).resolve().parent.parent
RESULTS = sorted((ROOT / "hf_vlr" / "bench" / "results").glob("*.json"))


def test_readme_shows_the_results_of_a_processor():
    shown = re.search(r"<!-- scoreboard -->\n(.*?)\n<!-- /scoreboard -->", (ROOT / "README.md").read_text(), re.S)
    assert shown and shown[1] in [document(read_results(path)) for path in RESULTS]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_are_whole(path):
    results = read_results(path)
    # the tests' own time is the one line that no test can wait for
    assert {entry.name for entry in BOARD} - {"house-tests"} == set(results["lines"]) - {"house-tests"}
    assert {record["scale"] for record in results["lines"].values()} == {"full"}
    assert path.stem.startswith(results["hardware"]["chip"].lower().split()[0])
