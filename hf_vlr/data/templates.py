"""Wordings for class names: what is known of a class when nothing else is."""

import re

TEMPLATES = (
    "a photo of a {}.",
    "a picture that shows a {}.",
    "an image of the {}.",
    "a drawing of a {}.",
    "one {} seen up close.",
    "a {} among other things.",
    "this is a {}.",
    "an example of the kind {}.",
)


def spoken_name(name: str) -> str:
    """A class name as words: `recreation/board_games` becomes `board games, recreation`."""
    parts = [re.sub(r"[\s_]+", " ", part).strip() for part in name.split("/")]
    return ", ".join(part for part in reversed(parts) if part) or name
