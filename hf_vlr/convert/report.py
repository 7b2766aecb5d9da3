"""A conversion as tables: families of tensors, what was done to them, what was left out."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from hf_vlr.convert.keymap import Move

if TYPE_CHECKING:
    from hf_vlr.convert.conversion import Conversion


def render(conversion: "Conversion") -> RenderableType:
    """The table of a conversion: a row for every family of tensors, whose names differ in block numbers and leaves."""
    families: dict[tuple[str, str, str], list[Move]] = {}
    for move in conversion.moves:
        key = stem(move.source), "|".join(map(stem, move.targets)), move.how
        families.setdefault(key, []).append(move)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("checkpoint", "model"):
        table.add_column(title, overflow="fold")
    for title in ("tensors", "parameters", "dtype", "what"):
        table.add_column(title, justify="right" if title in ("tensors", "parameters") else "left")
    for (_, _, how), moves in families.items():
        names = [target for move in moves for target in move.targets]
        tensors = [conversion.tensors[name] for name in names]
        resized = [f"{before} to {after} positions" for name, before, after in conversion.interpolated if name in names]
        source, target = together([move.source for move in moves]), together(names)
        cells = (str(len(tensors)), f"{numel(tensors):,}", dtypes(tensors), ", ".join(filter(None, [how, *resized])))
        table.add_row(Text(source), Text(target), *cells)
    for name in conversion.made:
        tensor = conversion.tensors[name]
        table.add_row("-", Text(name), "1", f"{tensor.numel():,}", dtypes([tensor]), "made")
    return Group(table, Text(), *map(Text, lines(conversion)))


def lines(conversion: "Conversion") -> list[str]:
    """Totals, what was dropped and why, and notes."""
    tensors = list(conversion.tensors.values())
    dropped: dict[str, list[str]] = {}
    for name, reason in conversion.dropped.items():
        dropped.setdefault(reason, []).append(name)
    left_out = [
        f"dropped ({reason}): {len(names)} tensors, {', '.join(dict.fromkeys(map(numberless, names)))}"
        for reason, names in dropped.items()
    ]
    total = f"{conversion.model}: {len(tensors)} tensors, {numel(tensors):,} numbers, {dtypes(tensors)}"
    return [total, *left_out, *conversion.notes]


def numberless(name: str) -> str:
    """A name with `*` for the numbers of blocks."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def stem(name: str) -> str:
    """The same without its leaf: weight, bias or a statistic."""
    return numberless(name).rpartition(".")[0]


def together(names: Sequence[str]) -> str:
    """One name for a family: `*` for numbers of blocks and for many leaves, `a|b` where names differ otherwise."""
    parts = [re.split(r"([._])", one) for one in dict.fromkeys(map(stem, names))]
    leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    shared = "".join("|".join(dict.fromkeys(column)) for column in zip(*parts))
    return (f"{shared}." if shared else "") + ("|".join(leaves) if len(leaves) < 3 else "*")


def numel(tensors: list[Tensor]) -> int:
    """Numbers in all tensors together."""
    return sum(tensor.numel() for tensor in tensors)


def dtypes(tensors: list[Tensor]) -> str:
    """The distinct dtypes, the commonest first."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        name = str(tensor.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(sorted(counts, key=lambda name: -counts[name]))
