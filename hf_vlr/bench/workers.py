"""Processes that share a line's work."""

import os
import threading
from multiprocessing import parent_process


def end_with_parent() -> None:
    """Make this process end when the one that started it is gone, however that ended."""
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
