"""Measurements as the Hub reads them: `model-index` in the card, and `.eval_results/*.yaml`."""

import re
from itertools import chain, count

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from hf_vlr.hub.hub_ids import hub_id
from hf_vlr.hub.local_paths import without_kind
from hf_vlr.hub.measurements import Measurement
from hf_vlr.hub.run_facts import RunFacts

FOLDER = ".eval_results"
# the Hub asks for the task's name in the data set's own eval.yaml; a data set of one task calls it so
TASK_ID = "default"
MEASURES = {
    "accuracy": ("accuracy", "Top-1 accuracy"),
    "balanced_accuracy": ("balanced_accuracy", "Mean of the classes' accuracies"),
    "top5": ("accuracy", "Top-5 accuracy"),
    "macro_f1": ("f1", "Macro-F1"),
    "worst_tenth": ("accuracy", "Mean accuracy of the worst tenth of the classes"),
}


def pipeline_tag(facts: RunFacts) -> str:
    """The Hub's name of what the model does."""
    if facts.recogniser:
        return "image-classification"
    return "zero-shot-image-classification" if facts.reads_texts else "image-feature-extraction"


def eval_results(facts: RunFacts) -> list[EvalResult]:
    """The main predictor's numbers of every measurement, fractions, for `model-index`."""
    found = []
    for measurement in facts.measurements:
        entry, split = measurement.entry, measurement.protocol.get("split")
        source = without_kind(measurement.protocol.get("source") or "") or facts.data_name or "unknown"
        values = [(kind, name, entry.get(key)) for key, (kind, name) in MEASURES.items()]
        values += [
            ("accuracy", f"Top-1 accuracy, {group}-shot classes ({row['classes']})", row["accuracy"])
            for group, row in entry["groups"].items()
        ]
        found += [
            EvalResult(
                task_type=pipeline_tag(facts),
                task_name="Long-tailed recognition",
                dataset_type=measured_on(facts, measurement) or _slug(source),
                dataset_name=source,
                dataset_split=split,
                dataset_args={"conditions": conditions(measurement)},
                metric_type=kind,
                metric_name=f"{name} ({measurement.main})",
                metric_value=value,
            )
            for kind, name, value in values
            if value is not None
        ]
    return found


def eval_result_files(facts: RunFacts) -> dict[str, bytes]:
    """`.eval_results/DATASET-SPLIT.yaml` by path: the top-1 accuracy, a fraction, on the test split.

    Only where the data set is on the Hub: an entry without its id is none. One file for each set of conditions.
    """
    files: dict[str, bytes] = {}

    for measurement in facts.measurements:
        split, dataset_id = str(measurement.protocol.get("split")), measured_on(facts, measurement)
        if dataset_id is None or not split.startswith("test"):
            continue
        entry = EvalResultEntry(
            dataset_id=dataset_id,
            task_id=TASK_ID,
            value=measurement.entry["accuracy"],
            notes=f"top-1 accuracy, a fraction; {conditions(measurement)}",
        )
        stem = _slug(f"{dataset_id.partition('/')[2]}-{split}")
        endings = chain([""], map("-{}".format, count(2)))
        path = next(path for path in (f"{FOLDER}/{stem}{ending}.yaml" for ending in endings) if path not in files)
        text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True, width=1000)
        files[path] = text.encode()
    return files


def measured_on(facts: RunFacts, measurement: Measurement) -> str | None:
    """The Hub id of the data set that was measured on, None where it has none that is known."""
    source = measurement.protocol.get("source")
    return facts.dataset_id if source == facts.setting("data.source") else hub_id(source)


def conditions(measurement: Measurement) -> str:
    """In a few words what a number must not be torn from."""
    protocol = measurement.protocol
    rule = protocol.get("rule") or {}
    found = [
        f"predictor {measurement.main}",
        f"split {protocol.get('split')}",
        f"{protocol['resolution']} px" if protocol.get("resolution") else None,
        protocol.get("test_time_augmentation") or "one view of each image",
        f"shot groups {rule['name']}" if rule else None,
    ]
    return ", ".join(filter(None, found))


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "unknown"
