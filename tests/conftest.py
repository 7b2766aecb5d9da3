"""The environment of every test, set before anything is imported: no network, one thread, own caches."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_CACHE = tempfile.TemporaryDirectory(prefix="hf_vlr-tests-")

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HOME": _CACHE.name,
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "COLUMNS": "110",
}
os.environ.pop("HF_VLR_DEBUG", None)


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Builders of tiny models, processors and inputs (`tests/tiny.py`), loaded when a test first asks for them."""
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def trained(tmp_path):
    """Trains a tiny model for two steps on a built dataset, by its own texts; returns the run's folder."""
    from hf_vlr.training.options import Recipe
    from hf_vlr.training.recipe import override_recipe
    from hf_vlr.training.run import run

    def train(source: Path, *words: str) -> Path:
        small = ["data.texts=own", "data.image_size=32", "data.max_text_length=16", "vision=scratch:resnet"]
        small += ["model.projection_dim=16", "model.num_anchors=4", "train.batch_size=4", "train.steps=2"]
        words = [f"data.source={source}", *small, f"output={tmp_path / 'run'}", *words]
        return run(override_recipe(Recipe(task="cvlp"), words))

    return train


@pytest.fixture(scope="session")
def children() -> Iterator[Callable[..., tuple[list[int], str]]]:
    """Runs `hf-vlr WORDS` in processes of their own (`tests/children.py`); gives their exit codes and what they said.

    They are forked from one that has imported everything, which is the longest part of a tiny run.
    """
    command = [sys.executable, str(Path(__file__).with_name("children.py"))]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(
        *words: str,
        processes: int = 1,
        at: tuple[str, int, str] | None = None,
        kill_after: tuple[str, float] | None = None,
    ) -> tuple[list[int], str]:
        request = {"words": words, "processes": processes, "at": at, "kill_after": kill_after}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        answer = json.loads(server.stdout.readline())
        return answer["codes"], answer["said"]

    yield run
    server.stdin.close()
    server.wait()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests that want a machine to themselves out unless they are asked for by name: `-m soak`, `-m perf`."""
    for name in ("soak", "perf"):
        if name not in config.option.markexpr:
            unasked = [item for item in items if item.get_closest_marker(name)]
            config.hook.pytest_deselected(items=unasked)
            items[:] = [item for item in items if item not in unasked]


PARITY: list[tuple[str, str, float]] = []


@pytest.fixture(scope="session")
def parity() -> list[tuple[str, str, float]]:
    """Where tests put (architecture, output, relative error); printed as a table when the run is over."""
    return PARITY


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not PARITY:
        return
    terminalreporter.section("parity: relative error against the original, float32")
    columns = list(dict.fromkeys(architecture for architecture, _, _ in PARITY))
    errors = {(architecture, output): error for architecture, output, error in PARITY}
    terminalreporter.write_line("| | " + " | ".join(columns) + " |")
    terminalreporter.write_line("|---|" + "---:|" * len(columns))
    for output in dict.fromkeys(output for _, output, _ in PARITY):
        cells = (f"{errors[one, output]:.1e}" if (one, output) in errors else "" for one in columns)
        terminalreporter.write_line(f"| {output} | " + " | ".join(cells) + " |")


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Chromium without a window; the test is skipped where it cannot be had."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()
