"""Sentences of where a species stands among the living, from iNaturalist's `categories.json`."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_vlr.data.texts.files import read_json
from hf_vlr.data.texts.names import NameIndex, shown
from hf_vlr.data.texts.row import TextRow
from hf_vlr.errors import UserError

# From the nearest relatives to the farthest.
RANKS = ("genus", "family", "order", "class", "phylum", "kingdom")
KINDS = {
    "Actinopterygii": "a ray-finned fish",
    "Amphibia": "an amphibian",
    "Animalia": "an animal",
    "Arachnida": "an arachnid",
    "Aves": "a bird",
    "Bacteria": "a bacterium",
    "Chromista": "a chromist",
    "Fungi": "a fungus",
    "Insecta": "an insect",
    "Mammalia": "a mammal",
    "Mollusca": "a mollusc",
    "Plantae": "a plant",
    "Protozoa": "a protozoan",
    "Reptilia": "a reptile",
}
logger = logging.getLogger(__name__)


def taxonomy_rows(path: str | Path, class_names: Sequence[str]) -> Iterator[TextRow]:
    """One sentence for each rank that a species's entry names, and one of the nearest three.

    Entries are objects with `name` and any of `genus`, `family`, `order`, `class`, `phylum`, `kingdom`,
    `supercategory`, `common_name`, in a list or under `categories`. They are matched with classes by name, or by `id`
    where class names are those numbers. Raises `UserError` for another kind of file, a name that several classes
    have, and where nothing matches; entries and classes that match nothing are counted in a warning.
    """
    file = Path(path).expanduser()
    species = _matched(file, _entries(file), class_names)
    for label, entry in sorted(species.items()):
        for sentence in taxonomy_sentences(entry):
            yield TextRow(label, sentence, f"taxonomy {file.name}", "CC0-1.0")


def taxonomy_sentences(entry: dict[str, Any]) -> list[str]:
    """The sentences of one species, from its entry in `categories.json`."""
    name, common = entry["name"].strip(), _value(entry, "common_name")
    called = f"{common} ({name})" if common else name
    sentences = [f"a photo of {called}."]
    if common:
        sentences += [f"a photo of a {common}.", f"a photo of {name}."]
    ranks = [(rank, value) for rank in RANKS if (value := _value(entry, rank))]
    sentences += [f"a photo of {called}, a species of the {rank} {value}." for rank, value in ranks]
    if len(ranks) > 1:
        nearest = ", ".join(f"{rank} {value}" for rank, value in ranks[:3])
        sentences.append(f"a photo of {called}, a species of the {nearest}.")
    group = _value(entry, "supercategory")
    if group in KINDS:
        sentences.append(f"a photo of {called}, {KINDS[group]}.")
    elif group:
        sentences.append(f"a photo of {called}, one of the {group}.")
    return sentences


def _entries(file: Path) -> list[dict[str, Any]]:
    found = read_json(file)
    found = found.get("categories") if isinstance(found, dict) else found
    if not isinstance(found, list) or not found:
        raise UserError(f"{file}: it must be a list of categories, or hold one as `categories`")
    if not all(isinstance(one, dict) and isinstance(one.get("name"), str) and one["name"].strip() for one in found):
        raise UserError(f"{file}: every category must be an object with a name; mend it")
    return found


def _matched(file: Path, entries: list[dict[str, Any]], class_names: Sequence[str]) -> dict[int, dict[str, Any]]:
    """The entry of each class that has one."""
    numbered = all(name.isdecimal() for name in class_names)
    index = NameIndex([str(int(name)) for name in class_names] if numbered else class_names)
    found: dict[int, dict[str, Any]] = {}
    lost = []
    for entry in entries:
        places = index.find(str(entry.get("id", "")) if numbered else entry["name"])
        if len(places) > 1 or (places and places[0] in found):
            raise UserError(f"{file}: {entry['name']!r} does not tell which class it means; make the names unique")
        if places:
            found[places[0]] = entry
        else:
            lost.append(entry["name"])
    if not found:
        raise UserError(f"{file}: none of its {len(entries)} categories is a class: {shown(lost)}")
    bare = [name for label, name in enumerate(class_names) if label not in found]
    if lost or bare:
        report = "%s: %d of %d categories are no class; %d classes are no category: %s"
        logger.warning(report, file, len(lost), len(entries), len(bare), shown(bare) or "none")
    return found


def _value(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    return " ".join(value.split()) if isinstance(value, str) else ""
