"""Rows of numbers as a table to read, for a terminal or in Markdown."""

import io
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_vlr.errors import UserError


def render_table(rows: Mapping[str, Mapping[str, Any] | None]) -> str:
    """A plain-text table: one row for each name, percentages with one decimal, "-" where there is no number.

    A row is a result of `evaluate_predictions`, or None for what was not run. The header gives the number
    of classes of each shot group. Raises `UserError` if the rows were measured on different groups.
    """
    header, *body = _cells(rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, title in enumerate(header):
        table.add_column(title, justify="right" if column else "left", no_wrap=True)
    for cells in body:
        table.add_row(*map(Text, cells))
    width = sum(max(map(cell_len, column)) + 3 for column in zip(header, *body)) + 3
    text = io.StringIO()
    Console(file=text, width=width, color_system=None, force_terminal=False).print(table)
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines() if line.strip())


def markdown_table(rows: Mapping[str, Mapping[str, Any] | None]) -> str:
    """The table of `render_table` in Markdown."""
    header, *body = _cells(rows)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    lines = [header, rule, *([cell.replace("|", "\\|") for cell in cells] for cells in body)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cells(rows: Mapping[str, Mapping[str, Any] | None]) -> list[list[str]]:
    """Header and rows as strings."""
    sizes = _group_sizes(rows)
    titles = [name if size is None else f"{name} ({size})" for name, size in sizes.items()]
    table = [["", "all", "balanced", *titles]]
    for name, metrics in rows.items():
        if metrics is None:
            table.append([name] + ["-"] * (2 + len(sizes)))
            continue
        values = [metrics["accuracy"], metrics["balanced_accuracy"]]
        values += [metrics["groups"][group]["accuracy"] for group in sizes]
        table.append([name, *map(_percent, values)])
    return table


def _group_sizes(rows: Mapping[str, Mapping[str, Any] | None]) -> dict[str, int | None]:
    """Classes of each group, which all rows have to agree on; None for each if nothing was run."""
    sizes: dict[str, int | None] = {}
    first = ""
    for name, metrics in rows.items():
        if metrics is None:
            continue
        own = {group: values["classes"] for group, values in metrics["groups"].items()}
        if sizes and own != sizes:
            raise UserError(f"'{first}' and '{name}' were measured on different shot groups: show them apart")
        if not sizes:
            sizes, first = own, name
    return sizes or dict.fromkeys(("many", "medium", "few"))


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"
