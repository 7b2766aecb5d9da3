"""One sentence of a class."""

from typing import NamedTuple


class TextRow(NamedTuple):
    """One sentence of class `label`, with where it comes from and under which licence."""

    label: int
    text: str
    source: str = ""
    license: str = ""
