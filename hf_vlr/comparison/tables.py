"""The tables of a comparison's page."""

from collections.abc import Sequence

import numpy as np

from hf_vlr.comparison.comparison import Comparison
from hf_vlr.comparison.conditions import Condition
from hf_vlr.comparison.summary import interval_text, p_text, spread_text
from hf_vlr.data.shots import shot_names
from hf_vlr.evaluation.verdict import BETTER, NOTHING_SHOWN, WORSE
from hf_vlr.report.markup import (
    NOTHING,
    Cell,
    Html,
    definitions,
    escaped,
    folded,
    name,
    paragraph,
    percent,
    signed,
    table,
)

SHADES = 5
# classes that gain, and as many that lose
MOST = 8
# marks beside the colours: what is red must not be told by red alone
FLAG = "⚠"
_MARKS = {BETTER: ("▲", "right"), WORSE: ("▼", "wrong"), NOTHING_SHOWN: ("", "none")}


def values_table(found: Comparison) -> Html:
    """All rows by all measures, with their deviation over seeds."""
    rows = []
    for one in found.rows:
        runs = len(found.rows[one].runs)
        texts = [spread_text(measure, found.values(one, measure)) for measure in found.measures]
        cells = [Cell(text, note=deviation) for text, deviation in texts]
        rows.append([Cell(name(one), note=f"{runs}\u00a0runs" if runs > 1 else ""), *cells])
    header = ["", *(measure.title for measure in found.measures)]
    seeds = ", with the standard deviation over runs" if found.several_seeds else ""
    return table(f"All rows, in percent (NLL in nats){seeds}; behind a group its number of classes.", header, rows)


def differences_table(found: Comparison, one: str) -> Html:
    """One row's differences from the baseline, with what may be said of them."""
    rows = []
    for measure in found.measures:
        own = found.differences[one][measure.key]
        mark, kind = _MARKS.get(own.verdict, ("", ""))
        said = own.verdict or ("not tested" if own.estimate is not None else NOTHING)
        tests = [p_text(own.p_images), *([p_text(own.p_seeds)] if found.several_seeds else []), p_text(own.p)]
        shown = [measure.change(own.estimate), _unbroken(interval_text(measure, own.interval)), *tests]
        emphasis = f"verdict {kind}" if mark else "note"
        rows.append([_unbroken(measure.title), Cell(_unbroken(f"{mark} {said}".strip()), f"text {emphasis}"), *shown])
    seeds = ["p over seeds"] if found.several_seeds else []
    header = ["", Cell("verdict", "text"), "difference", "95 % interval", "p over images", *seeds, "p after Holm"]
    caption = f"{one} minus {found.against}, in percentage points (NLL in nats)."
    return table(caption, header, rows)


def wins_table(found: Comparison, one: str) -> Html:
    """In how many classes of each group the row is better than the baseline, and worse."""
    counted = found.wins(one)
    total = tuple(map(sum, zip(*counted.values())))
    rows = [
        [group, *(f"{count:,}" for count in counts)] for group, counts in [*counted.items(), ("all classes", total)]
    ]
    header = ["", f"better in {one}", "equal", f"better in {found.against}"]
    return table("In how many classes each has the higher accuracy; whether by chance is not tested.", header, rows)


def changes_table(found: Comparison, one: str) -> Html:
    """The classes that gain and lose most, as far as any do."""
    images = found.images
    ours, theirs = found.class_accuracy[one], found.class_accuracy[found.against]
    change = np.nan_to_num(ours - theirs)
    # of equal changes that over more test images says more
    order = np.lexsort((-images.per_class, -change))
    most = [label for label in order[:MOST] if change[label] > 0]
    least = [label for label in np.lexsort((-images.per_class, change))[:MOST] if change[label] < 0]
    shots = shot_names(images.train_counts, images.rule)
    rows = [
        [
            Cell(name(images.class_names[label]), note=shots[label]),
            f"{images.train_counts[label]:,}",
            f"{images.per_class[label]:,}",
            percent(theirs[label]),
            percent(ours[label]),
            signed(change[label]),
        ]
        for label in [*most, *reversed(least)]
    ]
    if not rows:
        return paragraph("No class differs in its accuracy.", "note")
    header = ["class", "training images", "test images", name(found.against), name(one), "difference"]
    caption = f"The classes that {one} gains and loses most in, accuracy in percent; single classes are not tested."
    return folded(f"Classes that change most ({len(rows)})", table(caption, header, rows))


def agreement_table(found: Comparison) -> Html:
    """How often each two rows predict the same class."""
    rows = []
    for one in found.rows:
        cells = [
            Cell(NOTHING) if (share := found.agreement(one, other)) is None else _shaded(share) for other in found.rows
        ]
        rows.append([Cell(name(one)), *cells])
    caption = "Of 100 images, to how many two rows give the same class, right or wrong."
    own = " A row with itself: two of its seeds." if found.several_seeds else ""
    return table(caption + own, ["", *map(name, found.rows)], rows, kind="heat")


def conditions_body(found: Comparison) -> Html:
    """What differs, flagged where it may explain the numbers, then, folded, the recipes and what does not differ."""
    differing = [one for one in found.conditions if one.differs and not one.recipe]
    parts = [
        definitions(_stated(differing)) if differing else paragraph("The rows state the same conditions."),
        paragraph(f"{FLAG} marks what may explain a difference in numbers.", "note") if found.flagged else "",
    ]
    recipes = [one for one in found.conditions if one.recipe]
    same = [one for one in found.conditions if not one.differs]
    for title, shown in (("Settings of the recipes that differ", recipes), ("What is the same", same)):
        if shown:
            parts.append(folded(f"{title} ({len(shown)})", definitions(_stated(shown))))
    return Html("".join(parts))


def _stated(shown: Sequence[Condition]) -> dict[str, str | Cell]:
    """By title what the rows state, a line for each statement; without names where all state the same."""
    pairs: dict[str, str | Cell] = {}
    for one in shown:
        lines = [
            f"{', '.join(map(name, names))}: {escaped(statement)}" if one.differs else escaped(statement)
            for statement, names in one.grouped().items()
        ]
        title = f"{FLAG} {one.title}" if one.flagged else one.title
        pairs[title] = Cell(Html("<br>".join(lines)), "warning" if one.flagged else "")
    return pairs


def _shaded(share: float) -> Cell:
    return Cell(f"{percent(share)} %", f"shade-{min(SHADES, 1 + int(share * SHADES))}")


def _unbroken(text: str) -> str:
    """In one line, however narrow the screen: the table scrolls."""
    return text.replace(" ", "\u00a0")
