"""What `export.json` holds, in words."""

from typing import Any

from hf_vlr.disk import megabytes
from hf_vlr.evaluation.table import render_table
from hf_vlr.export.accuracy import FLOAT, INT8
from hf_vlr.export.latency import Latency, Timing
from hf_vlr.export.parity import warnings_of as beyond_tolerance

# of a picture's normalised pixels
SAME_PIXELS = 1e-4
WORDS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}


def file_rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for each model: its size, its outputs and how far they are from torch."""
    rows = []
    for name, outputs in record["parity"].items():
        size = sum(number for file, number in record["files"].items() if file.startswith(name))
        for index, (output, errors) in enumerate(outputs.items()):
            shape = ", ".join(str(side) for side in record["shapes"][name]["outputs"][output])
            apart = f"max {errors['max']:.1e}, relative {errors['relative']:.1e} from torch"
            rows.append(("" if index else name, "" if index else megabytes(size), f"{output} [{shape}]", apart))
    int8 = record.get("int8")
    if int8 is not None:
        kind = int8["kind"]
        if "calibration_images" in int8:
            kind += f", calibrated on {int8['calibration_images']} training images"
        share = int8["bytes"][INT8] / int8["bytes"][FLOAT]
        rows.append(("model.int8.onnx", megabytes(int8["bytes"][INT8]), kind, f"{share:.0%} of the size"))
    return rows


def accuracy_lines(record: dict[str, Any]) -> list[str]:
    """The table of both precisions and how far they agree; without data one line that says so."""
    int8 = record.get("int8")
    if int8 is None:
        return []
    found = int8.get("accuracy")
    if found is None:
        return ["what int8 costs in accuracy is not known: give --data SOURCE"]
    lines = ["", f"{found['source']}, {found['split']}: {found['images']} images"]
    lines += render_table(found["predictors"]).splitlines()
    for name, agreed in found["agreement"].items():
        change = f"int8 alone is right on {agreed['gained']}, float32 alone on {agreed['lost']}"
        lines.append(f"{name}: both name the same class on {agreed['share']:.1%} of the images; {change}")
    falls = [f"{WORDS[key]} by {100 * fall:.1f} points" for key, fall in found["falls"].items()]
    margin = f"the margin ({100 * found['margin']:.1f} points)"
    if falls:
        lines.append(f"int8 falls beyond {margin}: {' and '.join(falls)}")
    else:
        lines.append(f"int8 stays within {margin} in accuracy and balanced accuracy")
    return lines


def latency_of(record: dict[str, Any]) -> Latency | None:
    """The timings of a record, None where none were made."""
    stored = record.get("latency")
    if stored is None:
        return None
    timings = {key: {name: Timing(**numbers) for name, numbers in stored[key].items()} for key in ("forward", "whole")}
    return Latency(**{**stored, **timings})


def warnings_of(record: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    lines = beyond_tolerance(record["parity"])
    if record["pixels"]["max"] > SAME_PIXELS:
        lines.append(
            f"preprocessor.json gives pixels that differ by {record['pixels']['max']:.1e} from the evaluation's"
        )
    timed = latency_of(record)
    if timed is not None and timed.load is not None and timed.load > timed.cores:
        lines.append(
            f"the machine was busy (load {timed.load:.1f} on {timed.cores} cores), so times are too long; "
            "repeat with --benchmark when it is idle"
        )
    return lines
