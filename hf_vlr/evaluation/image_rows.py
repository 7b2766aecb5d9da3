"""Which test image a row of predictions is of, so that two evaluations can be compared pair by pair."""

import hashlib

import numpy as np
import numpy.typing as npt

from hf_vlr.data.images import identity_of
from hf_vlr.data.source import ImageSource
from hf_vlr.features import base_rows


def image_rows(source: ImageSource) -> npt.NDArray[np.str_]:
    """An identity of each image, `[N]` strings "SET:ROW", without looking at the images.

    SET is 12 hex digits that change with the files of the set the images were chosen from, ROW the place in it: a fold
    calls its images as the whole set does.
    """
    base, rows = base_rows(source.images)
    digest = hashlib.blake2b(identity_of(base).encode(), digest_size=6).hexdigest()
    return np.array([f"{digest}:{row}" for row in rows.tolist()], dtype=np.str_)
