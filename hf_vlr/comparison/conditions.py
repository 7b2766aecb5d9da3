"""Under which conditions the rows were measured, and where these differ."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_vlr.comparison.runs import Row, Run
from hf_vlr.evaluation.main_predictor import steps_done

NOT_STATED = "not stated"
# what a reader looks for first, in this order
FIRST = (
    "split",
    "source",
    "rule",
    "resolution",
    "test_time_augmentation",
    "pretraining",
    "texts",
    "training images",
    "seed",
    "predictor",
    "convention",
)
# what a run found out is a result, and time says nothing of what it led to
RESULTS = ("training seconds", "training loss", "training fusion_weight", "training tau", "training scale")
# what every run has for itself, or the protocol states
OWN_SETTINGS = ("output", "seed", "task", "data.source")
# which model is the question itself, and the device should not matter
EXPECTED = ("model", "parameters", "device")
_TITLES = {
    "test_time_augmentation": "test-time augmentation",
    "pretraining": "pre-training",
    "rule": "shot groups as stated",
    "training images": "training images",
    "seed": "seeds",
}


@dataclass(frozen=True)
class Condition:
    """One line of a protocol: by row what its runs state, each different statement once.

    differs: the rows do not agree, or the runs of one row do not. flagged: that may explain a difference in numbers.
    recipe: a setting of the runs' recipes, which are what is compared.
    """

    field: str
    stated: Mapping[str, tuple[str, ...]]
    differs: bool
    flagged: bool
    recipe: bool = False

    @property
    def title(self) -> str:
        return (
            self.field.removeprefix("recipe ") if self.recipe else _TITLES.get(self.field, self.field.replace("_", " "))
        )

    def grouped(self) -> dict[str, list[str]]:
        """By statement the rows that make it; the statements of a row's runs are joined."""
        found: dict[str, list[str]] = {}
        for name, own in self.stated.items():
            found.setdefault(" and ".join(own), []).append(name)
        return found


def conditions(rows: Sequence[Row]) -> list[Condition]:
    """Every condition that some run states, the flagged ones first, and where the recipes of the runs differ.

    Flagged is whatever differs but results of training (`RESULTS`) and what is compared (`EXPECTED`). A condition that
    only some rows state differs: not stated is not the same. The runs of a row may differ in their seeds alone.
    """
    stated = {row.name: [_statements(run) for run in row.runs] for row in rows}
    known = dict.fromkeys(field for runs in stated.values() for run in runs for field in run)
    counts = [run.predictions.train_counts for row in rows for run in row.runs]
    other_counts = any(not np.array_equal(one, counts[0]) for one in counts[1:])
    found = []
    for field in sorted(known, key=lambda one: FIRST.index(one) if one in FIRST else len(FIRST)):
        values = {
            name: tuple(dict.fromkeys(run.get(field, NOT_STATED) for run in runs)) for name, runs in stated.items()
        }
        distinct = {tuple(sorted(own)) for own in values.values()}
        mixed = field != "seed" and any(len(own) > 1 for own in values.values())
        differs = len(distinct) > 1 or mixed or (field == "training images" and other_counts)
        flagged = differs and field not in (*RESULTS, *EXPECTED)
        found.append(Condition(field, values, differs, flagged))
    return sorted(found + _recipes(rows), key=lambda one: (not one.flagged, not one.differs))


def _statements(run: Run) -> dict[str, str]:
    """What one run states, written out, with what follows from its files."""
    counts = run.predictions.train_counts
    own = {
        "training images": f"{counts.sum():,} ({counts.max():,} to {counts.min():,} a class)",
        "predictor": run.predictor,
        "convention": "its metrics also hold VL-LTR's mixed convention" if run.mixed else "one predictor a row",
    }
    # what was done to one predictor says nothing of the others
    stated = {key: value for key, value in run.protocol.items() if key != "posthoc"}
    steps = steps_done(run.protocol, run.predictor)
    return dict(_flat(stated)) | ({"posthoc": _written(steps)} if steps else {}) | own


def _recipes(rows: Sequence[Row]) -> list[Condition]:
    """Settings that all recipes know and give other values: not flagged, as that is what is compared.

    Empty unless all runs have a recipe.
    """
    runs = {row.name: [run.recipe for run in row.runs] for row in rows}
    every = [recipe for recipes in runs.values() for recipe in recipes]
    if None in every:
        return []
    found = []
    for key in every[0]:
        if key in OWN_SETTINGS or any(key not in recipe for recipe in every):
            continue
        values = {name: tuple(dict.fromkeys(_written(one[key]) for one in recipes)) for name, recipes in runs.items()}
        if len(set(values.values())) > 1:
            found.append(Condition(f"recipe {key}", values, differs=True, flagged=False, recipe=True))
    return found


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """A protocol's statements, one line each, with the names of nested ones put together."""
    for key, value in values.items():
        if key == "rule" and isinstance(value, Mapping):
            yield key, _rule(value)
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key} ")
        else:
            yield f"{before}{key}", _written(value)


def _written(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _rule(rule: Mapping[str, Any]) -> str:
    return (
        f"{rule.get('name')}: many above {rule.get('many_above')}, few below {rule.get('few_below')}, "
        f"averaged by {rule.get('averaging')}"
    )
