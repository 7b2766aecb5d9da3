"""The words that name the rows of a comparison: `NAME=RUN[,RUN2,…]`, `RUN` or `RUN:PREDICTOR`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_vlr.errors import UserError
from hf_vlr.evaluation.predictions import PREDICTIONS_FILE


@dataclass(frozen=True)
class Named:
    """One row as the user named it: folders (or files) of its runs, one for each seed, and the predictor, or None."""

    name: str
    places: tuple[str, ...]
    predictor: str | None = None


def named_rows(words: Sequence[str], predictor: str | None = None) -> list[Named]:
    """The rows that words name; `predictor` is for those that choose none.

    Without a name, a row is called by the path of its first run. A path that exists is taken as it stands, whatever
    signs it holds. A predictor behind any run of a row holds for all of them. Raises `UserError` for fewer than two
    rows, a name that occurs twice, a run that is named twice within a row, two predictors within a row, and a name or
    a run that is empty.
    """
    rows = [_row(word, predictor) for word in words]
    for index, row in enumerate(rows):
        if row.name in [other.name for other in rows[:index]]:
            raise UserError(f"two rows are called {row.name}: give each its own name, as in second={row.places[0]}")
    if len(rows) < 2:
        raise UserError("one row has nothing to be compared with: name at least two runs")
    return rows


def _row(word: str, predictor: str | None) -> Named:
    name, listed = _name(word)
    found = [_place(part) for part in ([listed] if Path(listed).exists() else listed.split(","))]
    places = tuple(place for place, _ in found)
    if "" in places:
        raise UserError(f"{word!r} names an empty run: write NAME=RUN or NAME=RUN,RUN2,RUN3")
    folders = [_folder(place) for place in places]
    again = [place for index, place in enumerate(places) if folders[index] in folders[:index]]
    if again:
        raise UserError(f"{name} holds {again[0]} twice: every run of a row must be another seed")
    chosen = list(dict.fromkeys(own for _, own in found if own is not None))
    if len(chosen) > 1:
        raise UserError(f"{name} takes two predictors ({', '.join(chosen)}): make two rows of them")
    return Named(name, places, chosen[0] if chosen else predictor)


def _name(word: str) -> tuple[str, str]:
    name, equals, runs = word.partition("=")
    if Path(word).exists():
        return word.rstrip("/"), word
    if not equals:
        return word.partition(",")[0].rstrip("/"), word
    if not name or not runs:
        raise UserError(f"{word!r} is no row: write NAME=RUN, or the run alone")
    return name, runs


def _folder(place: str) -> Path:
    """Where a run lies, whatever its path is written like, by folder or by file."""
    path = Path(place).resolve()
    return path.parent if path.name == PREDICTIONS_FILE else path


def _place(part: str) -> tuple[str, str | None]:
    """A run and the predictor behind its colon; a colon that belongs to a path stays with it."""
    place, colon, predictor = part.rpartition(":")
    if not colon or Path(part).exists() or not Path(place).exists():
        return part, None
    return place, predictor
