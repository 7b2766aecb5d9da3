"""Which test image a row of predictions is of, so that two evaluations can be compared pair by pair."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hf_vlr.contents import image_digests
from hf_vlr.data.images import identity_of
from hf_vlr.data.source import ImageSource
from hf_vlr.features import base_rows


def image_rows(source: ImageSource, folder: Path | None = None) -> npt.NDArray[np.str_]:
    """An identity of each image, `[N]` different strings.

    An image that lies in a file is called by a digest of its encoded bytes, 32 hex digits, so that a copy elsewhere has
    the same name; further copies in the source get ".1", ".2" … behind it. Generated images are called "SET:ROW", SET
    12 hex digits that change with what generates them, ROW the place in the whole set. `folder` remembers digests.
    """
    digests = image_digests(source.images, folder)
    if digests is None:
        base, rows = base_rows(source.images)
        made = hashlib.blake2b(identity_of(base).encode(), digest_size=6).hexdigest()
        return np.array([f"{made}:{row}" for row in rows.tolist()], dtype=np.str_)
    seen: Counter[str] = Counter()
    names = []
    for digest in digests:
        names.append(f"{digest}.{seen[digest]}" if seen[digest] else digest)
        seen[digest] += 1
    return np.array(names, dtype=np.str_)
