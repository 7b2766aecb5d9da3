"""The frame of a page: one HTML file that asks for nothing else, in light and dark, for screens and paper."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from hf_vlr.report.markup import escaped

# A page may use what it carries (styles, pictures) and nothing from elsewhere: no scripts, no fonts, no requests.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Section:
    """A part of a page: its heading, plain text, and its body, HTML (see `hf_vlr.report.markup`)."""

    title: str
    body: str


def page(title: str, sections: Sequence[Section], *, lead: str = "") -> str:
    """The HTML of a whole page. `title` is plain text, `lead` (below the title) and the sections' bodies are HTML.

    A page without sections has no list of contents. Anchors are made of the sections' titles and are unique.
    """
    anchors = _anchors([section.title for section in sections])
    links = "".join(f'<li><a href="#{anchor}">{escaped(one.title)}</a></li>' for anchor, one in zip(anchors, sections))
    contents = f'<nav aria-label="Contents"><ol>{links}</ol></nav>' if links else ""
    bodies = "".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-title">'
        f'<h2 id="{anchor}-title">{escaped(one.title)}</h2>{one.body}</section>\n'
        for anchor, one in zip(anchors, sections)
    )
    style = files("hf_vlr.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        # an empty icon: without one, browsers ask the server that shows the page
        '<link rel="icon" href="data:,">\n'
        f"<title>{escaped(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#content">Skip to the content</a>\n'
        f'<header><h1 dir="auto">{escaped(title)}</h1>{lead}{contents}</header>\n'
        f'<main id="content" tabindex="-1">\n{bodies}</main>\n</body>\n</html>\n'
    )


def _anchors(titles: Sequence[str]) -> list[str]:
    """One identifier for each title: its ASCII letters and digits, numbered where it would occur twice."""
    anchors: list[str] = []
    for title in titles:
        stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        number, anchor = 1, stem
        while anchor in anchors or anchor == "content":
            number, anchor = number + 1, f"{stem}-{number + 1}"
        anchors.append(anchor)
    return anchors
