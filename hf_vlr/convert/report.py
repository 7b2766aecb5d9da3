"""A conversion as text for a terminal: families of tensors, what was done to them, what was left out."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from torch import Tensor

from hf_vlr.convert.keymap import Move, numberless

if TYPE_CHECKING:
    from hf_vlr.convert.conversion import Conversion

TITLES = ("checkpoint", "model", "tensors", "parameters", "dtype", "what")
MADE = "-"
UNBOUNDED = 100_000


class Family(NamedTuple):
    """A row: tensors whose names differ in block numbers and leaves, and to which the same was done."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    tensors: int
    parameters: int
    dtype: str
    what: str


class Report:
    """Shows a conversion in the width at hand; the table comes first, because a terminal shows what comes last."""

    def __init__(self, conversion: "Conversion") -> None:
        self.conversion = conversion

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = list(families(self.conversion))
        # parameters, not rows: what most of the model is need not be said again
        common = Counter({row.dtype: 0 for row in rows})
        for row in rows:
            common[row.dtype] += row.parameters
        dtype = common.most_common(1)[0][0] if rows else ""
        wide = table(rows)
        if Measurement.get(console, options.update(max_width=UNBOUNDED), wide).maximum <= options.max_width:
            yield wide
        else:
            yield from pairs(rows, dtype, options.max_width)
        yield Text()
        yield from map(Text, lines(self.conversion, dtype, len(common) > 1))


def render(conversion: "Conversion") -> RenderableType:
    """The families of tensors of a conversion, then totals, what was dropped, and notes.

    A table where it fits the width of the console; in less, two lines a family.
    """
    return Report(conversion)


def families(conversion: "Conversion") -> Iterator[Family]:
    """The rows, in the order of the checkpoint, and after them what it has no counterpart of."""
    found: dict[tuple[str, str, str], list[Move]] = {}
    renamed = {split_block(move.source)[0] for move in conversion.moves if not keeps_block(move)}
    for move in conversion.moves:
        found.setdefault((*family(move, renamed), move.how), []).append(move)
    for (_, _, how), moves in found.items():
        names = [target for move in moves for target in move.targets]
        tensors = [conversion.tensors[name] for name in names]
        resized = [f"{before} to {after} positions" for name, before, after in conversion.interpolated if name in names]
        changes = distinct(change(move, conversion.tensors[name]) for move in moves for name in move.targets)
        what = ", ".join(filter(None, [how, *resized]))
        yield Family(tuple(move.source for move in moves), tuple(names), len(tensors), numel(tensors), changes, what)
    for name in conversion.made:
        tensor = conversion.tensors[name]
        yield Family((), (name,), 1, tensor.numel(), dtype_name(tensor), "made")


def table(rows: Sequence[Family]) -> Table:
    """A line a family; the column of dtypes is left out where all are the same."""
    shown = [title for title in TITLES if title != "dtype" or len({row.dtype for row in rows}) > 1]
    made = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in shown:
        made.add_column(title, overflow="fold", justify="right" if title in ("tensors", "parameters") else "left")
    for row in rows:
        names = together(row.sources) if row.sources else MADE, together(row.targets)
        cells = dict(zip(TITLES, (*names, str(row.tensors), f"{row.parameters:,}", row.dtype, row.what)))
        made.add_row(*[Text(cells[title]) for title in shown])
    return made


def pairs(rows: Sequence[Family], dtype: str, width: int) -> Iterator[Text]:
    """Two lines a family: the checkpoint's name and numbers, our name and what was done; `dtype` goes unsaid."""
    yield Text(beside("checkpoint", "tensors  parameters", width), style="bold")
    yield Text(beside("  -> model", "what, type", width), style="bold")
    for row in rows:
        source, target = (together(names, few=2) for names in (row.sources or (MADE,), row.targets))
        numbers = f"{row.tensors:>7}  {row.parameters:>10,}"
        what = ", ".join(filter(None, [row.what, "" if row.dtype == dtype else row.dtype]))
        if not row.sources:
            yield Text(beside(f"  -> {target} ({what})", numbers, width))
            continue
        yield Text(beside(source, numbers, width))
        if target != source or what:
            yield Text(beside("  -> " + ("the same" if target == source else target), what, width))


def lines(conversion: "Conversion", dtype: str, several: bool) -> list[str]:
    """Totals, what was dropped and why, and notes."""
    tensors = list(conversion.tensors.values())
    dropped: dict[str, list[str]] = {}
    for name, reason in conversion.dropped.items():
        dropped.setdefault(reason, []).append(name)
    left_out = [
        f"dropped ({reason}): {len(names)} tensors, {', '.join(dict.fromkeys(map(numberless, names)))}"
        for reason, names in dropped.items()
    ]
    others = " (others above)" if several else ""
    total = f"{conversion.model}: {len(tensors)} tensors, {numel(tensors):,} numbers, {dtype}{others}"
    return [total, *left_out, *conversion.notes]


def beside(left: str, right: str, width: int) -> str:
    """Both in a line, to either side; else one below the other, broken between the parts of a name."""
    gap = width - len(left) - len(right)
    if gap >= (2 if right else 0):
        return (left + " " * gap + right).rstrip()
    broken = [""]
    for part in re.findall(r"[^.|]*[.|]?", left):
        if len(broken[-1]) + len(part) > width and broken[-1].strip():
            broken.append(" " * 5)
        broken[-1] += part
    return "\n".join([*broken, *([right.rjust(width)] if right else [])])


def change(move: Move, tensor: Tensor) -> str:
    """The dtype of a tensor, with the one it had where that was another."""
    after = dtype_name(tensor)
    return after if move.dtype in ("", after) else f"{move.dtype} -> {after}"


def distinct(words: Iterable[str]) -> str:
    """The different ones, the commonest first."""
    return ", ".join(word for word, _ in Counter(words).most_common())


def family(move: Move, renamed: Collection[str]) -> tuple[str, str]:
    """What the names of a family share, on either side: all but numbers of blocks and the leaf.

    Numbered blocks whose insides all keep their names are one family; `renamed` holds what others begin with.
    """
    head = split_block(move.source)[0]
    if keeps_block(move) and head not in renamed:
        return head, split_block(move.targets[0])[0]
    return stem(move.source), "|".join(map(stem, move.targets))


def keeps_block(move: Move) -> bool:
    """Whether a tensor lies in a numbered block and keeps its number and its name in it."""
    _, number, inside = split_block(move.source)
    return not move.how and bool(number) and (number, inside) == split_block(move.targets[0])[1:]


def split_block(name: str) -> tuple[str, str, str]:
    """A name before, at and after its first number of a block."""
    found = re.match(r"(.*?\.)(\d+)\.(.*)", name)
    return (found[1], found[2], found[3]) if found else (name, "", "")


def stem(name: str) -> str:
    """The same without its leaf: weight, bias or a statistic."""
    return numberless(name).rpartition(".")[0]


def together(names: Sequence[str], few: int = 3) -> str:
    """One name for a family: `*` for numbers of blocks and for `few` leaves or more, `a|b` where names differ else.

    Of names that differ in depth or in more than a place, what they begin with.
    """
    parts = [re.split(r"([._])", one) for one in dict.fromkeys(map(stem, names))]
    if len(set(map(len, parts))) > 1 or sum(len(set(column)) > 1 for column in zip(*parts)) > 1:
        shared = common_start([numberless(name).split(".") for name in names])
        return ".".join([*shared, "*"]).replace(".*.*", ".*")
    leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    shared = "".join("|".join(dict.fromkeys(column)) for column in zip(*parts))
    ending = "|".join(leaves) if len(leaves) < few else "".join(common_start(leaves)) + "*"
    return (f"{shared}." if shared else "") + ending


def common_start(sequences: Sequence[Sequence[str]]) -> list[str]:
    """The items that all of them begin with."""
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*sequences))]


def numel(tensors: list[Tensor]) -> int:
    """Numbers in all tensors together."""
    return sum(tensor.numel() for tensor in tensors)


def dtype_name(tensor: Tensor) -> str:
    """The dtype without `torch.`."""
    return str(tensor.dtype).removeprefix("torch.")
