"""Pieces of HTML: everything that came from data is escaped, here and nowhere else."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NOTHING = "-"
# characters beyond which a fact is given the room of two
LONG = 60
# control characters that HTML forbids, and what would turn the direction of the text around it
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Html(str):
    """Text that is HTML already; every other string is escaped when it is put into a piece."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: `content`, a CSS class for emphasis, and a note below it in small type."""

    content: str
    kind: str = ""
    note: str = ""


def escaped(text: object) -> str:
    """Plain text as HTML, also within attributes; characters that HTML has no place for become U+FFFD."""
    return str(text) if isinstance(text, Html) else html.escape(_UNPRINTABLE.sub("\ufffd", str(text)), quote=True)


def name(text: str) -> Html:
    """A name out of data, whose writing direction stays its own."""
    return Html(f"<bdi>{escaped(text)}</bdi>")


def paragraph(text: str, kind: str = "") -> Html:
    """A paragraph; `kind` is "" or a CSS class ("note", "warning")."""
    return Html(f"<p{_class(kind)}>{escaped(text)}</p>")


def strong(text: str) -> Html:
    """A name out of data, set off from the sentence around it."""
    return Html(f"<strong>{name(text)}</strong>")


def bullets(items: Sequence[str], kind: str = "") -> Html:
    """A list of points."""
    return Html(f"<ul{_class(kind)}>{''.join(f'<li>{escaped(item)}</li>' for item in items)}</ul>")


def definitions(pairs: Mapping[str, str | Cell]) -> Html:
    """Terms and what they are, as a list; a value of kind "warning" stands out."""
    rows = []
    for term, value in pairs.items():
        cell = value if isinstance(value, Cell) else Cell(value)
        note = f"<small>{escaped(cell.note)}</small>" if cell.note else ""
        room = _class("long" if len(cell.content) > LONG else "")
        rows.append(
            f"<div{room}><dt>{escaped(term)}</dt><dd{_class(cell.kind)}>{escaped(cell.content)}{note}</dd></div>"
        )
    return Html(f'<dl class="facts">{"".join(rows)}</dl>')


def table(
    caption: str,
    header: Sequence[str | Cell],
    rows: Sequence[Sequence[str | Cell]],
    *,
    text_columns: int = 1,
    kind: str = "",
) -> Html:
    """A table that scrolls within its box where it is too wide, the first cell of a row being its heading.

    The first `text_columns` columns hold text, the others numbers, set to the right.
    """
    head = "".join(_cell("th", cell, column < text_columns, ' scope="col"') for column, cell in enumerate(header))
    body = "".join(
        "<tr>"
        + "".join(
            _cell("td" if column else "th", cell, column < text_columns, "" if column else ' scope="row"')
            for column, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    classes, label = f"scroll {kind}".strip(), escaped(caption)
    # the caption stays in sight while the table scrolls below it
    return Html(
        f'<div class="table"><p class="caption" aria-hidden="true">{label}</p>'
        f'<div class="{classes}" role="region" aria-label="{label}" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></div>"
    )


def figure(picture: str, caption: str, legend: str = "") -> Html:
    """A figure: an SVG or another piece of HTML, its legend above and its caption below."""
    return Html(f"<figure>{legend}{picture}<figcaption>{escaped(caption)}</figcaption></figure>")


def figures(pieces: Sequence[str]) -> Html:
    """Figures or other pieces side by side where there is room."""
    return Html(f'<div class="figures">{"".join(pieces)}</div>')


def legend(entries: Mapping[str, tuple[str, str]]) -> Html:
    """What the colours of a figure mean: by label a CSS colour and a mark ("line", "dashed", "dotted" or "dot")."""
    items = "".join(
        f'<li><svg class="swatch" viewBox="0 0 22 10" aria-hidden="true">{_MARKS[mark].format(colour=colour)}</svg>'
        f"{name(label)}</li>"
        for label, (colour, mark) in entries.items()
    )
    return Html(f'<ul class="legend">{items}</ul>')


def folded(summary: str, body: str) -> Html:
    """What is shown only when it is asked for (and on paper not at all unless it was opened)."""
    return Html(f"<details><summary>{escaped(summary)}</summary>{escaped(body)}</details>")


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as a percentage without its sign, "-" for None; a table's caption says that it holds percentages."""
    return NOTHING if fraction is None else f"{100 * fraction:.{digits}f}"


def share(fraction: float | None, digits: int = 1) -> str:
    """A fraction as a percentage in a sentence, its sign on the same line; "-" for None."""
    return NOTHING if fraction is None else f"{100 * fraction:.{digits}f}\u00a0%"


def counted(number: int, one: str, several: str) -> str:
    """A number of things, its noun on the same line."""
    return f"{number:,}\u00a0{one if number == 1 else several}"


def signed(fraction: float) -> str:
    """A difference of fractions in points, with its sign."""
    return f"{100 * fraction:+z.1f}".replace("-", "\u2212")


_LINE = '<path d="M0 5H22" stroke="{{colour}}" stroke-width="3"{dashes}/>'
_MARKS = {
    "line": _LINE.format(dashes=""),
    "dashed": _LINE.format(dashes=' stroke-dasharray="6 2"'),
    "dotted": _LINE.format(dashes=' stroke-dasharray="2.5 2.5"'),
    "dot": '<circle cx="11" cy="5" r="4.5" fill="{colour}"/>',
}


def _class(kind: str) -> str:
    return f' class="{escaped(kind)}"' if kind else ""


def _cell(tag: str, cell: str | Cell, text: bool, extra: str) -> str:
    cell = cell if isinstance(cell, Cell) else Cell(cell)
    kind = " ".join(filter(None, ["text" if text else "", cell.kind]))
    note = f"<small>{escaped(cell.note)}</small>" if cell.note else ""
    return f"<{tag}{_class(kind)}{extra}>{escaped(cell.content)}{note}</{tag}>"
