"""Measurements in Markdown: tables of predictors, and the conditions under which the numbers hold."""

from typing import Any

from hf_vlr.evaluation.table import markdown_table
from hf_vlr.hub.local_paths import without_kind
from hf_vlr.hub.markdown import blocks, cell, facts_table
from hf_vlr.hub.measurements import METRICS_FILE, PER_CLASS_FILE, REPORT_FILE, Measurement
from hf_vlr.hub.plots import FREQUENCY, TAIL, WORDS
from hf_vlr.hub.run_facts import RunFacts

MEANING = {
    "fused": "both branches, weighted",
    "visual": "the classifier on the image alone",
    "language": "the image against sentences alone",
}


def results(facts: RunFacts, files: list[str]) -> str:
    """Each measurement with its protocol; the plots and files that are in the repository."""
    if not facts.measurements:
        return "Nothing has been measured: the folder that this was published from holds no `metrics.json`."
    parts = []
    for measurement in facts.measurements:
        data = cell(without_kind(measurement.protocol.get("source") or "") or facts.data_name)
        heading = f"### Split {cell(measurement.protocol.get('split'))} of {data}"
        conditions = facts_table(_conditions(measurement))
        parts.append(blocks(heading, _numbers(measurement), conditions, _files(measurement, files)))
    shown = [path for path in (FREQUENCY, TAIL) if path in files]
    return blocks(*parts, *(f"![{WORDS[path]}]({path})" for path in shown))


def _numbers(measurement: Measurement) -> str:
    entries = {cell(name): entry for name, entry in measurement.document["predictors"].items()}
    bounded = any("intervals" in entry for entry in entries.values())
    note = "Accuracy in percent"
    if bounded:
        note += ", with 95 % bootstrap intervals over the test images"
    note += ". In brackets behind a group: its number of classes."
    if len(entries) > 1:
        note += f" The model's own answer is **{cell(measurement.main)}**."
    entry = measurement.entry
    named = [f"- {name}: {MEANING[name]}" for name in entries if name in MEANING and len(entries) > 1]
    rest = {
        "top-5": _percent(entry.get("top5")),
        "macro-F1": _percent(entry.get("macro_f1")),
        "worst tenth of the classes": _percent(entry.get("worst_tenth")),
        "worst class": _percent(entry.get("worst_class")),
        "NLL (nats)": _number(entry.get("nll")),
        "expected calibration error": _percent(entry.get("ece")),
    }
    more = ", ".join(f"{name} {value}" for name, value in rest.items() if value)
    said = f"Of {cell(measurement.main)}: {more}." if more else ""
    return blocks(note, markdown_table(entries, intervals=bounded).rstrip(), "\n".join(named), said)


def _conditions(measurement: Measurement) -> list[tuple[str, str]]:
    protocol, entry = measurement.protocol, measurement.entry
    versions, untested = protocol.get("versions") or {}, entry.get("classes_without_test_images")
    images = f"{entry['num_images']:,} of {entry['num_classes']:,} classes"
    rows = {
        "test images": images + (f"; {untested:,} classes have none and are in no mean" if untested else ""),
        "shot groups": _rule(protocol.get("rule") or {}),
        "resolution": f"{protocol['resolution']} pixels" if protocol.get("resolution") else None,
        "test-time augmentation": cell(protocol.get("test_time_augmentation") or "none, one view of each image"),
        "pre-training": cell(protocol.get("pretraining") or "none"),
        "texts": cell(protocol.get("texts") or "none"),
        "seed": cell(protocol["seed"]) if protocol.get("seed") is not None else "none",
        "versions": ", ".join(f"{cell(name)} {cell(number)}" for name, number in versions.items()),
    }
    return [(name, value) for name, value in rows.items() if value]


def _rule(rule: dict[str, Any]) -> str | None:
    if not rule:
        return None
    average = "class by class" if rule.get("averaging") == "class" else "image by image"
    return (
        f"{cell(rule.get('name'))}: many above {rule.get('many_above')} training images, few below "
        f"{rule.get('few_below')}, averaged {average}"
    )


def _files(measurement: Measurement, files: list[str]) -> str:
    there = {REPORT_FILE: "the report", PER_CLASS_FILE: "class by class", METRICS_FILE: "all numbers"}
    links = [f"[{words}]({path})" for name, words in there.items() if (path := measurement.file(name)) in files]
    return f"More: {', '.join(links)}." if links else ""


def _percent(fraction: float | None) -> str | None:
    return None if fraction is None else f"{100 * fraction:.1f} %"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
