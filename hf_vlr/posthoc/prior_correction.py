"""Scores corrected for a test set whose class shares are known (Saerens et al., Neural Computation 2002, §2.2)."""

import numpy as np
import numpy.typing as npt

from hf_vlr.posthoc.class_prior import checked_prior
from hf_vlr.posthoc.scores import Floats, checked_scores, shifted_log_softmax

# log is -69: never chosen against a class that occurs, and still a number
SMALLEST_SHARE = 1e-30


def to_prior(scores: npt.ArrayLike, train_prior: npt.ArrayLike, test_prior: npt.ArrayLike) -> Floats:
    """log softmax(z + log q − log π) of scores z [N, C]: the log-probabilities under class shares q instead of π.

    `train_prior` π [C]: the shares that the scores have learnt, as counts or fractions; those of the training images
    for plain cross-entropy, uniform for a loss or a sampler that balances. `test_prior` q [C]: those of the images at
    hand; a class that does not occur gets 1e-30 of the mass, so that scores stay finite. Float64 inside, the dtype of
    the scores outside. Raises `UserError` for arrays that do not fit, and for a zero in `train_prior`.
    """
    scores = checked_scores(scores)
    train = checked_prior(train_prior, scores.shape[1], "train prior", positive=True)
    test = checked_prior(test_prior, scores.shape[1], "test prior")
    return shifted_log_softmax(scores, np.log(np.maximum(test, SMALLEST_SHARE)) - np.log(train))
