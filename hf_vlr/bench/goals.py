"""What a contest hopes for, and whether what was measured reaches it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """A number to reach: at least `at`, or for seconds at most.

    kind: `speed` (times as fast as `peer`), `memory` (times less peak memory than `peer`), `roof` (share of what the
    machine can do) or `seconds` (of the whole). ours: the name of our contestant, the first one by default.
    """

    kind: str
    at: float
    peer: str = ""
    ours: str = ""

    def met(self, measured: float) -> bool:
        """Whether a measured number reaches the goal."""
        return measured <= self.at if self.kind == "seconds" else measured >= self.at

    def text(self) -> str:
        """The goal in words, such as `≥ 1.75× open_clip ClipLoss`."""
        number = f"{self.at:g}"
        return {
            "speed": f"≥ {number}× {self.peer}",
            "memory": f"≤ 1/{number} memory of {self.peer}",
            "roof": f"≥ {100 * self.at:g} % of the roof",
            "seconds": f"≤ {number} s",
        }[self.kind]
