"""What one visitor has before them: a picture's feature and the branches' opinions, kept for that visitor alone."""

import functools
import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from hf_vlr.demo.exhibit import Exhibit
from hf_vlr.demo.pictures import read_data_url, read_picture
from hf_vlr.demo.recognition import Floats, Opinion
from hf_vlr.errors import UserError

if TYPE_CHECKING:
    import gradio as gr

NO_PICTURE = "There is no picture: upload one or choose an example."
NO_UPLOAD = "This is no file that was uploaded: send one."
# seconds after which a visitor who has left is forgotten
FORGET = 3600


@dataclass(frozen=True)
class Seen:
    """A picture after the tower: its feature [D], and the opinions of a recogniser's branches."""

    feature: Floats
    opinion: Opinion | None


@dataclass(frozen=True)
class Stage:
    """What the tabs share: the model, the picture, its `Seen` (None without one), and the event of a new picture."""

    exhibit: Exhibit
    image: "gr.Image"
    seen: "gr.State"
    looked: "gr.events.Dependency"


def look(exhibit: Exhibit, picture: Image.Image | None) -> Seen:
    """Run the tower on a picture. Raises `UserError` without one."""
    if picture is None:
        raise UserError(NO_PICTURE)
    features = exhibit.image_features([picture])
    return Seen(features[0], exhibit.opinions(features)[0] if exhibit.recogniser else None)


def require(seen: Seen | None) -> Seen:
    """The picture's `Seen`. Raises `UserError` without one."""
    if seen is None:
        raise UserError(NO_PICTURE)
    return seen


def uploaded(path: Any) -> bytes:
    """The content of a file that gradio has taken in. Raises `UserError` for every other path.

    gradio looks at paths itself, but only at those that are marked as files, and the mark is the sender's to leave out.
    """
    from gradio.utils import get_upload_folder

    try:
        found = Path(path).resolve()
        if found.is_relative_to(Path(get_upload_folder()).resolve()) and found.is_file():
            return found.read_bytes()
    except (OSError, ValueError, TypeError) as error:
        raise UserError(NO_UPLOAD) from error
    raise UserError(NO_UPLOAD)


def received(payload: Any) -> Image.Image | None:
    """The picture that a browser or a client sent; None for none. Takes the place of `gr.Image.preprocess`.

    What is not a picture is said in words, which gradio's own does not.
    """
    if payload is None:
        return None
    if payload.url and payload.url.startswith("data:"):
        return in_words(read_data_url)(payload.url)
    return in_words(lambda: read_picture(uploaded(payload.path)))()


def received_files(payload: Any) -> list[bytes]:
    """The files that a client sent. Takes the place of `gr.File.preprocess`."""
    return [in_words(uploaded)(one.path) for one in (payload or [])]


def numbers_only(slider: "gr.Slider") -> "gr.Slider":
    """The slider, which refuses in words what is no number in its range; gradio's own fails on what is no number."""
    within = slider.preprocess

    def preprocess(payload: Any) -> Any:
        number = isinstance(payload, int | float) and not isinstance(payload, bool)
        if not number or not slider.minimum <= payload <= slider.maximum:
            raise UserError(f"{slider.label}: give a number from {slider.minimum:g} to {slider.maximum:g}.")
        return within(payload)

    slider.preprocess = in_words(preprocess)
    return slider


def in_words(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose `UserError`s a visitor reads. gradio shows messages as HTML, so they are escaped."""
    import gradio as gr

    @functools.wraps(function)
    def speaking(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except UserError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error

    return speaking
