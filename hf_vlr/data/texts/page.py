"""A page of an encyclopedia, as a look-up by title finds it."""

from collections.abc import Callable
from typing import Literal, NamedTuple


class Page(NamedTuple):
    """kind: an article with its plain text, no such page, or a page that only lists what its title may mean."""

    title: str
    kind: Literal["article", "missing", "disambiguation"]
    url: str = ""
    text: str = ""


LookUp = Callable[[str], Page]


def title_key(title: str) -> str:
    """What two spellings of one title have in common."""
    return " ".join(title.replace("_", " ").split()).lower()


def as_title(words: str) -> str:
    """The words as Wikipedia would spell them in a title: the first letter is a capital, `_` a space."""
    title = " ".join(words.replace("_", " ").split())
    return title[:1].upper() + title[1:]
