"""What is said of the generated shapes: a class's name and the sentences that describe it."""

from typing import NamedTuple

from hf_vlr.errors import UserError

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "black")
TEXTURES = ("plain", "striped", "dotted", "chequered", "hollow")
COUNTS = ("one", "two", "three", "four")

_SHAPE_PHRASES = {
    "circle": "a perfectly round outline",
    "square": "four equal straight sides",
    "triangle": "three corners",
    "star": "five pointed tips",
    "cross": "two bars that meet at right angles",
    "ring": "a round hole in its middle",
    "heart": "two lobes above one tip",
    "crescent": "the outline of a young moon",
}
_TEXTURE_PHRASES = {
    "plain": "a surface without any pattern",
    "striped": "parallel stripes all over",
    "dotted": "a surface covered in dots",
    "chequered": "a pattern of small squares like a chessboard",
    "hollow": "only an outline and nothing inside",
}
# The same for every class, so a good choice of sentences has to leave them out.
_OFF_TOPIC = (
    "this picture was drawn by a program.",
    "there is some noise in the picture.",
    "the background is dull.",
    "the image is small.",
    "nobody knows who wrote this sentence.",
    "pictures like this one are used for tests.",
    "the weather was fine that day.",
    "see the next page for more.",
)


class Combination(NamedTuple):
    """The attributes that make a class."""

    colour: str
    texture: str
    shape: str
    count: str

    @property
    def name(self) -> str:
        """For instance `red striped triangle`, or `two red striped triangles`; `from_name` inverts it."""
        thing = f"{self.colour} {self.texture} {self.shape}"
        return thing if self.count == "one" else f"{self.count} {thing}{_plural(self.shape)}"


def _plural(shape: str) -> str:
    return "es" if shape.endswith("s") else "s"


def from_name(name: str) -> Combination:
    """The attributes of a class by its name; `UserError` if it is not a name of `shapes-lt`."""
    words = name.split()
    count = words.pop(0) if len(words) == 4 else "one"
    if len(words) == 3:
        shape = next((shape for shape in SHAPES if words[2] in (shape, shape + _plural(shape))), "")
        found = Combination(words[0], words[1], shape, count)
        if found.name == name and words[0] in COLOURS and words[1] in TEXTURES and count in COUNTS and shape:
            return found
    raise UserError(f"{name!r} is not a class of shapes-lt; texts=shapes describes only those")


def shapes_sentences(name: str, off_topic: bool = True) -> list[str]:
    """Full descriptions, partial ones (one attribute each) and, if wanted, sentences that say nothing."""
    colour, texture, shape, count = from_name(name)
    form, pattern = _SHAPE_PHRASES[shape], _TEXTURE_PHRASES[texture]
    full = [
        f"a {colour} {texture} {shape}.",
        f"it is a {texture} {shape} in {colour}.",
        f"the {shape} is {colour} and {texture}.",
        f"a {colour} thing with {form} and {pattern}.",
        f"the colour is {colour}, the shape is a {shape} and the surface is {texture}.",
    ]
    partial = [
        f"the object is {colour}.",
        f"painted in {colour}.",
        f"it has the shape of a {shape}.",
        f"an object with {form}.",
        f"the object has a {texture} surface.",
        f"it shows {pattern}.",
    ]
    if count != "one":
        shapes = shape + _plural(shape)
        full = [f"{count} {colour} {texture} {shapes}.", *(f"{text[:-1]}, {count} times." for text in full)]
        partial.append(f"there are {count} objects.")
    return full + partial + (list(_OFF_TOPIC) if off_topic else [])
