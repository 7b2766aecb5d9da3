"""Wall-clock time of calls that take turns, so that what else a machine does meets all of them alike."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Timing:
    """What one call takes: the least, which a busy machine raises last, the median and the 95th percentile."""

    best: float
    median: float
    p95: float

    def __mul__(self, factor: float) -> "Timing":
        """In another unit, or of several calls."""
        return Timing(self.best * factor, self.median * factor, self.p95 * factor)


@dataclass(frozen=True)
class Turns:
    """How calls alternate: rounds in which each call has a turn of untimed and timed calls.

    runs: timed calls of each. warmup: calls of each before the first round. untimed: calls that begin a turn, because
    another call has left its data in the caches. timed: calls after them.
    """

    runs: int
    warmup: int = 1
    untimed: int = 0
    timed: int = 1


def in_turns(calls: Mapping[str, Callable[[], Any]], turns: Turns) -> dict[str, Timing]:
    """The seconds of every call by its name; each round begins with the next call. Waits for an accelerator's work."""
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for call in calls.values():
        for _ in range(turns.warmup):
            call()
    for number in range(-(-turns.runs // turns.timed)):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            for _ in range(turns.untimed):
                calls[name]()
            for _ in range(min(turns.timed, turns.runs - len(seconds[name]))):
                seconds[name].append(_seconds(calls[name]))
    return {name: timing(values) for name, values in seconds.items()}


def timing(seconds: list[float]) -> Timing:
    """Least, median and 95th percentile of what was measured."""
    median, p95 = np.percentile(seconds, [50, 95])
    return Timing(min(seconds), float(median), float(p95))


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """A block in which torch uses that many threads of a processor."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(call: Callable[[], Any]) -> float:
    _wait()
    start = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
