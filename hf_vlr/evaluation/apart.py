"""Whether images to choose on are among those that are reported."""

import hashlib

import numpy as np

from hf_vlr.errors import UserError
from hf_vlr.evaluation.predictions import Predictions

# of scores that went through half precision: its eleven bits, twice rounded
_CLOSE = 2e-3


def check_apart(reported: Predictions, tuning: Predictions, predictor: str) -> tuple[str, ...]:
    """Raise `UserError` where the tuning images are reported ones; else what remains to be doubted, as warnings.

    They are where both know the identities of their images and share one (with one label: numbers that are only
    positions name different images). Otherwise, where at least half of the tuning images have the label and, bit for
    bit, the scores of a reported one, where all have the labels and nearly the scores of the reported ones in their
    order (another precision), or where both say that they are the same split of the same source. Equal labels alone
    are warned of, unless the identities tell the images apart.
    """
    shared, known = _shared_rows(reported, tuning), reported.rows is not None and tuning.rows is not None
    equal = np.array_equal(reported.labels, tuning.labels)
    if not shared:
        one, other = set(_fingerprints(reported, predictor)), _fingerprints(tuning, predictor)
        shared = sum(row in one for row in other)
        shared = shared if 2 * shared >= len(other) else 0
    same = [reported.protocol.get(key) == tuning.protocol.get(key) is not None for key in ("source", "split")]
    if not shared and equal and (all(same) or _nearly_equal(reported, tuning, predictor)):
        shared = len(tuning.labels)
    if shared:
        raise UserError(
            f"{shared} of the {len(tuning.labels)} tuning images are among the reported ones: nothing is tuned on what "
            "is reported; give --tune another split, such as validation"
        )
    if not equal or known:
        return ()
    return (
        "the tuning images have the same labels in the same order as the reported ones: make sure that they are others",
    )


def _shared_rows(reported: Predictions, tuning: Predictions) -> int:
    if reported.rows is None or tuning.rows is None:
        return 0
    _, here, there = np.intersect1d(reported.rows, tuning.rows, return_indices=True)
    return len(here) if np.array_equal(reported.labels[here], tuning.labels[there]) else 0


def _nearly_equal(reported: Predictions, tuning: Predictions, predictor: str) -> bool:
    ours, theirs = reported.scores[predictor], tuning.scores[predictor]
    if ours.shape != theirs.shape:
        return False
    return all(
        np.allclose(one.astype(np.float64), other.astype(np.float64), rtol=_CLOSE, atol=_CLOSE)
        for one, other in zip(ours, theirs)
    )


def _fingerprints(predictions: Predictions, predictor: str) -> list[bytes]:
    pairs = zip(predictions.labels.tolist(), predictions.scores[predictor])
    return [hashlib.blake2b(row.tobytes() + b"%d" % label, digest_size=16).digest() for label, row in pairs]
