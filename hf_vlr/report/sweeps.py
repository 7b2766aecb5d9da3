"""What other settings would have given on the reported images: the fusion weight α, and τ of logit adjustment.

Shapes: N images, C classes, V settings. Scores are read some rows at a time, so that nothing of N·C is copied.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_vlr.posthoc.logit_adjustment import candidates
from hf_vlr.report.view import Bools, Floats, View

ALPHAS = np.linspace(0.0, 1.0, 21)
TAUS = np.linspace(0.0, 2.0, 21)
# numbers of a piece of scores, float32: what the caches of one core hold
_CHUNK_NUMBERS = 2**18

Scores = npt.NDArray[Any]


@dataclass(frozen=True)
class Sweep:
    """Accuracies of one predictor family over settings: `values` [V], and by "all", "many" … a list of V.

    An entry is None throughout for a group without test images.
    """

    values: Floats
    accuracy: Mapping[str, list[float | None]]


def fusion_sweep(view: View, alphas: Floats = ALPHAS) -> Sweep | None:
    """Accuracy of α softmax(visual) + (1 − α) softmax(language) at each α; None unless both have scores."""
    if not {"visual", "language"} <= set(view.scored()):
        return None
    visual, language = view.predictions.scores["visual"], view.predictions.scores["language"]

    def predict(rows: slice) -> list[npt.NDArray[np.int64]]:
        ours, theirs = visual[rows], language[rows]
        p, q = _softmax(ours), _softmax(theirs)
        # at the ends from the scores themselves: float32 probabilities may tie where scores do not
        exact = {0.0: theirs, 1.0: ours}
        return [exact.get(a, np.float32(a) * (p - q) + q).argmax(axis=1) for a in alphas.tolist()]

    return _sweep(view, alphas, predict)


def adjustment_sweep(view: View, predictor: str, taus: Floats = TAUS) -> Sweep | None:
    """Accuracy of the scores adjusted by each τ, see `hf_vlr.posthoc.logit_adjustment.adjusted`.

    None for a predictor without scores, and where no class has training images.
    """
    counts = view.predictions.train_counts
    if predictor not in view.scored() or not counts.any():
        return None
    adjusted = candidates(view.predictions.scores[predictor], counts)

    def predict(rows: slice) -> list[npt.NDArray[np.int64]]:
        at = adjusted(rows)
        return [at(tau).argmax(axis=1) for tau in taus.tolist()]

    return _sweep(view, taus, predict)


def _sweep(view: View, values: Floats, predict: Callable[[slice], list[npt.NDArray[np.int64]]]) -> Sweep:
    """The accuracies at each value; `predict` gives the predicted classes of some rows at each value."""
    labels = view.predictions.labels
    correct: Bools = np.empty((len(values), len(labels)), dtype=bool)
    step = max(1, _CHUNK_NUMBERS // view.predictions.num_classes)
    for start in range(0, len(labels), step):
        rows = slice(start, start + step)
        for index, predicted in enumerate(predict(rows)):
            correct[index, rows] = predicted == labels[rows]
    curves = [{"all": float(row.mean())} | view.group_accuracy(row) for row in correct]
    return Sweep(values, {name: [curve[name] for curve in curves] for name in curves[0]})


def _softmax(scores: Scores) -> npt.NDArray[np.float32]:
    shifted = (scores - scores.max(axis=1, keepdims=True)).astype(np.float32)
    exponentials = np.exp(shifted, out=shifted)
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials
