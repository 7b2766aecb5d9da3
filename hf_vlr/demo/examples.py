"""Pictures to begin with: a folder's, or for models of generated shapes ones that are drawn here."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hf_vlr.data.shapes_lt import draw_shape
from hf_vlr.data.shapes_text import from_name, shapes_sentences
from hf_vlr.demo.exhibit import Exhibit
from hf_vlr.demo.pictures import read_picture
from hf_vlr.errors import UserError
from hf_vlr.randomness import numpy_generator

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
COUNT = 6
# larger than the model sees, so that a reader sees them
SIZE = 128
NOISE = 8.0


@dataclass(frozen=True)
class Lesson:
    """A class to teach: its name, its description (one sentence a line) and a picture of it."""

    name: str
    description: str
    picture: Image.Image


def example_pictures(exhibit: Exhibit, folder: str | None = None, count: int = COUNT) -> list[Image.Image]:
    """At most `count` pictures: of `folder`, else of the folder `examples` in the model's or beside it, else drawn.

    Drawn ones are of classes of `shapes-lt`, from the most to the least frequent. [] where there are none. Raises
    `UserError` for a `folder` without a picture, and for one that cannot be read.
    """
    location = Path(exhibit.location)
    places = [Path(folder)] if folder else [location / "examples", location.parent / "examples"]
    found = next(filter(None, map(pictures_in, places)), [])
    if folder and not found:
        raise UserError(f"{folder}: no pictures ({', '.join(SUFFIXES)}); name a folder that has some")
    if found:
        return [read_picture(path, str(path)) for path in found[:count]]
    if not is_of_shapes(exhibit):
        return []
    names = exhibit.classes.names
    counts = exhibit.classes.train_counts
    order = np.argsort(-counts, kind="stable") if counts is not None else np.arange(len(names))
    chosen = order[np.linspace(0, len(order) - 1, min(count, len(order))).astype(int)]
    return [_drawn(names[label]) for label in chosen.tolist()]


def lessons(exhibit: Exhibit, count: int = 3) -> list[Lesson]:
    """Classes of generated shapes that the model does not know, of attributes that it does; [] for other models."""
    if not is_of_shapes(exhibit) or not exhibit.reads_texts:
        return []
    known = [from_name(name) for name in exhibit.classes.names]
    taken, found = set(exhibit.classes.names), []
    values = [sorted({one[position] for one in known}) for position in range(4)]
    for number in numpy_generator(0, 0, 0, "lessons").permutation(int(np.prod([len(one) for one in values]))):
        places = np.unravel_index(number, [len(one) for one in values])
        combination = type(known[0])(*(one[place] for one, place in zip(values, places)))
        if combination.name not in taken and len(found) < count:
            sentences = shapes_sentences(combination.name, off_topic=False)
            found.append(Lesson(combination.name, "\n".join(sentences), _drawn(combination.name)))
    return found


def is_of_shapes(exhibit: Exhibit) -> bool:
    """Whether the model's classes are those of `shapes-lt`."""
    if exhibit.classes is None:
        return False
    try:
        return all(from_name(name) for name in exhibit.classes.names)
    except UserError:
        return False


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder, by name; [] where there is none."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []


def _drawn(name: str) -> Image.Image:
    generator = numpy_generator(0, 0, 0, f"example {name}")
    return Image.fromarray(draw_shape(from_name(name), SIZE, NOISE, generator))
