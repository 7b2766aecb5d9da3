"""The class texts a model was trained with, for a dataset that may list its classes otherwise."""

import json
from collections.abc import Sequence
from pathlib import Path

from hf_vlr.data.corpus import ClassTextCorpus
from hf_vlr.data.texts.row import TextRow


def names_in(path: Path) -> dict[int, str] | None:
    """Class names by label that a `texts.jsonl` says, None where a line has none or is no object."""
    names: dict[int, str] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            names[int(record["label"])] = str(record["class_name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return names


def texts_by_name(
    path: Path, known: dict[int, str], found: Sequence[int], class_names: Sequence[str]
) -> ClassTextCorpus:
    """The sentences of `texts.jsonl` for a dataset's classes: class c's are those of label `sorted(known)[found[c]]`.

    known: the file's class names by label.
    """
    labels = sorted(known)
    place = {labels[index]: label for label, index in enumerate(found)}
    whole = ClassTextCorpus.from_file(path, [known.get(label, "") for label in range(labels[-1] + 1)])
    rows = (TextRow(place[row.label], row.text, row.source, row.license) for row in whole.rows() if row.label in place)
    return ClassTextCorpus(rows, len(class_names), class_names)
