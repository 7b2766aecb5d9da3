"""A polite end: a signal is noted, and the loop saves before it stops."""

import signal
import threading
import time
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# launchers pass on what a scheduler has sent to every process already: within these seconds it is the same request
ECHO = 2.0


class StopSignal:
    """Notes SIGTERM and SIGUSR1 while it is entered, and puts the former handlers back after.

    number: of the first signal noted, 0 before. A second one of its kind, more than `ECHO` seconds later, acts as it
    did before, so that a run that hangs can still be ended. Only the main thread of a process can be asked.
    """

    def __init__(self) -> None:
        self.number = 0
        self._noted: dict[int, float] = {}
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def everywhere(self, accelerator: Accelerator) -> int:
        """The signal that any process has noted, 0 for none; all processes must ask at the same step."""
        if accelerator.num_processes == 1:
            return self.number
        return int(accelerator.gather(torch.tensor([self.number], device=accelerator.device)).max())

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        self.number = self.number or number
        if now - self._noted.setdefault(number, now) > ECHO:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
