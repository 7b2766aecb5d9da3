"""Data-loading processes: whom they obey, and how their end is told."""

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hf_vlr.errors import UserError

# what reading an image, a text or a label may raise in a data-loading process, where torch raises it again in ours
RAISED = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError)
CAUGHT = re.compile(r"^Caught (\w+) in DataLoader worker process (\d+)\.")
KILLED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([\w ]+)|exited)")
# the line of a traceback that says what was raised
LAST = re.compile(r"^[\w.]*(?:Error|Exception|Exit|Interrupt)\b.*$", re.MULTILINE)
NAME = f"{UserError.__module__}.{UserError.__name__}: "
HINTS = {
    "Killed": "most often for want of memory: lower data.workers or train.batch_size",
    "Bus error": "most often for want of shared memory: enlarge /dev/shm, or lower data.workers or train.batch_size",
}


@contextmanager
def worker_errors() -> Iterator[None]:
    """A block in which the end of a data-loading process becomes a `UserError` of one line that says its cause.

    An error of the user's keeps its line. A process that is killed may be noticed anywhere in the block, since torch
    raises that from a signal's handler.
    """
    try:
        yield
    except (*RAISED, ValueError) as error:
        told = worker_failure(error)
        if told is None:
            raise
        raise told from error


def worker_failure(error: Exception) -> UserError | None:
    """What an error says of a data-loading process; None for any other error."""
    text = str(error.args[0]) if error.args else ""
    killed, caught = KILLED.search(text), CAUGHT.match(text)
    if killed:
        how = f"was killed ({killed[2].strip()})" if killed[2] else "ended unexpectedly"
        hint = HINTS.get((killed[2] or "Killed").strip(), "data.workers=0 does its work in the training process")
        return UserError(f"a data-loading process, pid {killed[1]}, {how}, {hint}")
    if caught is None:
        return None
    last = (LAST.findall(text) or [text.rstrip().rpartition("\n")[2]])[-1].strip()
    if last.startswith(NAME):
        return UserError(last.removeprefix(NAME))
    return UserError(f"a data-loading process failed: {last}; HF_VLR_DEBUG=1 shows where")


def obey_parent_only(number: int) -> None:
    """Make this data-loading process deaf to SIGTERM from anyone but the process it works for.

    A scheduler that ends a job signals all of its processes; the one that trains saves first, and needs its data.
    """
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
