"""Training processes for tests of what befalls them: forked from one process that has imported everything.

Run as a script it reads requests from stdin and answers on stdout, a line of JSON each. A request holds

* `words`: the command line of `hf-vlr`; `processes`: how many ranks run it, by gloo;
* `at`: null, or `[where, number, what]`: the number'th time that a process gets `where`, it does `what` (see below);
* `kill_after`: null, or `[log, seconds]`: SIGKILL to all, so long after the file `log` has grown.

The answer holds `codes`, the exit code of every process, minus the signal's number for one that a signal ended, and
what they `said`.
"""

import gc
import io
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hf_vlr.cli.main import main
from hf_vlr.training import run_folder
from hf_vlr.training.trainer import Trainer

PATIENCE = 120.0


def do(what: str) -> None:
    """`SIGNAL`: to this process; `group SIGNAL`: to all; `worker SIGNAL`: to one that loads data; `limit BYTES`."""
    kind, _, value = what.rpartition(" ")
    if kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(value), resource.RLIM_INFINITY))
    elif kind == "group":
        # by a process of its own, as a scheduler does it: those that load data know their parent
        sender = os.fork()
        if not sender:
            os.killpg(0, signal.Signals[value])
            os._exit(0)
        os.waitpid(sender, 0)
    elif kind == "worker":
        os.kill(multiprocessing.active_children()[0].pid, signal.Signals[value])
    else:
        os.kill(os.getpid(), signal.Signals[value])


def tear(state: Any, file: io.BufferedWriter, what: str) -> None:
    """Write the first half of a checkpoint."""
    whole = io.BytesIO()
    torch.serialization.save(state, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
    do(what)


def arrange(where: str, number: int, what: str) -> None:
    """Let this process do `what` the number'th time (from 1) that it begins a batch, saves or is to be measured."""
    calls = iter(range(1, 10**6))

    def before(whole: Callable) -> Callable:
        def part(*arguments: Any, **settings: Any) -> Any:
            if next(calls) == number:
                do(what)
            return whole(*arguments, **settings)

        return part

    if where == "batch":
        Trainer._batch = before(Trainer._batch)
    elif where == "measurement":
        run_folder.write_measurement = before(run_folder.write_measurement)
    elif where == "save":
        whole = torch.save

        def save(state: Any, file: Any) -> None:
            if next(calls) == number:
                tear(state, file, what)
            else:
                whole(state, file)

        torch.save = save


def start(request: dict[str, Any], rank: int, port: int, group: int, output: int) -> int:
    """Fork one rank; returns its id. `group` is the first one's, 0 for that one itself."""
    child = os.fork()
    if child:
        os.setpgid(child, group or child)
        return child
    os.setpgid(0, group)
    silence = os.open(os.devnull, os.O_RDONLY)
    for number, target in enumerate((silence, output, output)):
        os.dup2(target, number)
    if request["processes"] > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(request["processes"])}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    if request["at"] and rank == 0:
        arrange(*request["at"])
    try:
        main(request["words"])
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        # without tidying up the memory that it shares with the others, which takes longer than a tiny run
        os._exit(end.code)
    raise AssertionError("the command line always exits")


def finish(request: dict[str, Any], children: list[int], said: int) -> dict[str, Any]:
    """Wait for all ranks; one that ends badly ends the others, as a launcher does it."""
    codes: dict[int, int] = {}
    text = b""
    end, deadline = time.monotonic() + PATIENCE, None
    log, seconds = request["kill_after"] or (None, 0.0)
    size = size_of(log)
    while len(codes) < len(children):
        text += heard(said)
        done, status = os.waitpid(-1, os.WNOHANG)
        if done in children:
            codes[done] = os.waitstatus_to_exitcode(status)
        if log and deadline is None and size_of(log) > size:
            deadline = time.monotonic() + seconds
        size = min(size, size_of(log))  # a resumed run cuts its log first
        late = time.monotonic() > min(end, deadline or end)
        failed = any(code < 0 or code == 1 for code in codes.values())
        if (late or failed) and len(codes) < len(children):
            os.killpg(children[0], signal.SIGKILL)
        time.sleep(0.002)
    text += heard(said)
    return {"codes": [codes[child] for child in children], "said": text.decode()}


def size_of(path: str | None) -> int:
    return Path(path).stat().st_size if path and Path(path).exists() else 0


def heard(said: int) -> bytes:
    """What has come through a pipe since the last time."""
    try:
        return os.read(said, 2**20)
    except BlockingIOError:
        return b""


def serve() -> None:
    gc.freeze()  # so that the collector of a child leaves the pages that it shares alone
    for line in sys.stdin:
        request = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        said, output = os.pipe()
        os.set_blocking(said, False)
        children: list[int] = []
        for rank in range(request["processes"]):
            children.append(start(request, rank, port, children[0] if children else 0, output))
        os.close(output)
        print(json.dumps(finish(request, children, said)), flush=True)
        os.close(said)


if __name__ == "__main__":
    serve()
