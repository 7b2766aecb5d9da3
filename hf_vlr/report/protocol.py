"""Under which conditions the numbers hold."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hf_vlr.data.shots import ShotRule
from hf_vlr.evaluation.main_predictor import adjusted_predictors
from hf_vlr.report.markup import NOTHING, Cell, Html, counted, definitions, folded
from hf_vlr.report.view import View

# what cannot be compared unless it agrees, and how it is called here
_STATED = {
    "split": "Split",
    "rule": "Shot groups",
    "resolution": "Resolution",
    "test_time_augmentation": "Test-time augmentation",
    "pretraining": "Pre-training",
    "texts": "Texts",
    "seed": "Seed",
}


def protocol_list(view: View) -> Html:
    """Under which conditions the numbers hold; what else the run states is folded away."""
    protocol = view.document["protocol"]
    facts = {term: Cell(_stated(key, protocol[key], view.rule)) for key, term in _STATED.items()}
    tested = next(iter(view.document["predictors"].values()))
    facts["Test images"] = Cell(f"{tested['num_images']:,} of {counted(tested['num_classes'], 'class', 'classes')}")
    if tested["classes_without_test_images"]:
        facts["Classes without test images"] = Cell(f"{tested['classes_without_test_images']:,}, in no mean")
    facts["Versions"] = Cell(", ".join(f"{package} {number}" for package, number in protocol["versions"].items()))
    adjusted = {
        name: _spelled(steps) for name, steps in adjusted_predictors(protocol).items() if name in view.predicted
    }
    plain = {key: value for key, value in protocol.items() if key != "posthoc"} | adjusted
    others = {key: text for key, text in _flat(plain) if key.partition(" ")[0] not in (*_STATED, "versions")}
    more = folded("What else the run states", definitions(others)) if others else ""
    return Html(definitions(facts) + more)


def _stated(key: str, value: Any, rule: ShotRule) -> str:
    if key == "rule":
        average = "class by class" if rule.averaging == "class" else "image by image"
        further = "".join(f"; {label}: at most {most}" for label, most in rule.at_most)
        return (
            f"{rule.name}: many above {rule.many_above} training images, few below {rule.few_below}, "
            f"averaged {average}{further}"
        )
    if value is None:
        return "none" if key == "test_time_augmentation" else "-"
    return f"{value} pixels" if key == "resolution" else str(value)


def _spelled(steps: Sequence[Mapping[str, Any]]) -> str:
    """What was done to a predictor after training."""
    said = []
    for step in steps:
        values = [
            f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in step.items()
            if key not in ("method", "tuned", "label_bias")
        ]
        told = [step[key]["split"] for key in ("tuned", "label_bias") if isinstance(step.get(key), Mapping)]
        chosen = f" (chosen on {told[0]})" if told else ""
        said.append(" ".join([str(step["method"]), *values]) + chosen)
    return ", then ".join(said)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """What a protocol states, one line each, with the names of nested entries put together."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key} ")
        else:
            yield f"{before}{key}", NOTHING if value is None else str(value)
