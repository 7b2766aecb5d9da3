"""Rows of numbers as a table to read, for a terminal or in Markdown."""

import io
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_vlr.errors import UserError
from hf_vlr.evaluation.spread import Spread

Row = Mapping[str, Any] | Spread | None
Rows = Mapping[str, Row]

# cells between two columns
_GAP = 3
# cells before the first one
_EDGE = 1


@dataclass(frozen=True)
class Column:
    """A column: its title, where an entry holds its number, how that is printed, and where its interval is."""

    title: str
    path: tuple[str, ...]
    text: Callable[[float], str]
    interval: tuple[str, ...] = ()


def _at(tree: Mapping[str, Any] | None, path: tuple[str, ...]) -> Any:
    """What a tree holds in a place, None where it holds nothing."""
    for key in path:
        tree = None if tree is None else tree.get(key)
    return tree


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _plain(number: float) -> str:
    return f"{number:.3f}"


TITLES = {"accuracy": "all", "balanced_accuracy": "balanced"}
WIDE = (
    Column("top-5", ("top5",), _percent),
    Column("macro-F1", ("macro_f1",), _percent),
    Column("h-mean", ("harmonic_mean",), _percent),
    Column("g-mean", ("geometric_mean",), _percent),
    Column("worst", ("worst_class",), _percent),
    Column("worst 10 %", ("worst_tenth",), _percent),
    Column("tail→head", ("tail_to_head",), _percent),
    Column("NLL", ("nll",), _plain),
    Column("Brier", ("brier",), _plain),
    Column("ECE", ("ece",), _percent),
    Column("MCE", ("mce",), _percent),
)


def render_table(rows: Rows, *, wide: bool = False, intervals: bool = False, width: int = 80) -> str:
    """A plain-text table: one row for each name, percentages with one decimal, "-" where there is no number.

    A row is a result of `evaluate_predictions`, a `Spread` (shown as mean ± deviation), or None for what was not
    run. The header gives the number of classes of each shot group. `wide` adds further columns (NLL in nats, Brier
    0 to 2, the others in percent); `intervals` puts the row's bootstrap interval behind a number that has one. A
    table wider than `width` cells is folded: further columns follow below, under the names again. A row of the mixed
    convention is starred and explained below. Raises `UserError` if the rows were measured on different groups.
    """
    header, *body = _cells(rows, wide, intervals)
    blocks = [_block([header, *body], columns) for columns in _folds([header, *body], width)]
    return "\n".join(blocks) + "".join(f"{textwrap.fill(f'* {note}', max(width, 40))}\n" for note in _notes(rows))


def markdown_table(rows: Rows, *, wide: bool = False, intervals: bool = False) -> str:
    """The table of `render_table` in Markdown, in one piece."""
    header, *body = _cells(rows, wide, intervals)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    lines = [header, rule, *([cell.replace("|", "\\|") for cell in cells] for cells in body)]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return table + "".join(f"\n\\* {note}\n" for note in _notes(rows))


def _cells(rows: Rows, wide: bool, intervals: bool) -> list[list[str]]:
    """Header and rows as strings."""
    columns = _columns(rows, wide)
    table = [["", *(column.title for column in columns)]]
    for name, row in rows.items():
        starred = f"{name} *" if _numbers(row).get("mixed") else name
        table.append([starred, *(_cell(row, column, intervals) for column in columns)])
    return table


def _columns(rows: Rows, wide: bool) -> list[Column]:
    sizes = _group_sizes(rows)
    groups = [
        _with_interval(name if size is None else f"{name} ({size:g})", ("groups", name, "accuracy"), ("groups", name))
        for name, size in sizes.items()
    ]
    plain = [_with_interval(title, (key,), (key,)) for key, title in TITLES.items()]
    return [*plain, *groups, *(WIDE if wide else ())]


def _with_interval(title: str, path: tuple[str, ...], interval: tuple[str, ...]) -> Column:
    return Column(title, path, _percent, ("intervals", *interval))


def _cell(row: Row, column: Column, intervals: bool) -> str:
    value = _at(_numbers(row), column.path)
    if value is None:
        return "-"
    text = column.text(value)
    if isinstance(row, Spread):
        deviation = _at(row.std, column.path)
        return text if deviation is None else f"{text} ± {column.text(deviation)}"
    bounds = _at(row, column.interval) if intervals and column.interval else None
    return text if bounds is None else f"{text} [{', '.join(map(column.text, bounds))}]"


def _numbers(row: Row) -> Mapping[str, Any]:
    return row.mean if isinstance(row, Spread) else row or {}


def _notes(rows: Rows) -> list[str]:
    """The explanations of starred rows, each once."""
    notes = [_numbers(row).get("note") for row in rows.values() if _numbers(row).get("mixed")]
    return [note for note in dict.fromkeys(notes) if note]


def _group_sizes(rows: Rows) -> dict[str, float | None]:
    """Classes of each group, which all rows have to agree on; None for each if nothing was run."""
    sizes: dict[str, float | None] = {}
    first = ""
    for name, row in rows.items():
        if row is None:
            continue
        own = {group: values["classes"] for group, values in _numbers(row)["groups"].items()}
        if sizes and own != sizes:
            raise UserError(f"'{first}' and '{name}' were measured on different shot groups: show them apart")
        if not sizes:
            sizes, first = own, name
    return sizes or dict.fromkeys(("many", "medium", "few"))


def _folds(table: list[list[str]], width: int) -> list[list[int]]:
    """The columns of each block, names not counted; one block if the names alone take half the width."""
    names, *widths = (max(map(cell_len, column)) for column in zip(*table))
    if 2 * names > width:
        return [[*range(1, len(widths) + 1)]]
    blocks: list[list[int]] = [[]]
    used = names + _EDGE
    for column, own in enumerate(widths, start=1):
        if blocks[-1] and used + _GAP + own > width:
            blocks.append([])
            used = names + _EDGE
        blocks[-1].append(column)
        used += _GAP + own
    return blocks


def _block(table: list[list[str]], columns: list[int]) -> str:
    header, *body = ([cells[column] for column in (0, *columns)] for cells in table)
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, title in enumerate(header):
        drawn.add_column(title, justify="right" if column else "left", no_wrap=True)
    for cells in body:
        drawn.add_row(*map(Text, cells))
    width = sum(max(map(cell_len, column)) + _GAP for column in zip(header, *body)) + _GAP
    text = io.StringIO()
    Console(file=text, width=width, color_system=None, force_terminal=False).print(drawn)
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines() if line.strip())
