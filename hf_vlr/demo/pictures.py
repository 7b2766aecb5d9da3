"""Pictures that strangers send: bounded, decoded here, and refused in words."""

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image

from hf_vlr.data.images import DECODING_ERRORS, decode_image
from hf_vlr.errors import UserError

MAX_PIXELS = 50_000_000
# a model sees a few hundred pixels a side; more than this only fills the memory
MAX_SIDE = 2048
MAX_BATCH = 64


def read_picture(data: bytes | Path, name: str = "The picture") -> Image.Image:
    """An upright RGB picture of at most 2048 pixels a side from a file or its bytes.

    Raises `UserError` for what is no picture, is damaged, or has more than 50 million pixels, which it sees before it
    decodes one.
    """
    try:
        with Image.open(BytesIO(data) if isinstance(data, bytes) else data) as header:
            width, height = header.size
            # JPEG can be decoded at a fraction of its size, but the limit holds for every format
            if width * height > MAX_PIXELS:
                raise UserError(
                    f"{name} has {width:,} × {height:,} pixels: make it smaller than {MAX_PIXELS:,} pixels."
                )
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} is too large to decode safely: make it smaller than {MAX_PIXELS:,} pixels.") from error
    except DECODING_ERRORS as error:
        raise UserError(f"{name} cannot be read: choose a PNG, JPEG or WebP file that opens elsewhere.") from error
    try:
        picture = decode_image(data, name)
    except UserError as error:
        raise UserError(f"{name} is damaged: choose a PNG, JPEG or WebP file that opens elsewhere.") from error
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return picture


def read_data_url(url: str) -> Image.Image:
    """The picture in a `data:` URL, as a browser pastes it. Raises `UserError` as `read_picture` does."""
    _, _, encoded = url.partition(",")
    try:
        data = base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise UserError("The picture cannot be read: upload it as a file.") from error
    return read_picture(data)
