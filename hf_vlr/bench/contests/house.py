"""Beside the lines: how long one waits for the package itself."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from hf_vlr.bench.contest import Study
from hf_vlr.bench.setting import Setting
from hf_vlr.errors import UserError
from hf_vlr.timing import Turns, in_turns

# what is started, as words after the interpreter; the first is what any Python program waits for
STARTS = {
    "an empty program": ("-c", "pass"),
    "import hf_vlr": ("-c", "import hf_vlr"),
    "hf-vlr --help": ("-m", "hf_vlr", "--help"),
    "hf-vlr train --help": ("-m", "hf_vlr", "train", "--help"),
    "import torch": ("-c", "import torch"),
    "transformers' AutoModel and PreTrainedModel": ("-c", "from transformers import AutoModel, PreTrainedModel"),
    "the same after import hf_vlr": ("-c", "import hf_vlr; from transformers import AutoModel, PreTrainedModel"),
}
HELP_AT_MOST, IMPORT_AT_MOST = 1.0, 0.1
TESTS = Path(__file__).resolve().parents[3] / "tests"


def _starts(setting: Setting) -> dict[str, Any]:
    found = in_turns({name: _starting(words) for name, words in STARTS.items()}, Turns(runs=setting["runs"]))
    empty = found["an empty program"].median
    imported = found["import hf_vlr"].median - empty
    helped = found["hf-vlr --help"].median
    return {
        "lines": ["; ".join(f"{name} {timing.median:.2f} s" for name, timing in found.items())],
        "numbers": {name: timing.median for name, timing in found.items()},
        "goals": [
            {"text": f"import hf_vlr ≤ {IMPORT_AT_MOST} s beyond an empty program", "met": imported <= IMPORT_AT_MOST},
            {"text": f"hf-vlr --help ≤ {HELP_AT_MOST} s", "met": helped <= HELP_AT_MOST},
        ],
    }


def _starting(words: tuple[str, ...]) -> Any:
    return lambda: subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)


def _tests(setting: Setting) -> dict[str, Any]:
    """The fast tests on one thread; of a clone, since no wheel has them."""
    if not TESTS.is_dir():
        return {"lines": ["not run: the tests lie in the repository, not in the package"], "numbers": {}, "goals": []}
    # but for those of the file that is being written
    chosen = ["--ignore", "tests/test_scoreboard.py"] if setting.scale == "full" else ["-k", "test_timing"]
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *chosen],
        cwd=TESTS.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    # other packages may say something after pytest's last line
    said = re.findall(r"^.*\b\d+ (?:passed|failed|error).* in [\d.]+s.*$", found.stdout, re.MULTILINE)
    if not said:
        raise UserError(f"the tests did not end (exit status {found.returncode}); see pytest -m 'not slow'")
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)", said[-1])}
    seconds = float(re.search(r" in ([\d.]+)s", said[-1])[1])
    line = f"{', '.join(f'{number:,} {word}' for word, number in counts.items())} in {seconds:.0f} s"
    goal = {"text": "no test fails", "met": counts.keys() <= {"passed", "skipped"}}
    return {"lines": [line], "numbers": {**counts, "seconds": seconds}, "goals": [goal]}


STARTING = Study(
    name="house-start",
    row=0,
    title="starting the package, a process each, medians",
    sizes={"full": {"runs": 5}, "quick": {"runs": 1}},
    measure=_starts,
    devices=("cpu",),
)
TESTING = Study(
    name="house-tests",
    row=0,
    title="the fast tests, on one thread",
    sizes={"full": {}, "quick": {}},
    measure=_tests,
    devices=("cpu",),
    needs=("pytest",),
    extra="dev",
)
