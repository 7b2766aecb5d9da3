"""Predictions adjusted after training: named methods, one after the other, fitted on images that are not reported."""

import csv
import difflib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_vlr.errors import UserError
from hf_vlr.evaluation.adjustment_bench import Array, Bench, Images, Settings
from hf_vlr.evaluation.adjustment_methods import METHODS
from hf_vlr.evaluation.apart import check_apart
from hf_vlr.evaluation.document import BRANCHES, PROTOCOL_FIELDS
from hf_vlr.evaluation.learnt_shares import stated_by
from hf_vlr.evaluation.main_predictor import main_predictor, steps_done
from hf_vlr.evaluation.predictions import Predictions
from hf_vlr.evaluation.text_file import write_text
from hf_vlr.posthoc.class_prior import from_counts
from hf_vlr.posthoc.scores import checked_labels, checked_scores

PRIOR_FILE = "em_prior.csv"


@dataclass(frozen=True)
class Step:
    """A method and its `key=value` words, as text."""

    method: str
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Material:
    """What is known of one split's images.

    predictions: labels and scores. zero_shot: those of a second model on the same images. features [N, D]: what the
    classifier saw.
    """

    predictions: Predictions
    zero_shot: Predictions | None = None
    features: Array | None = None


@dataclass(frozen=True)
class Adjusted:
    """What `adjust` gives.

    predictions: the untouched predictor, then one more for each step, named `BASE + METHOD + METHOD`; the protocol's
    `posthoc` tells every step. lines: the same to read. warnings: what a reader should doubt. priors: the class shares
    [C] that a step has estimated on the reported images, by predictor.
    """

    predictions: Predictions
    lines: tuple[str, ...]
    warnings: tuple[str, ...]
    priors: Mapping[str, Array]


def parse_steps(words: Sequence[str]) -> list[Step]:
    """Steps from words such as `logit-adjustment tau=1 temperature`: a setting belongs to the method before it.

    Raises `UserError` for an unknown method or key, a setting before the first method, and no method at all.
    """
    steps: list[Step] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            if word not in METHODS:
                raise UserError(f"unknown method {word}{_nearest(word, METHODS)}; there are {', '.join(METHODS)}")
            steps.append(Step(word, {}))
            continue
        if not steps:
            raise UserError(f"{word} stands before any method: write METHOD first, as in logit-adjustment tau=1")
        keys = METHODS[steps[-1].method].keys
        if key not in keys:
            raise UserError(f"{steps[-1].method} has no key {key}{_nearest(key, keys)}; it takes {', '.join(keys)}")
        steps[-1] = Step(steps[-1].method, {**steps[-1].words, key: value})
    if not steps:
        raise UserError(f"no method is named; there are {', '.join(METHODS)}")
    return steps


def adjust(
    reported: Material,
    steps: Sequence[Step],
    tuning: Material | None = None,
    *,
    classifier: Array | None = None,
    predictor: str | None = None,
) -> Adjusted:
    """Apply `steps` one after the other to a predictor of `reported`, by default its main one.

    What a step learns from labels it learns on `tuning`, to which the earlier steps have been applied too; EM learns
    from the reported images without their labels. `classifier`: weights [C, D] that tau-norm changes. Raises
    `UserError` where a step lacks what it needs, where the class shares that a step presumes have been changed by an
    earlier one, in this call or before, where `tuning` holds the reported images (`check_apart`), and for arrays that
    do not fit.
    """
    predictions = reported.predictions
    base = predictor or main_predictor(predictions)
    _check_steps(steps, [step["method"] for step in steps_done(predictions.protocol, base)])
    bench, doubts = _bench(reported, tuning, base, classifier)
    scores, name, told, lines, warnings, priors = {base: bench.reported.scores}, base, [], [], [*doubts], {}
    for step in steps:
        fitted = METHODS[step.method].fit(Settings(step.method, step.words), bench)
        name = f"{name} + {step.method}"
        scores[name] = fitted.apply(bench.reported)
        told.append({"method": step.method, **fitted.told})
        lines.append(f"{step.method}: {_spelled(fitted.told)}")
        warnings += fitted.warnings
        if fitted.prior is not None:
            priors[name] = fitted.prior
        later = bench.tuning
        if later is not None and step is not steps[-1]:
            later = replace(later, scores=fitted.apply(later))
        bench = replace(bench, reported=replace(bench.reported, scores=scores[name]), tuning=later)
    posthoc = {"of": base, "steps": told} | _before(predictions)
    protocol = dict.fromkeys(PROTOCOL_FIELDS) | dict(predictions.protocol) | {"posthoc": posthoc}
    adjusted = replace(predictions, scores=scores, protocol=protocol)
    return Adjusted(adjusted, tuple(lines), tuple(warnings), priors)


def write_priors(folder: Path, predictions: Predictions, priors: Mapping[str, Array]) -> None:
    """`em_prior.csv`: a row for each class and estimate, with its share in training and the estimated one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("predictor", "label", "class_name", "train_share", "estimated_share"))
    train = from_counts(predictions.train_counts)
    for name, prior in priors.items():
        rows = zip(predictions.class_names, train.tolist(), prior.tolist())
        writer.writerows((name, label, *row) for label, row in enumerate(rows))
    write_text(folder / PRIOR_FILE, text.getvalue())


def _check_steps(steps: Sequence[Step], done: Sequence[str]) -> None:
    """`done`: the methods that have been applied already."""
    moved = next((name for name in reversed(done) if name in METHODS and METHODS[name].moves_prior), None)
    for place, step in enumerate(steps):
        if step.method == "tau-norm" and (place or done):
            raise UserError("tau-norm replaces the classifier, so it comes first: put it before the other methods")
        if not METHODS[step.method].moves_prior:
            continue
        if moved and "learnt" not in METHODS[step.method].keys:
            raise UserError(
                f"{step.method} presumes the class shares of training, which {moved} has taken out of the scores: "
                "keep one of the two"
            )
        if moved and "learnt" not in step.words:
            raise UserError(
                f"{step.method} comes after {moved}, so the scores no longer have the class shares of training: say "
                "which they have, as in learnt=uniform"
            )
        moved = step.method


def _bench(
    reported: Material, tuning: Material | None, base: str, classifier: Array | None
) -> tuple[Bench, tuple[str, ...]]:
    """All arrays, read and checked, and what is to be doubted of them."""
    doubts: tuple[str, ...] = ()
    images = _images(reported, base)
    others = None if tuning is None else _images(tuning, base)
    if tuning is not None:
        apart = (one.predictions.with_scores({base: of.scores}) for one, of in ((reported, images), (tuning, others)))
        doubts = check_apart(*apart, base)
        if others.scores.shape[1] != images.scores.shape[1]:
            raise UserError(
                f"the tuning images have {others.scores.shape[1]} classes, the reported ones {images.scores.shape[1]}: "
                "give another split of the same data"
            )
    predictions = reported.predictions
    learnt, branches = stated_by(predictions.protocol), _branches(reported.zero_shot or predictions)
    bench = Bench(images, others, _split_name(tuning), predictions.train_counts, learnt, classifier, branches)
    return bench, doubts


def _branches(predictions: Predictions) -> tuple[str, ...]:
    """The predictors that are branches of a trained recogniser; none of a zero-shot model, which has no visual one."""
    names = [name for name in BRANCHES if name in predictions.scores]
    return tuple(names) if {"fused", "visual"} & set(names) else ()


def _before(predictions: Predictions) -> dict[str, Any]:
    """What had been done to the predictions already."""
    return {"before": predictions.protocol["posthoc"]} if "posthoc" in predictions.protocol else {}


def _images(material: Material, predictor: str) -> Images:
    """The arrays of a split, checked against each other."""
    predictions, features = material.predictions, material.features
    if predictor not in predictions.scores:
        names = ", ".join(predictions.scores)
        raise UserError(
            f"{_split_name(material)} has no predictor {predictor}, only {names}: choose one with --predictor"
        )
    scores = checked_scores(predictions.scores[predictor])
    if scores.shape[1] != predictions.num_classes:
        raise UserError(f"scores have {scores.shape[1]} columns for {predictions.num_classes} classes")
    labels = checked_labels(predictions.labels, scores.shape)
    if features is not None and len(features) != len(labels):
        raise UserError(f"{len(features)} features for {len(labels)} images of {_split_name(material)}: give all")
    if material.zero_shot is None:
        names = tuple(name for name in predictions.scores if name != predictor)
        return Images(scores, labels, predictions.scores, names, features)
    _check_same_images(predictions, material.zero_shot)
    return Images(scores, labels, material.zero_shot.scores, tuple(material.zero_shot.scores), features)


def _check_same_images(predictions: Predictions, zero_shot: Predictions) -> None:
    known = predictions.rows is not None and zero_shot.rows is not None
    same = np.array_equal(predictions.labels, zero_shot.labels)
    if not same or (known and not np.array_equal(predictions.rows, zero_shot.rows)):
        raise UserError("the zero-shot predictions are of other images than those they are mixed with: score one split")


def _split_name(material: Material | None) -> str:
    return str((material and material.predictions.protocol.get("split")) or "the given arrays")


def _spelled(told: Mapping[str, Any]) -> str:
    """What a step did, in a line."""
    parts = [f"{key}={_number(value)}" for key, value in told.items() if not isinstance(value, dict)]
    for kind in ("tuned", "label_bias"):
        if kind not in told:
            continue
        what = f"best {told[kind]['criterion']}" if kind == "tuned" else "label bias estimated"
        if "grid" in told[kind]:
            what += " of {values} values from {low:g} to {high:g}".format(**told[kind]["grid"])
        parts.append(f"{what} on {told[kind]['split']} ({told[kind]['images']} images)")
    return ", ".join(parts)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _nearest(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
