"""What the main predictor gains, class by class, over another one on the same images."""

from dataclasses import dataclass

import numpy as np

from hf_vlr.data.shots import SHOT_NAMES
from hf_vlr.evaluation.bootstrap import Interval, paired_bootstrap
from hf_vlr.evaluation.chance import sign_flip_p
from hf_vlr.evaluation.main_predictor import main_predictor, steps_done
from hf_vlr.evaluation.predictions import Predictions
from hf_vlr.evaluation.verdict import BETTER, NOTHING_SHOWN, WORSE, holm, verdict
from hf_vlr.report.columns import FEWEST_IMAGES
from hf_vlr.report.figures.tail import gain_figure
from hf_vlr.report.markup import Html, bullets, counted, figures, signed
from hf_vlr.report.view import Bools, View, predicted_classes

RESAMPLES = 2000
WORDS = {BETTER: "a gain", WORSE: "a loss", NOTHING_SHOWN: "no difference that these images show"}


def gains_body(view: View, reference: Predictions | None) -> Html | None:
    """The gain over the reference model, else of an adjusted predictor over what it was, of the fused over the visual.

    None without any of them.
    """
    before = _before(view)
    if reference is not None:
        predictor = view.main if view.main in reference.scores else main_predictor(reference)
        other = predicted_classes(reference.scores[predictor]) == view.predictions.labels
        rival = f"the reference model's {predictor}"
    elif before is not None:
        other, rival = view.correct(before), f"{before}, before it was adjusted"
    elif view.main == "fused" and "visual" in view.predicted:
        other, rival = view.correct("visual"), "visual, the image branch alone"
    else:
        return None
    correct = view.correct(view.main)
    ours, theirs = view.group_accuracy(correct), view.group_accuracy(other)
    means = {one: None if ours[one] is None else ours[one] - theirs[one] for one in SHOT_NAMES}
    gain = view.class_accuracy(correct) - view.class_accuracy(other)
    caption = f"What {view.main} gains over {rival}, class by class. Lines across: means by group."
    return Html(figures([gain_figure(view, gain, means, caption), bullets(_sentences(view, correct, other), "points")]))


def _before(view: View) -> str | None:
    """What the main predictor was before it was adjusted; None where it was not, or that is not known."""
    protocol = view.document["protocol"]
    base = protocol["posthoc"]["of"] if steps_done(protocol, view.main) else None
    return base if base in view.predicted else None


@dataclass(frozen=True)
class _Gain:
    """The mean gain of a group with its paired interval, the p of no gain, and the images the two differ on."""

    interval: Interval
    p: float
    differing: int


def _sentences(view: View, correct: Bools, other: Bools) -> list[str]:
    """A line for each group: the mean gain with its paired interval, and what may be said of it."""
    found = {group: _gain(view, correct, other, group) for group in SHOT_NAMES}
    adjusted = holm({group: gain.p for group, gain in found.items() if gain is not None})
    return [_sentence(group, gain, adjusted.get(group, 1.0)) for group, gain in found.items()]


def _gain(view: View, correct: Bools, other: Bools, group: str) -> _Gain | None:
    """None for a group without test images."""
    labels = view.predictions.labels
    rows = view.groups[group][labels]
    if not rows.any():
        return None
    labels, correct, other = labels[rows], correct[rows], other[rows]
    by_class = view.rule.averaging == "class"
    interval = paired_bootstrap(correct, other, labels, "balanced" if by_class else "accuracy", RESAMPLES)
    weights = 1 / np.bincount(labels)[labels] if by_class else 1.0
    p = sign_flip_p(weights * (correct.astype(np.float64) - other), RESAMPLES)
    return _Gain(interval, p, int((correct != other).sum()))


def _sentence(group: str, gain: _Gain | None, p_adjusted: float) -> str:
    if gain is None:
        return f"{group}: no test images."
    found = gain.interval
    numbers = f"{group}: {signed(found.estimate)} points, 95 % interval {signed(found.low)} to {signed(found.high)}"
    if 0 < gain.differing < FEWEST_IMAGES:
        return f"{numbers}: too few to tell, they differ on {counted(gain.differing, 'image', 'images')}."
    said = verdict(found.estimate, found.low, found.high, p_adjusted)
    return f"{numbers}: {WORDS[said]}."
