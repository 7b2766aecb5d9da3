"""A sitting at the scoreboard: several lines one after the other, each kept as soon as it is measured."""

import hashlib
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from filelock import FileLock, Timeout

from hf_vlr.bench.contest import Contest, Study
from hf_vlr.bench.machine import hardware
from hf_vlr.bench.results import check_machine, keep, results_path
from hf_vlr.bench.running import run
from hf_vlr.bench.setting import Setting
from hf_vlr.bench.table import told
from hf_vlr.disk import refused
from hf_vlr.errors import UserError, first_line

# what peers and libraries raise where they cannot do a piece of work: memory, versions, files
FAILURES = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    OSError,
    MemoryError,
    ImportError,
    subprocess.SubprocessError,
)
ENDING = (signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGTERM,)


def measure_lines(
    entries: Sequence[Contest | Study],
    out: Path,
    say: Callable[[str], None],
    *,
    device: torch.device,
    threads: int | None = None,
    seed: int = 0,
    scale: str = "full",
    with_memory: bool = True,
) -> Path:
    """Measure lines into the machine's file of the folder `out`, say what was found, and return the file's path.

    A line that fails is said and left out; the others are measured all the same.

    Raises:
        UserError: more threads than the machine has cores; a file that cannot be written, is another machine's, or is
            being written by another sitting; at the end, if a line failed. The first three before anything is measured.
    """
    found = hardware(device)
    if threads is not None and threads > found["cores"]:
        raise UserError(f"--threads {threads}: this machine has {found['cores']} cores")
    path, failed = results_path(out, found, scale), []
    with alone(path), ended_by_signals():
        check_machine(path, found)
        for entry in entries:
            size = entry.size_for(scale, device.type)
            setting = Setting(device, threads or torch.get_num_threads(), size, scale, seed)
            try:
                record = run(entry, setting, with_memory=with_memory)
            except FAILURES as error:
                failed.append(entry.name)
                say(f"{entry.row or '-'}  {entry.name}: failed ({type(error).__name__}: {first_line(error)})")
                continue
            for line in told(record):
                say(line)
            if not keep(path, found, record):
                say(f"   {path} keeps what was measured earlier")
    if failed:
        raise UserError(f"not measured, for the reasons above: {', '.join(failed)}; the other lines are in {path}")
    return path


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """A block in which no other process measures into `path`: two at once would slow each other down, and lose lines.

    Raises UserError where one does, or where nothing can be written into its folder.
    """
    # not beside the file: a folder of results may be part of a package
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    place = Path(tempfile.gettempdir()) / f"hf-vlr-bench-{digest}.lock"
    lock = FileLock(place, timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            lock.acquire()
    except Timeout as error:
        raise UserError(
            f"another hf-vlr bench measures into {path}; wait for it: two at once slow each other down"
        ) from error
    except OSError as error:
        raise refused(path, error.errno or 0, "name another folder with --out") from error
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
        lock.release()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """A block that SIGTERM and SIGHUP leave as Ctrl-C does, so that processes started within it are ended too.

    The exit status is 128 + the signal's number. Only the main thread can be asked; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
