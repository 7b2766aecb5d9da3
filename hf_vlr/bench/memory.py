"""The most memory that one call needs beyond what was there before it.

On an accelerator its own allocator tells. On a CPU a process of its own is asked, because the memory that earlier calls
left to a process hides what a later one takes: it calls twice, and the second call's high-water mark counts.
"""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from hf_vlr.bench.contest import Contest, Contestant
from hf_vlr.bench.setting import Setting
from hf_vlr.errors import UserError
from hf_vlr.timing import torch_threads

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# freed memory goes back to the system at once: what a call takes is then what it needs
ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def peak_mib(contest: Contest, contestant: Contestant, setting: Setting) -> float | None:
    """MiB above what inputs and weights take; None where the system does not tell (not Linux)."""
    if not setting.on_cpu:
        return _of_accelerator(contestant, setting.device)
    if not RESET.exists():
        return None
    asked = {"contest": contest.name, "contestant": contestant.name, "scale": setting.scale}
    words = json.dumps({**asked, "threads": setting.threads, "seed": setting.seed})
    found = subprocess.run(
        [sys.executable, "-m", "hf_vlr.bench.memory", words],
        env={**os.environ, **ALLOCATION},
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode != 0:
        last = (found.stderr.strip().splitlines() or [f"exit status {found.returncode}"])[-1]
        raise UserError(f"{contest.name}: the memory of {contestant.name} could not be measured ({last})")
    return json.loads(found.stdout.strip().splitlines()[-1])


def _of_accelerator(contestant: Contestant, device: torch.device) -> float:
    contestant.call()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    contestant.call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _of_this_process(contestant: Contestant) -> float:
    contestant.call()
    gc.collect()
    RESET.write_text("5")  # the high-water mark falls to what is there now
    before = _kib("VmRSS")
    contestant.call()
    return (_kib("VmHWM") - before) / 1024


def _kib(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


def main(words: str) -> None:
    """Print the MiB of one contestant of one contest, as a process of its own is asked."""
    from hf_vlr.bench.board import contest_named

    asked = json.loads(words)
    contest = contest_named(asked["contest"])
    cpu = torch.device("cpu")
    setting = Setting(cpu, asked["threads"], contest.size_for(asked["scale"], "cpu"), asked["scale"], asked["seed"])
    with torch_threads(setting.threads):
        contestant = next(one for one in contest.enter(setting) if one.name == asked["contestant"])
        print(json.dumps(_of_this_process(contestant)))


if __name__ == "__main__":
    main(sys.argv[1])
