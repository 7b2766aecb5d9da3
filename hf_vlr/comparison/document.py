"""`compare.json`, schema 1. Numbers are fractions (the NLL in nats), null where there is nothing to measure or to test:

schema, versions    1; of this package
rule                the shot groups' rule: name, many_above, few_below, averaging, at_most
against             the row that the others are compared with
images, classes     how many
groups              by shot group: classes and images that were tested
paired_by           "identity" or "order": how the runs' images were matched
resamples, confidence, alpha, tested
                    of each interval and test; of the intervals; of the verdicts; how many numbers were tested
measures            by key: title, percent, lower_is_better, tested
rows                by name: runs (places), predictor, values: by measure mean, std (null for one run), runs
comparisons         by row but `against`:
    differences     by measure: estimate, interval [low, high], p_images, p_seeds, p (the larger, after Holm's
                    adjustment over all tested numbers of the document), verdict ("better", "worse",
                    "no difference shown", null where it is not tested), these_runs (what the images alone
                    would say, of these very runs and no other seeds)
    wins            by shot group: classes that are better, equal, worse
    mcnemar         only_row, only_base, p: a cross-check of two single runs; null with seeds
agreement           rows (their order) and share: a square of the shares of images with the same prediction
conditions          field, stated (by row, a list), differs, flagged
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hf_vlr import __version__
from hf_vlr.comparison.comparison import Comparison
from hf_vlr.errors import UserError
from hf_vlr.evaluation.text_file import write_text
from hf_vlr.evaluation.verdict import ALPHA, CONFIDENCE

SCHEMA = 1
JSON_FILE, HTML_FILE = "compare.json", "compare.html"


def comparison_document(found: Comparison) -> dict[str, Any]:
    """The content of `compare.json`."""
    images, names = found.images, list(found.rows)
    return {
        "schema": SCHEMA,
        "versions": {"hf_vlr": __version__},
        "rule": asdict(images.rule),
        "against": found.against,
        "images": len(images.labels),
        "classes": len(images.train_counts),
        "groups": {
            name: {
                "classes": int((mask & (images.per_class > 0)).sum()),
                "images": int(images.per_class[mask].sum()),
            }
            for name, mask in images.groups.items()
        },
        "paired_by": images.paired_by,
        "resamples": found.resamples,
        "confidence": CONFIDENCE,
        "alpha": ALPHA,
        "tested": found.tested,
        "measures": {
            one.key: {
                "title": one.title,
                "percent": one.percent,
                "lower_is_better": one.lower_is_better,
                "tested": one.tested,
            }
            for one in found.measures
        },
        "rows": {name: _row(found, name) for name in names},
        "comparisons": {name: _compared(found, name) for name in found.others},
        "agreement": {"rows": names, "share": [[found.agreement(one, two) for two in names] for one in names]},
        "conditions": [
            {
                "field": one.field,
                "stated": {name: list(values) for name, values in one.stated.items()},
                "differs": one.differs,
                "flagged": one.flagged,
            }
            for one in found.conditions
        ],
    }


def write_comparison(folder: str | Path, found: Comparison, html: str) -> list[Path]:
    """Write `compare.html`, then `compare.json`, each whole or not at all, and return their paths.

    Raises `UserError` where the folder cannot be written.
    """
    text = json.dumps(comparison_document(found), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    paths = [Path(folder) / HTML_FILE, Path(folder) / JSON_FILE]
    for path, content in zip(paths, (html, text)):
        try:
            write_text(path, content)
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}): choose another --out") from error
    return paths


def _row(found: Comparison, name: str) -> dict[str, Any]:
    row, values = found.rows[name], {}
    for one in found.measures:
        runs = found.values(name, one)
        several = runs is not None and len(runs) > 1
        values[one.key] = {
            "mean": None if runs is None else float(np.mean(runs)),
            "std": float(np.std(runs, ddof=1)) if several else None,
            "runs": runs,
        }
    return {"runs": list(row.places), "predictor": row.runs[0].predictor, "values": values}


def _compared(found: Comparison, name: str) -> dict[str, Any]:
    exact = found.mcnemar[name]
    return {
        "differences": {key: asdict(one) for key, one in found.differences[name].items()},
        "wins": {group: dict(zip(("better", "equal", "worse"), counts)) for group, counts in found.wins(name).items()},
        "mcnemar": None if exact is None else asdict(exact),
    }
