"""The class shares of unlabelled test images, by EM (Saerens et al., Neural Computation 2002, §2.3)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hf_vlr.errors import UserError
from hf_vlr.posthoc.class_prior import Prior, checked_prior
from hf_vlr.posthoc.scores import Floats, checked_scores, normalise, row_chunks


@dataclass(frozen=True)
class EstimatedPrior:
    """What EM found.

    prior: [C], sums to 1. iterations: steps made. converged: whether the last one moved less than the tolerance.
    log_likelihoods: mean log Σ_c q_c p(c|x)/π_c before each step and after the last, in nats; never falls.
    """

    prior: Prior
    iterations: int
    converged: bool
    log_likelihoods: tuple[float, ...]


def estimate(
    scores: npt.ArrayLike, train_prior: npt.ArrayLike, tolerance: float = 1e-5, max_iterations: int = 1000
) -> EstimatedPrior:
    """The shares q [C] that make scores z [N, C] most likely, from π = `train_prior`, without a label.

    q_c ← mean_i r_ic with r_ic ∝ q_c p(c|x_i) / π_c, from q = π, until a step moves less than `tolerance` of the mass
    (½ Σ_c |Δq_c|). The likelihood is concave in q, so this is its maximum; that it is also the truth needs scores that
    are calibrated (`temperature`) and classes that look in the test images as in training. With a few images per class
    much of q is noise, and with overconfident scores it may be worse than none. Float64; holds one array [N, C] of it.
    Raises `UserError` for arrays that do not fit and for a zero in `train_prior`.
    """
    scores = checked_scores(scores)
    if max_iterations < 1:
        raise UserError(f"max_iterations is {max_iterations}: EM needs at least one step")
    prior = checked_prior(train_prior, scores.shape[1], "train prior", positive=True)
    ratios, offset = _likelihood_ratios(scores, prior)
    likelihoods, converged, iterations = [], False, 0
    while not converged and iterations < max_iterations:
        updated, likelihood = _step(ratios, prior)
        converged = 0.5 * np.abs(updated - prior).sum() < tolerance
        prior, iterations = updated, iterations + 1
        likelihoods.append(likelihood + offset)
    likelihoods.append(_step(ratios, prior)[1] + offset)
    return EstimatedPrior(prior, iterations, bool(converged), tuple(likelihoods))


def estimate_reference(scores: npt.ArrayLike, train_prior: npt.ArrayLike, iterations: int) -> Prior:
    """The prior after so many steps, as the paper writes them."""
    scores, start = np.asarray(scores, dtype=np.float64), np.asarray(train_prior, dtype=np.float64)
    start = start / start.sum()
    posterior = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
    prior = start
    for _ in range(iterations):
        weighted = posterior * (prior / start)
        prior = (weighted / weighted.sum(axis=1, keepdims=True)).mean(axis=0)
    return prior


def _likelihood_ratios(scores: Floats, prior: Prior) -> tuple[Floats, float]:
    """p(c|x)/π_c of each image over its largest one, [N, C] in [0, 1], and the mean log of those largest."""
    ratios, offset, log_prior = np.empty(scores.shape), 0.0, np.log(prior)
    for rows in row_chunks(*scores.shape):
        part = normalise(scores[rows].astype(np.float64)) - log_prior
        largest = part.max(axis=1, keepdims=True)
        offset += largest.sum()
        ratios[rows] = np.exp(part - largest)
    return ratios, float(offset / len(scores))


def _step(ratios: Floats, prior: Prior) -> tuple[Prior, float]:
    """One EM step, and the mean log-likelihood before it; both products of a piece while it is in the cache."""
    gathered, likelihood = np.zeros(prior.size), 0.0
    for rows in row_chunks(*ratios.shape):
        sums = ratios[rows] @ prior
        likelihood += np.log(sums).sum()
        gathered += (1.0 / sums) @ ratios[rows]
    updated = prior * gathered / len(ratios)
    return updated / updated.sum(), float(likelihood / len(ratios))
