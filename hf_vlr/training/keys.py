"""The keys of a recipe: fields of dataclasses with a default, a range and a help.

What a key is stands once, in its field; the command line, the list of keys and all error messages are made from it.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from hf_vlr.errors import UserError


def about(
    help: str,
    *,
    choices: Sequence[str] = (),
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
) -> dict[str, Any]:
    """Metadata of a field: `choices` of words; of numbers `low` and `high` (included), `above` (excluded)."""
    return {"help": help, "choices": tuple(choices), "low": low, "high": high, "above": above}


def option(default: Any, help: str, **limits: Any) -> Any:
    """A field with an immutable default; `limits` as in `about`."""
    return field(default=default, metadata=about(help, **limits))


def describe(section: type) -> list[tuple[str, str, str, str]]:
    """(dotted key, type, default, help) of every key of a section, in the order of the dataclasses."""
    rows = []
    for key, leaf in leaves(section):
        choices = "|".join(leaf.metadata["choices"])
        kind = spell_type(leaf.type) + (f": {choices}" if choices else "")
        rows.append((key, kind, _spell_default(leaf), leaf.metadata["help"]))
    return rows


def leaves(section: type, prefix: str = "") -> Iterator[tuple[str, Field]]:
    """(dotted key, field) of every key below a section's dataclass, in the order they are written."""
    for leaf in fields(section):
        if is_dataclass(leaf.type):
            yield from leaves(leaf.type, f"{prefix}{leaf.name}.")
        else:
            yield prefix + leaf.name, leaf


def value_at(section: Any, key: str) -> Any:
    """What stands at a dotted key of a section's object."""
    value = section
    for name in key.split("."):
        value = getattr(value, name)
    return value


def check_value(key: str, leaf: Field, value: Any) -> None:
    """Raise `UserError` for a value that is not among the choices or outside the range of its field."""
    if value is None:
        return
    limits = leaf.metadata
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    for member in members:
        if limits["choices"] and member not in limits["choices"]:
            near = difflib.get_close_matches(str(member), limits["choices"], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{key}={member} is not one of {', '.join(limits['choices'])}{hint}")
        bounded = isinstance(member, int | float) and not isinstance(member, bool)
        inside = bounded and limits["low"] <= member <= limits["high"] and member > limits["above"]
        if bounded and not (inside and math.isfinite(member)):
            raise UserError(f"{key}={member} is out of range: it must be {_spell_range(limits)}")
    if leaf.type is str and not value.strip():
        raise UserError(f"{key} is empty; {leaf.metadata['help']}")


def _spell_range(limits: Mapping[str, Any]) -> str:
    parts = []
    if math.isfinite(limits["above"]):
        parts.append(f"above {limits['above']:g}")
    if math.isfinite(limits["low"]):
        parts.append(f"at least {limits['low']:g}")
    if math.isfinite(limits["high"]):
        parts.append(f"at most {limits['high']:g}")
    return " and ".join(parts) or "a finite number"


def split_optional(kind: Any) -> tuple[bool, Any]:
    """Whether an annotation allows None, and what it is otherwise."""
    if get_origin(kind) in {Union, UnionType}:
        return True, next(part for part in get_args(kind) if part is not type(None))
    return False, kind


def spell_type(kind: Any) -> str:
    """An annotation in a user's words, e.g. `int | None` as "a whole number or null"."""
    optional, kind = split_optional(kind)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if get_origin(kind) is list:
        spelled = "a list of numbers" if get_args(kind)[0] is float else "a list of texts"
    elif get_origin(kind) is dict:
        spelled = "names with numbers" if get_args(kind)[1] is float else "names with values"
    else:
        spelled = names[kind]
    return f"{spelled} or null" if optional else spelled


def _spell_default(leaf: Field) -> str:
    if leaf.default_factory is not MISSING:
        default = leaf.default_factory()
    elif leaf.default is MISSING:
        return "required"
    else:
        default = leaf.default
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list):
        return f"[{', '.join(map(str, default))}]"
    return str(default)
