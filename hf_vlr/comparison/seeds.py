"""Whether the runs of a row are what they are taken for: the same predictor, trained from different seeds."""

from itertools import combinations

import numpy as np

from hf_vlr.comparison.runs import Row, Run
from hf_vlr.errors import UserError


def check_seeds(row: Row) -> None:
    """Raise `UserError` for two runs of a row that are one, and for scores beside predicted classes.

    `row`: with its images in one order. One are runs that hold the same predictions, or state the same seed: taken for
    two, they would feign a certainty that nobody has measured.
    """
    for one, other in combinations(row.runs, 2):
        places = f"{one.location} and {other.location} in {row.name}"
        if _kind(one) != _kind(other):
            raise UserError(
                f"{row.name} mixes two kinds of run: {one.location} has {_kind(one)}, {other.location} {_kind(other)}; "
                "give runs of one kind"
            )
        if _same(one, other):
            raise UserError(f"{places} hold the very same predictions: every run of a row must be another seed")
        seeds = [run.protocol.get("seed") for run in (one, other)]
        if seeds[0] is not None and str(seeds[0]) == str(seeds[1]):
            raise UserError(f"{places} are both of seed {seeds[0]}: every run of a row must be another seed")


def _kind(run: Run) -> str:
    return "only predicted classes" if run.outcome.log_likelihood is None else "scores"


def _same(one: Run, other: Run) -> bool:
    ours, theirs = one.outcome, other.outcome
    if not np.array_equal(ours.predictions, theirs.predictions):
        return False
    return ours.log_likelihood is None or np.array_equal(ours.log_likelihood, theirs.log_likelihood)
