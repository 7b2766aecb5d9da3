"""JPEG files for a model: their pixels as bytes, by torchvision, which resizes bytes several times as fast as Pillow.

Only what both libraries are sure to read alike is read here. The header is walked marker by marker first; a file that
is anything but a plain JPEG is left to Pillow.
"""

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO

import torch
from PIL import ExifTags, Image
from torch import Tensor

# What Pillow's decoders are known to raise on damaged files.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)

START = b"\xff\xd8"
# baseline, extended and progressive, all of Huffman codes
FRAMES = (0xC0, 0xC1, 0xC2)
SCAN = 0xDA
# Exif or XMP
TAGGED = 0xE1
# tables, restart interval, application data and comments
PASSED_OVER = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)} - {TAGGED}
# orientations of Exif that turn or mirror the picture
TURNED = range(2, 9)


def is_plain_jpeg(data: bytes) -> bool:
    """Whether `data` begins as an upright JPEG of 8 bits, grey or of three components, that is safe to decode.

    Safe is what has at most `PIL.Image.MAX_IMAGE_PIXELS` pixels. Every marker up to the first scan must lie where the
    one before says, and one of them alone may give a size: so no decoder finds another size than is looked at here.
    """
    frames, tagged = 0, False
    for kind, segment in _segments(data):
        if kind == SCAN:
            return frames == 1 and not (tagged and _is_turned(data))
        if kind in FRAMES:
            frames += 1
            if not _fits(segment):
                return False
        elif kind == TAGGED:
            tagged = True
        elif kind not in PASSED_OVER:
            return False
    return False


def decode_jpeg(data: bytes) -> Tensor:
    """Pixels of a plain JPEG in RGB, uint8 `[3, H, W]`, each equal to Pillow's where both use libjpeg-turbo.

    Raises `RuntimeError` for a damaged one, and `ImportError` where torchvision has no decoder: it means to leave that
    to another package.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    # a copy that may be written to, or torch warns that it might be
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each segment behind the start, until there is none where one should be."""
    place = len(START) if data.startswith(START) else len(data)
    while data[place : place + 1] == b"\xff" and place + 4 <= len(data):
        kind, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if length < 2:
            return
        yield kind, data[place + 4 : place + 2 + length]
        place += 2 + length


def _fits(frame: bytes) -> bool:
    if len(frame) < 6:
        return False
    depth, height, width, components = struct.unpack(">BHHB", frame[:6])
    most = Image.MAX_IMAGE_PIXELS
    return depth == 8 and components in (1, 3) and height * width > 0 and (most is None or height * width <= most)


def _is_turned(data: bytes) -> bool:
    """Whether Pillow would turn the picture upright, or cannot say."""
    try:
        with Image.open(BytesIO(data)) as image:
            return image.getexif().get(ExifTags.Base.Orientation) in TURNED
    except DECODING_ERRORS:
        return True
