"""`protocol.json`: what a protocol was run on, how, and what came out; whole or not at all."""

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from hf_vlr.errors import UserError
from hf_vlr.evaluation.text_file import write_text
from hf_vlr.evaluation.versions import versions

SCHEMA = 1
RESULT_FILE = "protocol.json"
PACKAGES = ("torch", "transformers", "numpy", "scikit-learn", "umap-learn")


def result_document(name: str, settings: Any, stated: Mapping[str, Any], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """`schema`, `protocol` (its name), `settings`, `stated` (model, source, split …), `versions`, `numbers`."""
    return {
        "schema": SCHEMA,
        "protocol": name,
        "settings": asdict(settings) if is_dataclass(settings) else dict(settings),
        "stated": dict(stated),
        "versions": versions(PACKAGES),
        "numbers": dict(numbers),
    }


def write_result(folder: Path | None, document: Mapping[str, Any]) -> None:
    """Write the document as `protocol.json` into a folder, or nothing where there is none.

    Raises `UserError` for a value that JSON has no word for.
    """
    if folder is None:
        return
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UserError(f"{RESULT_FILE} cannot be written, use plain finite values: {error}") from error
    write_text(folder / RESULT_FILE, text)


def summary(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The numbers of each predictor of a metrics document that a protocol's table shows."""
    return {
        name: {
            "accuracy": entry["accuracy"],
            "balanced_accuracy": entry["balanced_accuracy"],
            "groups": {group: values["accuracy"] for group, values in entry["groups"].items()},
        }
        for name, entry in document["predictors"].items()
    }
