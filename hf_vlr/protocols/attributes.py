"""What concepts have in common, where it is known: so that a nearest concept can be called right or wrong."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hf_vlr.data.shapes_text import from_name
from hf_vlr.data.texts.names import name_key
from hf_vlr.errors import UserError

Attributes = list[frozenset[str] | None]


def known_attributes(file: str | None, names: Sequence[str], source: str) -> Attributes | None:
    """The attributes of each name: from a JSON file `{name: [attribute, ...]}`, or from the names of `shapes-lt`.

    None where nothing is known; a name that the file lacks has None. Raises `UserError` for another kind of file, and
    where it has none of the names.
    """
    if file is not None:
        known = _read(Path(file).expanduser())
        found = [known.get(name_key(name)) for name in names]
        if not any(found):
            raise UserError(f"attributes={file}: none of its names is a concept here, such as {names[0]!r}")
        return found
    if source == "shapes-lt":
        return [_of_shape(name) for name in names]
    return None


def shared_attributes(first: Attributes, second: Attributes) -> np.ndarray:
    """|A_q ∩ B_g| / |A_q|, float64 `[Q, G]`: the share of a query's attributes that a concept has too.

    Attributes that all concepts on both sides have tell nothing and are left out. NaN where either side has none.
    """
    everyone = [own for own in [*first, *second] if own is not None]
    common = frozenset.intersection(*everyone) if everyone else frozenset()
    shares = np.full((len(first), len(second)), np.nan)
    for row, own in enumerate(first):
        own = own - common if own is not None else None
        if own:
            for column, other in enumerate(second):
                if other is not None:
                    shares[row, column] = len(own & other) / len(own)
    return shares


def _of_shape(name: str) -> frozenset[str] | None:
    try:
        return frozenset(from_name(name))
    except UserError:
        return None


def _read(path: Path) -> dict[str, frozenset[str]]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"attributes={path} cannot be read as JSON: {error}") from error
    fits = isinstance(stored, dict) and all(
        isinstance(own, list) and all(isinstance(one, str) for one in own) for own in stored.values()
    )
    if not fits:
        raise UserError(f"attributes={path} must hold {{name: [attribute, ...]}}, all of them texts")
    return {name_key(name): frozenset(own) for name, own in stored.items()}
