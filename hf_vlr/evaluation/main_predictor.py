"""Which predictor stands for a model, and what has been done to a predictor after training.

A protocol's `posthoc` tells of steps: `{"of": BASE, "steps": [{"method": …}, …]}`, with what came before under
`before`. The predictor after the first steps is called `BASE + METHOD + METHOD`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from hf_vlr.errors import UserError
from hf_vlr.evaluation.predictions import Predictions

# the first that there is
PREFERENCE = ("fused", "language", "all texts", "visual")

Steps = list[Mapping[str, Any]]


def main_predictor(predictions: Predictions) -> str:
    """The predictor that stands for the model, see `main_of`."""
    return main_of(predictions.scores, predictions.protocol)


def main_of(names: Iterable[str], protocol: Mapping[str, Any]) -> str:
    """Of predictors by name the last that was adjusted after training, else the first of `PREFERENCE`, else the first.

    Raises `UserError` without any.
    """
    known = list(names)
    if not known:
        raise UserError("there is no predictor: give predictions with scores")
    return preferred(known, protocol) or known[0]


def preferred(names: Iterable[str], protocol: Mapping[str, Any]) -> str | None:
    """As `main_of`, but None where the rule knows none of the names."""
    known = list(names)
    adjusted = [name for name in adjusted_predictors(protocol) if name in known]
    return adjusted[-1] if adjusted else next((name for name in PREFERENCE if name in known), None)


def steps_done(protocol: Mapping[str, Any], predictor: str) -> Steps:
    """The steps that led to a predictor, the first one first; none for one that was not adjusted."""
    return adjusted_predictors(protocol).get(predictor, [])


def adjusted_predictors(protocol: Mapping[str, Any]) -> dict[str, Steps]:
    """By predictor that a protocol tells of, in their order, the steps that led to it."""
    told = protocol.get("posthoc")
    if not isinstance(told, Mapping) or "of" not in told:
        return {}
    found = adjusted_predictors({"posthoc": told.get("before")})
    name, done = str(told["of"]), found.get(str(told["of"]), [])
    for step in told.get("steps", ()):
        name, done = f"{name} + {step['method']}", [*done, step]
        # told last, so that it is the last
        found.pop(name, None)
        found[name] = done
    return found
