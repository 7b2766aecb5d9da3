"""A comparison as one HTML file that asks for nothing else."""

from hf_vlr.comparison.by_class import scatter_figure, tail_figure
from hf_vlr.comparison.comparison import Comparison
from hf_vlr.comparison.forest import forest_figure
from hf_vlr.comparison.summary import cross_check, open_question, outcome, reading, seeds, subject, warning
from hf_vlr.comparison.tables import (
    FLAG,
    agreement_table,
    changes_table,
    conditions_body,
    differences_table,
    values_table,
    wins_table,
)
from hf_vlr.report.markup import Html, bullets, escaped, figures, paragraph
from hf_vlr.report.shell import Section, page


def comparison_html(found: Comparison) -> str:
    """The whole page: what may be said, the conditions, differences, classes, agreement.

    It holds its pictures and styles, runs no script and makes no request. Raises `UserError` where matplotlib is not
    installed.
    """
    bodies = {
        "Results": _results(found),
        "Protocol": conditions_body(found),
        "Differences": _differences(found),
        "Class by class": _classes(found),
        "Agreement": agreement_table(found),
    }
    title = " against ".join([_listed(found.others), found.against])
    lead = paragraph(f"{subject(found)}.", "note")
    return page(title, [Section(heading, body) for heading, body in bodies.items()], lead=lead)


def _results(found: Comparison) -> Html:
    told = warning(found)
    return Html(
        bullets([outcome(found, name) for name in found.others], "points")
        + (paragraph(f"{FLAG} {told}", "warning") if told else "")
        + values_table(found)
        + paragraph(reading(found), "note")
        + paragraph(seeds(found), "note")
    )


def _differences(found: Comparison) -> Html:
    parts = []
    for number, name in enumerate(found.others):
        notes = [paragraph(text, "note") for text in (open_question(found, name), cross_check(found, name)) if text]
        parts.append(_heading(found, name) + differences_table(found, name) + "".join(notes))
        parts.append(forest_figure(found, name, f"forest-{number}"))
    return Html("".join(parts))


def _classes(found: Comparison) -> Html:
    parts = []
    for number, name in enumerate(found.others):
        drawn = [tail_figure(found, name, f"tail-{number}"), scatter_figure(found, name, f"scatter-{number}")]
        tables = wins_table(found, name) + changes_table(found, name)
        parts.append(_heading(found, name) + figures(drawn) + tables)
    return Html("".join(parts))


def _heading(found: Comparison, name: str) -> str:
    """Which row the following is about; nothing where there is only one."""
    return f"<h3>{escaped(f'{name} against {found.against}')}</h3>" if len(found.others) > 1 else ""


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
