"""One line of the scoreboard: the same work done by this package and by what one would otherwise run.

A contest says who takes part (`enter`), what must be equal (the answers that every call returns), what the machine
could do at best (`roof`) and what is hoped for (`goals`). It measures nothing itself: `running` does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hf_vlr.bench.goals import Goal
from hf_vlr.bench.setting import Setting
from hf_vlr.timing import Turns

Answers = Mapping[str, Tensor]


@dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    name: what a reader knows it by, such as `open_clip ClipLoss`. call: does the work once, with no lasting effect, and
    returns what it found, by name: values and gradients that others are compared with. dtype: of its arithmetic.
    ours: whether it is this package's. calls_of_whole: how many calls make the whole that a goal in seconds speaks of.
    items: how much one call does, where contestants do different amounts (images, sentences): ratios are per item.
    measures_memory: whether its peak memory is of interest (a process of its own on a CPU). kept_bytes: what it keeps
    from call to call beside inputs and weights, and others need not: it counts as memory of the call.
    """

    name: str
    call: Callable[[], Answers]
    dtype: str = "float32"
    ours: bool = False
    calls_of_whole: int = 1
    items: int = 1
    measures_memory: bool = False
    kept_bytes: int = 0


@dataclass(frozen=True)
class Roof:
    """The least that the machine must do for our answer: floating-point operations of a matrix product in `dtype`, or
    bytes read from memory once. Its time is the larger of both at the measured rates."""

    flop: float = 0.0
    bytes: float = 0.0
    dtype: str = "float32"


@dataclass(frozen=True)
class Contest:
    """What is measured.

    name: as given on the command line. row: its line of the board. title: with `{size names}` in braces.
    sizes: `full` on a CPU, `gpu` (else `full`) on an accelerator, `quick` in tests. enter: the contestants of a
    setting; those of this package first. goals: by `cpu` and `cuda`. floors: the least ratio to a peer at the `quick`
    size on any CPU, far below what is measured. needs: import names beside the package's own requirements, which the
    extra installs. item: what contestants count in their `items`.
    """

    name: str
    row: int
    title: str
    sizes: Mapping[str, Mapping[str, int]]
    enter: Callable[[Setting], Sequence[Contestant]]
    roof: Callable[[Setting], Roof] | None = None
    goals: Mapping[str, tuple[Goal, ...]] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)
    turns: Turns = field(default_factory=lambda: Turns(runs=5))
    devices: tuple[str, ...] = ("cpu", "cuda")
    needs: tuple[str, ...] = ()
    extra: str = "bench"
    item: str = ""
    note: str = ""

    def size_for(self, scale: str, device: str) -> Mapping[str, int]:
        """The numbers of a scale on a device."""
        if scale == "full" and device != "cpu" and "gpu" in self.sizes:
            return self.sizes["gpu"]
        return self.sizes[scale]


@dataclass(frozen=True)
class Study:
    """A line that is no contest, such as the growth of costs.

    measure: a setting to `{"lines": [what to print], "numbers": {...}, "goals": [{"text": ..., "met": bool}, ...]}`.
    """

    name: str
    row: int
    title: str
    sizes: Mapping[str, Mapping[str, int]]
    measure: Callable[[Setting], dict[str, Any]]
    devices: tuple[str, ...] = ("cpu", "cuda")
    needs: tuple[str, ...] = ()
    extra: str = "bench"
    note: str = ""

    size_for = Contest.size_for
