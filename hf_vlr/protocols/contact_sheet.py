"""A contact sheet: for each class its best images, framed by right and wrong, as a PNG and as a page.

The look of a row is the same in both: name, numbers, thumbnails from left to right by falling score.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from hf_vlr.disk import whole_file
from hf_vlr.report.markup import Html, escaped, paragraph
from hf_vlr.report.shell import Section, page

RIGHT, WRONG = "#1f8a4c", "#c0392b"
FRAME, GAP, LABEL = 4, 6, 220
AGAIN = "mend that and run the protocol again"


@dataclass(frozen=True)
class Hit:
    """An image of a row: the picture, what it truly shows, its cosine, whether it is of the row's class."""

    image: Image.Image
    true: str
    score: float
    right: bool


@dataclass(frozen=True)
class SheetRow:
    """A class, what is said below its name, and its best images."""

    name: str
    lines: tuple[str, ...]
    hits: tuple[Hit, ...]


def write_sheet(rows: Sequence[SheetRow], path: Path, side: int) -> Path:
    """Write the rows as one PNG with thumbnails of `side` pixels; returns its path."""
    cell = side + 2 * FRAME
    columns = max((len(row.hits) for row in rows), default=0)
    size = (GAP + LABEL + columns * (cell + GAP), GAP + len(rows) * (cell + GAP))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for number, row in enumerate(rows):
        top = GAP + number * (cell + GAP)
        for line, (text, colour) in enumerate([(row.name, "black"), *((text, "#555555") for text in row.lines)]):
            draw.text((GAP, top + 17 * line), _fitting(text, font), font=font, fill=colour)
        for column, hit in enumerate(row.hits):
            left = GAP + LABEL + column * (cell + GAP)
            draw.rectangle((left, top, left + cell - 1, top + cell - 1), fill=RIGHT if hit.right else WRONG)
            sheet.paste(middle_square(hit.image, side), (left + FRAME, top + FRAME))
            if not hit.right:
                _cross_out(draw, left + cell, top)
    with whole_file(path, AGAIN) as partial:
        sheet.save(partial, format="PNG")
    return path


def sheet_page(rows: Sequence[SheetRow], title: str, lead: str, side: int) -> str:
    """The HTML of a page with one section for each row; wrong images say what they truly show."""
    key = (
        f'<p>{escaped(lead)} <span style="color:{RIGHT}">Green: of the class.</span> '
        f'<span style="color:{WRONG}">Red: of another one, named below it.</span></p>'
    )
    return page(title, [Section(row.name, _page_row(row, side)) for row in rows], lead=Html(key))


def middle_square(image: Image.Image, side: int) -> Image.Image:
    """The middle square of a picture, RGB, `side` pixels wide."""
    return ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS)


def _cross_out(draw: ImageDraw.ImageDraw, right: int, top: int) -> None:
    """A cross in the upper right corner, for those who do not tell the frames by their colour."""
    box, inset = 16, 5
    draw.rectangle((right - box, top, right - 1, top + box - 1), fill=WRONG)
    left, low = right - box + inset, top + box - 1 - inset
    draw.line((left, top + inset, right - 1 - inset, low), fill="white", width=2)
    draw.line((left, low, right - 1 - inset, top + inset), fill="white", width=2)


def _page_row(row: SheetRow, side: int) -> str:
    figures = []
    for hit in row.hits:
        colour = RIGHT if hit.right else WRONG
        words = f"{hit.score:.2f}" if hit.right else f"{hit.score:.2f} {hit.true}"
        figures.append(
            f'<figure style="margin:0;width:{side + 2 * FRAME}px">'
            f'<img src="{_data_uri(hit.image, side)}" width="{side}" height="{side}" alt="{escaped(hit.true)}" '
            f'style="border:{FRAME}px solid {colour};display:block">'
            f'<figcaption style="font-size:.75rem;overflow-wrap:anywhere">{escaped(words)}</figcaption></figure>'
        )
    said = paragraph(" · ".join(row.lines))
    return f'{said}<div style="display:flex;flex-wrap:wrap;gap:{GAP}px">{"".join(figures)}</div>'


def _data_uri(image: Image.Image, side: int) -> str:
    file = io.BytesIO()
    middle_square(image, side).save(file, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _fitting(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text, cut where it would run into the pictures."""
    if font.getlength(text) <= LABEL - GAP:
        return text
    while text and font.getlength(f"{text}…") > LABEL - GAP:
        text = text[:-1]
    return f"{text}…"
