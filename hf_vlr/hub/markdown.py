"""Markdown that no name of a class or a file can break."""

from collections.abc import Iterable, Sequence


def cell(text: object) -> str:
    """A text that stays within its cell of a table and makes no markup."""
    flat = " ".join(str(text).split())
    for mark in "\\|`*_<[":
        flat = flat.replace(mark, f"\\{mark}")
    return flat


def code(text: object) -> str:
    """A text set as code, in a table too."""
    flat = " ".join(str(text).split()).replace("`", "'").replace("|", "\\|")
    return f"`{flat}`" if flat else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> str:
    """A table of cells that are Markdown already; the last `right` columns are numbers."""
    rules = ["---"] * (len(header) - right) + ["---:"] * right
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rules, *rows)).rstrip()


def facts_table(rows: Iterable[tuple[str, str]]) -> str:
    """Two columns without a heading."""
    return table(["", ""], rows)


def quote(first: str, lines: Iterable[str]) -> str:
    """A block quote: a line, then a list."""
    return "\n".join([f"> {first}", ">", *(f"> - {line}" for line in lines)]) + "\n"


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def blocks(*parts: str) -> str:
    """Paragraphs, those that say something."""
    return "\n\n".join(part for part in parts if part)


def plural(count: int, one: str, many: str | None = None) -> str:
    """A number and its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
