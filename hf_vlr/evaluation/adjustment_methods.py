"""The methods of `hf_vlr.posthoc` by name, each fitted to predictions and applied to them.

Letters: `N` images, `C` classes, `D` width of features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_vlr.errors import UserError
from hf_vlr.evaluation.adjustment_bench import Array, Bench, Fitted, Images, Settings
from hf_vlr.evaluation.priors import PRIORS
from hf_vlr.posthoc import (
    em_prior,
    ensembling,
    label_bias,
    logit_adjustment,
    prior_correction,
    tau_norm,
    temperature,
    tuning,
)

TAUS = tuple(round(0.1 * step, 1) for step in range(31))
# per class; up to these, EM is warned of
EM_IMAGES = 10
WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))


def _chosen(
    settings: Settings,
    key: str,
    grid: Sequence[float],
    bench: Bench,
    candidates: Callable[[Images], Callable[[slice], Callable[[float], Array]]],
    **how: Any,
) -> tuple[float, dict[str, Any], tuple[str, ...]]:
    """The value that was given, or the best of several on the tuning images; what is told of it; a warning.

    `how`: further arguments of `tuning.search`.
    """
    given = settings.numbers(key)
    if len(given) == 1:
        if "criterion" in settings.words:
            raise UserError(f"{settings.method}: {key} is given, so nothing is chosen: leave criterion= out")
        return given[0], {key: given[0]}, ()
    images = _tuning(settings, bench, f"or {key}=NUMBER")
    tuned = tuning.search(
        key,
        given or grid,
        candidates(images),
        images.labels,
        len(bench.train_counts),
        split=bench.split,
        criterion=settings.text("criterion", "balanced-nll", tuple(tuning.CRITERIA)),
        **how,
    )
    return tuned.value, {key: tuned.value, "tuned": tuned.as_dict()}, (tuned.warning,) if tuned.warning else ()


def _tuning(settings: Settings, bench: Bench, otherwise: str = "") -> Images:
    if bench.tuning is None:
        way = f", {otherwise}" if otherwise else ""
        raise UserError(f"{settings.method} learns from labels that are not reported: give --tune ANOTHER-SPLIT{way}")
    return bench.tuning


def _logit_adjustment(settings: Settings, bench: Bench) -> Fitted:
    counts = bench.train_counts
    tau, told, warnings = _chosen(
        settings, "tau", TAUS, bench, lambda images: logit_adjustment.candidates(images.scores, counts)
    )
    learnt = bench.learnt
    if "tuned" not in told and learnt.doubt is None and learnt.power not in (1.0, tau):
        found = f"the training lets the scores learn {learnt.name} shares"
        warnings = (f"{found}, which tau={learnt.power:g} takes out, not tau={tau:g}",)
    return Fitted(lambda images: logit_adjustment.adjusted(images.scores, counts, tau), told, warnings)


def _prior_correction(settings: Settings, bench: Bench) -> Fitted:
    learnt, train, warnings = settings.learnt(bench)
    if "prior" not in settings.words:
        known = ", ".join(PRIORS)
        raise UserError(f"prior-correction needs the class shares of the test images: prior={known} or FILE.npy")
    test = settings.prior("prior", settings.words["prior"], bench.train_counts)
    told = {"prior": settings.words["prior"], "learnt": learnt}
    return Fitted(lambda images: prior_correction.to_prior(images.scores, train, test), told, warnings)


def _em(settings: Settings, bench: Bench) -> Fitted:
    learnt, train, guessed = settings.learnt(bench)
    found = em_prior.estimate(bench.reported.scores, train)

    def apply(images: Images) -> Array:
        # each split has class shares of its own
        own = found if images is bench.reported else em_prior.estimate(images.scores, train)
        return prior_correction.to_prior(images.scores, train, own.prior)

    told = {
        "learnt": learnt,
        "iterations": found.iterations,
        "converged": found.converged,
        "smallest_share": float(found.prior.min()),
        "largest_share": float(found.prior.max()),
    }
    num_images, num_classes = bench.reported.scores.shape
    warnings = [*guessed]
    if not found.converged:
        warnings.append(f"em still moved after {found.iterations} steps: its prior is approximate")
    if num_images <= EM_IMAGES * num_classes:
        warnings.append(f"em estimated {num_classes} shares from {num_images} images: they are noisy")
    return Fitted(apply, told, tuple(warnings), found.prior)


def _temperature(settings: Settings, bench: Bench) -> Fitted:
    given = settings.numbers("t")
    if len(given) > 1:
        raise UserError("temperature t= is one number; without it the best one is computed, not searched")
    if given:
        value, told = given[0], {"t": given[0]}
        if "criterion" in settings.words:
            raise UserError("temperature: t is given, so nothing is chosen: leave criterion= out")
    else:
        images = _tuning(settings, bench, "or t=NUMBER")
        criterion = settings.text("criterion", "nll", ("nll", "balanced-nll"))
        value = temperature.fit(images.scores, images.labels, balanced=criterion == "balanced-nll")
        tuned = {"parameter": "t", "value": value, "criterion": criterion, "split": bench.split}
        told = {"t": value, "tuned": tuned | {"images": len(images.labels), "at_edge": value in temperature.BOUNDS}}
    edge = f"t={value:g} is a bound: no temperature fits {bench.split} best" if value in temperature.BOUNDS else None
    return Fitted(lambda images: temperature.scaled(images.scores, value), told, (edge,) if edge else ())


def _tau_norm(settings: Settings, bench: Bench) -> Fitted:
    weights = bench.classifier
    if weights is None or bench.reported.features is None:
        raise UserError("tau-norm works on what the last layer sees: give --features and --classifier")
    if bench.tuning is not None and bench.tuning.features is None:
        raise UserError("tau-norm needs the features of the tuning images too: give --tune-features")
    tau, told, warnings = _chosen(
        settings, "tau", TAUS, bench, lambda images: tau_norm.candidates(images.features, weights)
    )
    normalised = tau_norm.normalised(weights, tau)
    return Fitted(lambda images: tau_norm.logits(images.features, normalised), told, warnings)


def _ensemble(settings: Settings, bench: Bench) -> Fitted:
    space = settings.text("space", "probability", ensembling.SPACES)
    name = _other(settings, bench)
    weight, told, warnings = _chosen(
        settings,
        "weight",
        WEIGHTS,
        bench,
        lambda images: ensembling.candidates(images.scores, images.other[name], space),
        neutral=1.0,
        limits=(0.0, 1.0),
        probabilities=space == "probability",
    )
    told = told | {"space": space, "with": name}
    return Fitted(lambda images: ensembling.mixed(images.scores, images.other[name], weight, space), told, warnings)


def _gla(settings: Settings, bench: Bench) -> Fitted:
    images, name = _tuning(settings, bench), _other(settings, bench)
    learnt, train, guessed = settings.learnt(bench)
    bias = label_bias.estimate(images.other[name], images.labels)
    told = {
        "with": name,
        "learnt": learnt,
        "label_bias": {"split": bench.split, "images": len(images.labels), "converged": bias.converged},
    }
    warnings = [*guessed]
    if name in bench.branches:
        warnings.append(
            f"gla: {name} is a trained branch, not a zero-shot model as the method presumes: give --with one"
        )
    if bias.unseen:
        unseen = f"gla: {bias.unseen} classes have no image in {bench.split}"
        warnings.append(f"{unseen}; their bias is taken to be the mean of the others")
    return Fitted(
        lambda images: ensembling.generalised_logit_adjustment(images.scores, images.other[name], train, bias.prior),
        told,
        tuple(warnings),
    )


def _other(settings: Settings, bench: Bench) -> str:
    """The zero-shot predictor: the one that is named, else the only one."""
    for images, option in ((bench.reported, "--with"), (bench.tuning, "--tune-with")):
        if images is not None and not images.other_names:
            raise UserError(f"{settings.method} needs zero-shot scores of the same images: give {option} PREDICTIONS")
    names = bench.reported.other_names
    if "with" not in settings.words and len(names) > 1:
        raise UserError(f"{settings.method} can mix with {', '.join(names)}: say which, as in with={names[0]}")
    name = settings.text("with", names[0], names)
    if bench.tuning is not None and name not in bench.tuning.other_names:
        known = ", ".join(bench.tuning.other_names)
        raise UserError(f"{settings.method} with={name}: the tuning images have only {known}; give --tune-with")
    return name


@dataclass(frozen=True)
class Method:
    """A method: its keys with a word on each, and whether it presumes and changes the class shares in the scores."""

    fit: Callable[[Settings, Bench], Fitted]
    keys: tuple[str, ...]
    moves_prior: bool = False


METHODS = {
    "logit-adjustment": Method(_logit_adjustment, ("tau", "criterion"), moves_prior=True),
    "tau-norm": Method(_tau_norm, ("tau", "criterion")),
    "prior-correction": Method(_prior_correction, ("prior", "learnt"), moves_prior=True),
    "em": Method(_em, ("learnt",), moves_prior=True),
    "temperature": Method(_temperature, ("t", "criterion")),
    "ensemble": Method(_ensemble, ("weight", "space", "with", "criterion")),
    "gla": Method(_gla, ("with", "learnt"), moves_prior=True),
}
