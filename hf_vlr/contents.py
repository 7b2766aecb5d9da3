"""What images are by their content, wherever their files lie: digests of their encoded bytes.

Digests of a set are remembered beside the cache of tower states under the set's identity, which changes with the
paths and times of its files, so that only a set that was touched or copied is read again.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from hf_vlr.data.images import SelectedImages, identity_of
from hf_vlr.disk import writing
from hf_vlr.evaluation.text_file import write_text

DIGEST_BYTES = 16


def image_digests(images: Sequence, folder: Path | None = None) -> list[str] | None:
    """A digest of each image's encoded bytes, 32 hex digits; None for images that lie in no files.

    They are remembered in `folder`, and found there without looking at the images. Raises `UserError` for an image
    that cannot be read, and where the disk is full.
    """
    if isinstance(images, SelectedImages):
        return _of_selected(images, folder)
    if not hasattr(images, "encoded"):
        return None
    return _remembered(images, folder) or _remember(images, folder, _read(images, range(len(images))))


def content_of(images: Sequence, folder: Path | None = None) -> str:
    """A text that changes with the content of any image or with their order: of their digests, else their identity."""
    digests = image_digests(images, folder)
    if digests is None:
        return identity_of(images)
    return hashlib.blake2b("".join(digests).encode(), digest_size=DIGEST_BYTES).hexdigest()


def _of_selected(images: SelectedImages, folder: Path | None) -> list[str] | None:
    """Those of the set that the images were chosen from, where they are known; else of the chosen ones alone."""
    base, rows = images.images, images.indices.tolist()
    while isinstance(base, SelectedImages):
        rows, base = [int(base.indices[row]) for row in rows], base.images
    if not hasattr(base, "encoded"):
        return None
    whole = _remembered(base, folder)
    if whole is not None:
        return [whole[row] for row in rows]
    return _remembered(images, folder) or _remember(images, folder, _read(base, rows))


def _read(images: Sequence, rows: Sequence[int]) -> list[str]:
    encoded = (images.encoded(row)["bytes"] for row in rows)
    return [hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest() for data in encoded]


def _place(images: Sequence, folder: Path) -> Path:
    return folder / f"{hashlib.blake2b(identity_of(images).encode(), digest_size=DIGEST_BYTES).hexdigest()}.digests"


def _remembered(images: Sequence, folder: Path | None) -> list[str] | None:
    """The digests written before; None where there are none, or a damaged file."""
    if folder is None:
        return None
    try:
        digests = _place(images, folder).read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return None
    whole = len(digests) == len(images) and all(len(digest) == 2 * DIGEST_BYTES for digest in digests)
    return digests if whole else None


def _remember(images: Sequence, folder: Path | None, digests: list[str]) -> list[str]:
    if folder is not None:
        path = _place(images, folder)
        with writing(path, "mend that, or name another data.cache_dir (off: none)"):
            write_text(path, "".join(f"{digest}\n" for digest in digests))
    return digests
