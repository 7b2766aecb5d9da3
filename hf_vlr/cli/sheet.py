"""A sheet of text for the terminal: headings, columns that wrap, items with their meaning."""

from collections.abc import Sequence

import click
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

INDENT = 2


class Sheet:
    """Collects lines and prints them at once, as wide as the terminal is (80 columns where there is none)."""

    def __init__(self) -> None:
        self._parts: list[RenderableType] = []

    def heading(self, title: str) -> None:
        """A title, with an empty line before it unless it is the first."""
        if self._parts:
            self._parts.append(Text())
        self._parts.append(Text(title, style="bold"))

    def text(self, line: str, indent: int = 0) -> None:
        """A paragraph."""
        self._parts.append(Padding(Text(line), (0, 0, 0, indent)))

    def item(self, name: str, meaning: str, note: str = "") -> None:
        """What something is, with a note behind it, and below it, further in, what it means."""
        line = Text(name, style="cyan").append(f"  {note}" if note else "", style="dim")
        self._parts.append(Padding(line, (0, 0, 0, INDENT)))
        self._parts.append(Padding(Text(meaning, style="dim"), (0, 0, 0, 3 * INDENT)))

    def rows(
        self,
        rows: Sequence[Sequence[str]],
        *,
        widths: Sequence[int] = (),
        numbers: Sequence[int] = (),
        header: Sequence[str] = (),
    ) -> None:
        """Columns; the last one wraps. `widths` of the first ones; `numbers`: which ones are right-aligned."""
        if not rows:
            return
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=bool(header), header_style="dim")
        last = len(rows[0]) - 1
        for column in range(last + 1):
            width = widths[column] if column < len(widths) else None
            justify = "right" if column in numbers else "left"
            title = header[column] if header else ""
            table.add_column(title, no_wrap=column < last, min_width=width, justify=justify, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        self._parts.append(Padding(table, (0, 0, 0, INDENT)))

    def show(self) -> None:
        """Print the sheet, without the blanks that fill its lines up."""
        console = Console(highlight=False)
        with console.capture() as printed:
            console.print(Group(*self._parts))
        click.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))
