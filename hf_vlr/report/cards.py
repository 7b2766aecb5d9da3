"""Test images as cards: the picture, what was said of it, and the sentences that were attended to."""

import base64
import io
from collections.abc import Sequence

from PIL import Image

from hf_vlr.report.examples import Example
from hf_vlr.report.markup import Html, escaped, name, paragraph, share

# pixels of the longer side: twice what a card shows, for dense screens
PIXELS = 320
QUALITY = 80


def examples_body(examples: Sequence[Example]) -> Html:
    """The failures, then the successes, each in the order given."""
    parts = []
    for title, chosen in (
        ("Failures", [one for one in examples if one.true != one.predicted]),
        ("Successes", [one for one in examples if one.true == one.predicted]),
    ):
        cards = "".join(f'<li class="card">{_card(one)}</li>' for one in chosen)
        shown = f'<ul class="cards">{cards}</ul>' if chosen else paragraph("None among the examples.", "note")
        parts.append(f"<h3>{title}</h3>{shown}")
    return Html("".join(parts))


def _card(example: Example) -> str:
    right = example.true == example.predicted
    alternative = escaped(f"A test image of {example.true}, a {example.shot}-shot class")
    verdict = "right" if right else "wrong"
    facts = [
        f'<p><span class="verdict {verdict}">{"✓" if right else "✗"} {verdict}:</span> {name(example.predicted)}, '
        f"{share(example.confidence, 0)} sure</p>{_bar(example.confidence)}"
    ]
    if right:
        facts.append(f'<p class="note">{escaped(example.shot)}-shot class</p>')
    else:
        facts.append(
            f"<p>It shows {name(example.true)} ({escaped(example.shot)}-shot), which got "
            f"{share(example.true_probability, 0)}.</p>"
        )
    return f'<img src="{_data(example.image)}" alt="{alternative}">' + "".join(facts) + _sentences(example)


def _sentences(example: Example) -> str:
    if not example.sentences:
        return ""
    items = "".join(
        f'<li>{name(text)} <span class="note">{share(weight, 0)}</span>{_bar(weight)}</li>'
        for weight, text in example.sentences
    )
    return f'<div><p class="note">Attended sentences</p><ul class="sentences">{items}</ul></div>'


def _bar(part: float) -> str:
    """A bar beside a number that says the same."""
    return f'<span class="bar" aria-hidden="true"><span style="width: {100 * min(max(part, 0), 1):.1f}%"></span></span>'


def _data(image: Image.Image) -> str:
    """The picture as a data URI, on white where it was transparent."""
    picture = image.convert("RGBA")
    picture.thumbnail((PIXELS, PIXELS))
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    stream = io.BytesIO()
    white.convert("RGB").save(stream, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
