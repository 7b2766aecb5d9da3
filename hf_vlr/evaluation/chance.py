"""What chance alone would give: tests and intervals of a mean of paired differences, and of runs over seeds.

Letters: N images, R resamples, S runs (seeds).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hf_vlr.evaluation.outcome import Floats, Ints
from hf_vlr.randomness import numpy_generator

# numbers that are drawn at a time, 32 MiB of float64
_CHUNK = 2**22
_ROUNDING = 1e-12


def sign_flip_p(contributions: npt.ArrayLike, num_resamples: int = 10000, seed: int = 0) -> float:
    """Two-sided p of a sum Σ c_i where under the null hypothesis every c_i [N] could as well be −c_i.

    Swapping two predictors' answers to an image turns its contribution's sign, so this is the paired randomisation
    test (Fisher, The Design of Experiments, 1935): p = (1 + #{r: |Σ ±c_i| >= |Σ c_i|}) / (R + 1) over R random
    choices of signs. It is exact for small samples, where a bootstrap of few images that differ is too sure; for
    contributions of one size it is McNemar's exact test but for the R draws. 1 where nothing differs.
    """
    # equal fractions of different origin (1 - 2/3, 2/3 - 1/3) are one value
    given = np.asarray(contributions, dtype=np.float64)
    sizes = np.abs(given[given != 0])
    if sizes.size == 0:
        return 1.0
    unit = sizes.max()
    values, times = np.unique(np.round(sizes / unit, 12), return_counts=True)
    generator = numpy_generator(seed, 0, 0, "sign flips")
    totals = np.zeros(num_resamples)
    for value, count in zip(values[times > 1], times[times > 1]):
        totals += value * (2 * generator.binomial(count, 0.5, size=num_resamples) - count)
    single = values[times == 1]
    step = max(1, _CHUNK // max(single.size, 1))
    for start in range(0, num_resamples if single.size else 0, step):
        part = totals[start : start + step]
        kept = generator.integers(0, 2, size=(part.size, single.size), dtype=np.int8).astype(np.float64)
        part += 2 * (kept @ single) - single.sum()
    # sums in another order differ in their last digits
    reached = np.abs(totals) >= abs(given.sum() / unit) * (1 - 1e-9) - 1e-12
    return float((1 + np.count_nonzero(reached)) / (num_resamples + 1))


def sign_flip_p_reference(contributions: npt.ArrayLike) -> float:
    """The exact p over all 2^N choices of signs, for N up to some 20."""
    given = np.asarray(contributions, dtype=np.float64)
    signs = 1 - 2 * ((np.arange(2**given.size)[:, None] >> np.arange(given.size)) & 1)
    return float((np.abs(signs @ given) >= abs(given.sum()) - 1e-12).mean())


def mean_interval(
    values: Floats, labels: Ints, num_resamples: int = 10000, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of any values [N], images drawn within their class.

    As `hf_vlr.evaluation.bootstrap.paired_bootstrap` draws (n − 1 of the n images of a class, lone images from one
    pool), for values that are all different: images are drawn one by one instead of counted by value.
    """
    generator = numpy_generator(seed, 0, 0, "mean interval")
    images = np.bincount(labels)
    strata = np.where(images[labels] == 1, -1, labels)
    order = np.argsort(strata, kind="stable")
    totals = np.zeros(num_resamples)
    for members in np.split(values[order], np.flatnonzero(np.diff(strata[order])) + 1):
        draws = max(members.size - 1, 1)
        step = max(1, _CHUNK // draws)
        for start in range(0, num_resamples, step):
            part = totals[start : start + step]
            drawn = generator.integers(0, members.size, size=(part.size, draws), dtype=_index(members.size))
            part += members[drawn].sum(axis=1) * (members.size / draws)
    low, high = np.quantile(totals / values.size, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """McNemar's exact two-sided p: images that only one of two predictors has right, a fair coin under the null.

    p = min(1, 2 P[Binomial(b + c, 1/2) <= min(b, c)]) (McNemar, Psychometrika 1947; the exact form).
    """
    from scipy.special import bdtr

    total = only_first + only_second
    return 1.0 if total == 0 else min(1.0, 2 * float(bdtr(min(only_first, only_second), total, 0.5)))


def seeds_p(ours: Sequence[float], theirs: Sequence[float], all_rows: Sequence[Sequence[float]]) -> float | None:
    """Two-sided p of Student's t test between two rows over their seeds; None where no row has several.

    t = (mean ours − mean theirs) / sqrt(s² (1/S + 1/S')). Two or three seeds cannot tell how rows differ in spread,
    so one variance is taken for all: s² and its degrees of freedom are pooled over all rows of the comparison, but s²
    is never below what the two rows themselves show.
    """
    freedom = sum(len(row) - 1 for row in all_rows)
    if freedom == 0:
        return None
    pair = [ours, theirs]
    own = sum(len(row) - 1 for row in pair)
    variance = max(_squares(all_rows) / freedom, _squares(pair) / own if own else 0.0)
    difference = float(np.mean(ours) - np.mean(theirs))
    return _student_p(difference, variance * (1 / len(ours) + 1 / len(theirs)), freedom)


def paired_seeds_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of Student's t test that differences [S] of the very same runs average zero; None for one run."""
    if len(differences) < 2:
        return None
    variance = float(np.var(differences, ddof=1)) / len(differences)
    return _student_p(float(np.mean(differences)), variance, len(differences) - 1)


def _squares(rows: Sequence[Sequence[float]]) -> float:
    return float(sum(np.square(np.subtract(row, np.mean(row))).sum() for row in rows))


def _student_p(difference: float, variance: float, freedom: int) -> float:
    """p of a difference whose squared standard error is `variance`; 1 without any.

    Runs that agree to the last digit are copies, or too coarse to show their spread: no evidence of a difference.
    """
    from scipy.special import stdtr

    # below what rounding leaves of equal numbers
    if abs(difference) < _ROUNDING or variance < _ROUNDING**2:
        return 1.0
    return float(2 * stdtr(freedom, -abs(difference) / variance**0.5))


def _index(size: int) -> npt.DTypeLike:
    """The narrowest type that counts to `size`: narrow ones are drawn faster."""
    return np.uint8 if size <= 2**8 else np.uint16 if size <= 2**16 else np.int64
