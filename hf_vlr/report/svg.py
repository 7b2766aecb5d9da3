"""Matplotlib figures as inline SVG whose colours follow the page, in light, dark and on paper.

A figure is drawn in colours that stand for roles; written out, each becomes the page's CSS variable of that role.
"""

import io
import re
from typing import TYPE_CHECKING

from hf_vlr.report.markup import Html, escaped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# inches; a third of a wide page, and all of a narrow one
SIZE = (4.6, 3.2)
FONT_SIZE = 10.5
# more points than this are drawn as pixels: as shapes they would be megabytes
MAX_SHAPES = 2000
SERIES = 6
# predictors are told apart by more than colour
MARKS = ("line", "dashed", "dotted")
DASHES = {"line": "-", "dashed": (0, (5, 1.6)), "dotted": (0, (1.5, 1.3))}

_ROLES = ["ink", "muted", "line", "many", "medium", "few", *(f"series-{number + 1}" for number in range(SERIES))]
_STAND_IN = {role: f"#01{index:02x}fe" for index, role in enumerate(_ROLES)}
# pixels cannot follow the page: colours that stand out on white and on black
_PIXELS = {"many": "#4a8bd0", "medium": "#dd8b20", "few": "#d64d5f"}


def colour(role: str) -> str:
    """The colour to draw a role in: "ink", "muted", "line", "many", "medium", "few", "series-1" …"""
    return _STAND_IN[role]


def css(role: str) -> str:
    """The role's colour in the page."""
    return f"var(--{role})"


def pixel_colour(group: str) -> str:
    """The colour of a shot group within a cloud of points that is drawn as pixels."""
    return _PIXELS[group]


def series(number: int) -> tuple[str, str]:
    """Role and mark of the predictor at a position; they repeat together after 6."""
    return f"series-{number % SERIES + 1}", MARKS[number % len(MARKS)]


def plot(size: tuple[float, float] = SIZE) -> tuple["Figure", "Axes"]:
    """An empty plot in the page's style."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.subplots()
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(colour("line"))
    axes.tick_params(which="both", length=0, labelcolor=colour("muted"), labelsize=FONT_SIZE)
    axes.grid(axis="y", color=colour("line"), linewidth=0.6)
    axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=colour("muted"), fontsize=FONT_SIZE)
    return figure, axes


def svg(figure: "Figure", key: str, label: str) -> Html:
    """The figure as an `<svg>` for a page; `key` is unique within it, `label` says what the figure shows."""
    from matplotlib import rc_context

    text = io.StringIO()
    # numbers are no mathematics, and text stays text, in the page's own font
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": key, "text.parse_math": False}):
        figure.savefig(text, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
    return Html(_inline(text.getvalue(), key, label))


def _inline(text: str, key: str, label: str) -> str:
    """The drawing alone: no prologue, no style for the whole page, identifiers of its own, colours by role."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]*)"', text)[1]
    opening = f'<svg class="plot" role="img" aria-label="{escaped(label)}" viewBox="{view}">'
    text = opening + text[text.index(">") + 1 :]
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{key}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{key}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*|font-family: [^;\"]*; ", lambda found: _font(found[1]), text)
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r"(\d\.\d\d)\d+", r"\1", text)
    for role, stand_in in _STAND_IN.items():
        text = text.replace(stand_in, css(role))
    text = re.sub(r"(?<=base64,)\s+|\s*\n\s*(?=<)|(?<=>)\s*\n\s*", "", text).replace("\n", " ").strip()
    while "<g></g>" in text:
        text = text.replace("<g></g>", "")
    return text


def _font(size: str | None) -> str:
    """Of a font only the size stays: the family is the page's."""
    return "" if size is None else f"font-size: {size}px"


def whole_numbers(axis: "Axis", ticks: bool = True) -> None:
    """Write an axis' numbers out with thousands apart; with `ticks` also set them at whole numbers only."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    if ticks:
        axis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value == round(value) else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def percentages(axis: "Axis", gains: bool = False) -> None:
    """Write an axis' fractions as percentages, or `gains` as points with their sign."""
    from matplotlib.ticker import FuncFormatter

    def written(value: float, _: int | None) -> str:
        number = f"{100 * value:+.3g}" if gains and round(value, 9) else f"{abs(100 * value):.3g}"
        return number.replace("-", "\u2212") + ("" if gains else "%")

    axis.set_major_formatter(FuncFormatter(written))
