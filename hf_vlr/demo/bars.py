"""Ranked classes and attended sentences as HTML: bars that say their numbers, rows that are buttons.

Whatever came from a model or a user is escaped by `hf_vlr.report.markup`.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from hf_vlr.data.shots import SHOT_NAMES, shot_rule
from hf_vlr.demo.language import rank_of
from hf_vlr.demo.recognition import Row
from hf_vlr.report.markup import Html, counted, escaped, name, paragraph, share, strong

# what a click in the browser carries to Python
ON_LOAD = """
element.addEventListener('click', event => {
  const row = event.target.closest('button[data-label]');
  if (!row) return;
  element.querySelectorAll('button[data-label]').forEach(one => one.setAttribute('aria-pressed', String(one === row)));
  trigger('select', {label: Number(row.dataset.label)});
});
"""


def nothing_yet(text: str) -> Html:
    """What stands where a result will."""
    return Html(f'<div class="vlr vlr-empty">{escaped(text)}</div>')


def bars(
    rows: Sequence[Row], caption: str, rule: str = "oltr", *, chosen: int | None = None, buttons: bool = False
) -> Html:
    """Rows as bars by their score, both branches beneath; with `buttons` a row can be pressed, and `chosen` is.

    rule: what the rows' groups are by.
    """
    items = "".join(f"<li>{_row(row, row.index == chosen, buttons)}</li>" for row in rows)
    listed = f'<ol class="vlr-bars" aria-label="{escaped(caption)}">{items}</ol>'
    return Html(f'<div class="vlr">{_legend(rows, rule)}{listed}</div>')


def sentence_list(class_name: str, found: Sequence[tuple[float, str]], row: Row | None = None) -> Html:
    """The sentences of a class that an image attends to, with their weights."""
    heading = f'<h3 class="vlr-heading">Sentences of {name(class_name)}</h3>'
    if not found:
        return Html(f'<div class="vlr">{heading}{paragraph("No sentence of this class is kept.", "vlr-note")}</div>')
    tone = row.group if row is not None and row.group else "plain"
    items = "".join(
        f"<li><span>{name(text or '(a sentence that the checkpoint does not keep)')}</span>"
        f'<span class="vlr-score">{share(weight)}</span>{_track(weight)}</li>'
        for weight, text in found
    )
    note = paragraph("How much of its attention the image gives to each; together 100 %.", "vlr-note")
    return Html(f'<div class="vlr vlr-{escaped(tone)}">{heading}{note}<ol class="vlr-sentences">{items}</ol></div>')


def taught_verdict(taught: Iterable[tuple[int, str]], probabilities: npt.NDArray[np.float64]) -> Html:
    """Where the taught classes, (index, name), come among all."""
    parts = [
        f"{strong(class_name)} comes {ordinal(rank_of(probabilities, index))} of {len(probabilities):,} "
        f"with {share(float(probabilities[index]))}"
        for index, class_name in taught
    ]
    return Html(f'<p class="vlr vlr-verdict">{"; ".join(parts)}.</p>') if parts else Html("")


def group_words(rule: str) -> dict[str, str]:
    """What many, medium and few mean under a rule."""
    limits = shot_rule(rule)
    return {
        "many": f"more than {limits.many_above} training images",
        "medium": f"{limits.few_below} to {limits.many_above}",
        "few": f"fewer than {limits.few_below}",
    }


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th …"""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"


def _legend(rows: Sequence[Row], rule: str) -> str:
    groups = {row.group for row in rows}
    present = [*(SHOT_NAMES if groups & {*SHOT_NAMES} else ()), *({"taught"} & groups)]
    words = {group: f"{group}: {meaning}" for group, meaning in group_words(rule).items()} | {"taught": "taught here"}
    items = "".join(
        f'<li class="vlr-{group}"><span class="vlr-swatch" aria-hidden="true"></span>{escaped(words[group])}</li>'
        for group in present
    )
    return f'<ul class="vlr-legend" aria-label="What the colours mean">{items}</ul>' if items else ""


def _row(row: Row, chosen: bool, button: bool) -> str:
    small = [f"<span>{escaped(text)}</span>" for text in _facts(row)]
    if row.visual is not None and row.language is not None:
        small += [_branch("visual", row.visual), _branch("language", row.language)]
    inside = (
        f'<span class="vlr-name">{name(row.name)}</span><span class="vlr-score">{share(row.score)}</span>'
        f"{_track(row.score)}" + (f'<span class="vlr-small">{"".join(small)}</span>' if small else "")
    )
    kind = f"vlr-row vlr-{escaped(row.group or 'plain')}"
    if not button:
        return f'<div class="{kind}">{inside}</div>'
    pressed = "true" if chosen else "false"
    return f'<button type="button" class="{kind}" data-label="{row.index}" aria-pressed="{pressed}">{inside}</button>'


def _facts(row: Row) -> list[str]:
    if row.group == "taught":
        return ["taught, no training images"]
    if row.train_images is None:
        return []
    return [f"{row.group}, {counted(row.train_images, 'training image', 'training images')}"]


def _branch(label: str, value: float) -> str:
    return f'<span class="vlr-branch">{label}{_track(value)}<span>{share(value)}</span></span>'


def _track(value: float) -> str:
    width = min(max(100 * value, 0.0), 100.0)
    return f'<span class="vlr-track" aria-hidden="true"><span style="width:{width:.2f}%"></span></span>'
