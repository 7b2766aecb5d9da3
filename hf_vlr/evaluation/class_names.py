"""Which output of a classifier is which class of a dataset, by their names."""

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import numpy.typing as npt

from hf_vlr.errors import UserError
from hf_vlr.training.contrast import unique_names

SHOWN = 5


def match_classes(
    model_names: Sequence[str], class_names: Sequence[str], *, same_order: bool = False, model: str = "the model"
) -> npt.NDArray[np.int64]:
    """Index into a model's K outputs of each of a dataset's C classes, int64 [C]; no output is taken twice.

    Names are compared exactly, then without regard to case, underscores and a WordNet id in front, then by their
    synonyms (the parts between commas). Of names that occur several times on both sides (ImageNet has two cranes) the
    first is the first, and so on. The model may know further classes. With `same_order` names are not looked at.

    Raises `UserError` that lists the classes without a counterpart, and with `same_order` for K != C.
    """
    if same_order:
        if len(model_names) != len(class_names):
            raise UserError(
                f"{model} knows {len(model_names)} classes and the dataset has {len(class_names)}: "
                "--class-order needs as many of both"
            )
        return np.arange(len(class_names))
    # what this package writes into a model's configuration
    if list(model_names) == unique_names(list(class_names)):
        return np.arange(len(class_names))
    found = np.full(len(class_names), -1, dtype=np.int64)
    for key in (str, plain_name):
        _match_by(key, model_names, class_names, found)
    _match_synonyms(model_names, class_names, found)
    missing = [class_names[index] for index in np.flatnonzero(found < 0)]
    if missing:
        order = "; if both list the same classes in the same order, add --class-order"
        raise UserError(
            f"{model} has no output for {len(missing)} of the dataset's {len(class_names)} classes: {_some(missing)}; "
            f"it knows {len(model_names)}: {_some(model_names)}"
            + (order if len(model_names) == len(class_names) else "")
        )
    return found


def plain_name(name: str) -> str:
    """A name without case, underscores, hyphens, repeated spaces and a WordNet id in front."""
    words = re.sub(r"^n\d{8}[\s:_-]+", "", name.strip().casefold())
    return " ".join(re.sub(r"[\s_-]+", " ", words).split())


def synonyms(name: str) -> set[str]:
    """The plain parts of a name between commas."""
    return {plain_name(part) for part in name.split(",")} - {""}


def _match_by(
    key: Callable[[str], Hashable],
    model_names: Sequence[str],
    class_names: Sequence[str],
    found: npt.NDArray[np.int64],
) -> None:
    """Match what is still free on both sides and has the same key, where as many of either side have it."""
    outputs, classes = defaultdict(list), defaultdict(list)
    taken = set(found[found >= 0].tolist())
    for index, name in enumerate(model_names):
        if index not in taken:
            outputs[key(name)].append(index)
    for label in np.flatnonzero(found < 0):
        classes[key(class_names[label])].append(label)
    for value, labels in classes.items():
        if len(labels) == len(outputs.get(value, [])):
            found[labels] = outputs[value]


def _match_synonyms(model_names: Sequence[str], class_names: Sequence[str], found: npt.NDArray[np.int64]) -> None:
    """Match what is still free on both sides where the synonyms of one name are those of exactly one other."""
    taken = set(found[found >= 0].tolist())
    outputs_of, labels_of = defaultdict(set), defaultdict(set)
    for index, name in enumerate(model_names):
        for word in synonyms(name) if index not in taken else ():
            outputs_of[word].add(index)
    free = np.flatnonzero(found < 0).tolist()
    for label in free:
        outputs = set().union(*(outputs_of.get(word, set()) for word in synonyms(class_names[label])))
        for index in outputs:
            labels_of[index].add(label)
    for label in free:
        outputs = {index for index, labels in labels_of.items() if label in labels}
        if len(outputs) == 1 and len(labels_of[next(iter(outputs))]) == 1:
            found[label] = outputs.pop()


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
