"""Data-loading processes: whom they obey, and how their end is told."""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from hf_vlr.errors import UserError

# what reading an image, a text or a label may raise in a data-loading process, where torch raises it again in ours
RAISED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
CAUGHT = re.compile(r"^Caught (\w+) in DataLoader worker process (\d+)\.")
KILLED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([\w ]+)|exited)")
# the line of a traceback that says what was raised
LAST = re.compile(r"^[\w.]*(?:Error|Exception|Exit|Interrupt)\b.*$", re.MULTILINE)
NAME = f"{UserError.__module__}.{UserError.__name__}: "
PATIENCE = 1.0
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
    except RAISED as error:
        told = worker_failure(error)
        if told is None:
            raise
        raise told from error


def worker_failure(error: BaseException) -> UserError | None:
    """What an error says of a data-loading process; None for any other error."""
    killed = [found for found in map(KILLED.search, _texts(error)) if found]
    if killed:
        # torch notices one death in several ways, of which one knows the signal
        told = max(killed, key=lambda found: found[2] is not None)
        name = (told[2] or "").strip()
        how = f"was killed ({name})" if name else "ended unexpectedly"
        hint = HINTS.get(name or "Killed", "data.workers=0 does its work in the training process")
        return UserError(f"a data-loading process, pid {told[1]}, {how}, {hint}")
    text = next(_texts(error))
    if not CAUGHT.match(text):
        return None
    last = (LAST.findall(text) or [text.rstrip().rpartition("\n")[2]])[-1].strip()
    if last.startswith(NAME):
        return UserError(last.removeprefix(NAME))
    return UserError(f"a data-loading process failed: {last}; HF_VLR_DEBUG=1 shows where")


def _texts(error: BaseException) -> Iterator[str]:
    """The text of an error and of those that led to it."""
    found: BaseException | None = error
    while found is not None:
        yield str(found.args[0]) if found.args else ""
        found = found.__cause__ or found.__context__


def lost_connection(error: Exception) -> UserError:
    """What a broken connection to a data-loading process says: most often that it ended while it handed a batch over.

    Torch tells of that death in a moment, from a signal's handler, and knows more about it.
    """
    told = worker_failure(error)
    if told is not None:
        return told
    time.sleep(PATIENCE)
    return UserError(f"a data-loading process ended while it handed over a batch ({error}), {HINTS['Killed']}")


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
