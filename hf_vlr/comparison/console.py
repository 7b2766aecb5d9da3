"""A comparison for the terminal."""

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hf_vlr.comparison.comparison import Comparison
from hf_vlr.comparison.conditions import RESULTS, Condition
from hf_vlr.comparison.summary import (
    cross_check,
    interval_text,
    open_question,
    outcome,
    p_text,
    reading,
    seeds,
    subject,
    warning,
)
from hf_vlr.evaluation.spread import spread
from hf_vlr.evaluation.table import render_table
from hf_vlr.evaluation.verdict import BETTER, NOTHING_SHOWN, WORSE

# a mark as well as a colour: not every terminal has colours, nor every reader
FLAG = "!"
INDENT = 2
_STYLES = {BETTER: "bold green", WORSE: "bold red", NOTHING_SHOWN: ""}


def show(found: Comparison) -> str:
    """All rows, the differences from one, and the conditions that differ; as wide as the terminal (80 without one)."""
    console = Console(highlight=False)
    entries = {_counted(found, name): spread(own) for name, own in found.entries.items()}
    parts: list[RenderableType] = [
        Text(f"{subject(found)}."),
        Text(),
        Text(render_table(entries, wide=True, width=console.width), no_wrap=True),
    ]
    for name in found.others:
        parts += [_differences(found, name), Text(), Text(outcome(found, name), style="bold"), Text()]
        further = [open_question(found, name), cross_check(found, name)]
        parts += [piece for text in further if text for piece in (Text(text), Text())]
    parts += [Text(reading(found)), Text(), Text(seeds(found)), Text(), *_conditions(found, console.width)]
    with console.capture() as printed:
        console.print(Group(*parts))
    return "\n".join(line.rstrip() for line in printed.get().rstrip().splitlines())


def _counted(found: Comparison, name: str) -> str:
    runs = len(found.rows[name].runs)
    return name if runs == 1 else f"{name} ({runs} runs)"


def _differences(found: Comparison, name: str) -> Table:
    """The numbers of one row minus the baseline's."""
    drawn = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", title_justify="left")
    drawn.title = Text(f"{name} minus {found.against}", style="bold")
    drawn.add_column("", no_wrap=True)
    for column in ("change", "95 % interval", *(["p, seeds"] if found.several_seeds else []), "p, Holm"):
        drawn.add_column(column, justify="right", no_wrap=True)
    drawn.add_column("verdict", no_wrap=True)
    for one in found.measures:
        own = found.differences[name][one.key]
        cells = [one.title, one.change(own.estimate), interval_text(one, own.interval)]
        cells += [p_text(own.p_seeds)] if found.several_seeds else []
        said = own.verdict or ("not tested" if own.estimate is not None else "-")
        drawn.add_row(*map(Text, [*cells, p_text(own.p)]), Text(said, style=_STYLES.get(said, "dim")))
    return drawn


def _conditions(found: Comparison, width: int) -> list[RenderableType]:
    """What differs, flagged where it may explain the numbers; results of training are left to the page."""
    told = warning(found)
    if not told:
        lines: list[RenderableType] = [Text("The conditions that the runs state are the same.")]
    else:
        lines = [Text(f"{FLAG} {told}", style="bold red")]
    for one in found.conditions:
        if one.differs and one.field not in RESULTS:
            lines += [Padding(line, (0, 0, 0, indent)) for indent, line in _condition(one, width)]
    return lines


def _condition(one: Condition, width: int) -> list[tuple[int, Text]]:
    """A line where all fits, else one for each row, each with its indent."""
    title = f"recipe, {one.title}" if one.recipe else one.title
    head = Text(f"{FLAG if one.flagged else ' '} {title}: ", style="red" if one.flagged else "")
    stated = [f"{', '.join(names)}: {statement}" for statement, names in one.grouped().items()]
    together = Text("; ".join(stated))
    if INDENT + head.cell_len + together.cell_len <= width:
        return [(INDENT, head + together)]
    return [(INDENT, head), *((3 * INDENT, Text(line, overflow="fold")) for line in stated)]
