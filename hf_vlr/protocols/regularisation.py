"""How strong L2 is: a coarse search on a logarithmic grid, refined around its best point."""

from collections.abc import Callable

# C from 1e-6 to 1e6 in steps of an eighth of a decade, and the first look at every sixteenth of them
GRID = tuple(10.0 ** (-6 + index / 8) for index in range(97))
FIRST_STEP = 16


def refined_search(score: Callable[[int], float], size: int, first_step: int) -> tuple[int, dict[int, float]]:
    """The index of the highest score found in 0 … size-1, and all scores that were computed.

    Every `first_step`-th index is tried, the step is halved, the best one's two neighbours at that step are tried, and
    so on down to a step of 1: 7 + 4·2 evaluations of 97 where `first_step` is 16. Of equal scores the lowest index
    stands, which here is the strongest regularisation. The result is the maximum where the score rises and then falls;
    a score of several humps may have a higher one between the first points. Source of the scheme: Radford et al.,
    ICML 2021, appendix on linear-probe evaluation.
    """
    tried: dict[int, float] = {}
    step, places = first_step, list(range(0, size, first_step))
    while True:
        for place in places:
            if 0 <= place < size and place not in tried:
                tried[place] = score(place)
        best = min(tried, key=lambda place: (-tried[place], place))
        if step == 1:
            return best, dict(sorted(tried.items()))
        step //= 2
        places = [best - step, best + step]
