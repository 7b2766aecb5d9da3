"""What one image costs: torch, onnxruntime and int8 in turns on this machine.

`measure(MODEL)` exports into a temporary folder and times; `measure_engines` times what is there.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from hf_vlr.errors import UserError
from hf_vlr.evaluate import recipe_of
from hf_vlr.evaluation.preprocessing import probe
from hf_vlr.export.exportable import Exportable, open_exportable
from hf_vlr.export.extra import require_extra
from hf_vlr.export.int8 import fitting_kind, quantise
from hf_vlr.export.parity import random_images
from hf_vlr.export.sessions import Session
from hf_vlr.export.writing import MODEL_FILE, write_image_graph
from hf_vlr.hardware import processor
from hf_vlr.timing import Timing, Turns, in_turns, torch_threads

# width and height of the picture that is preprocessed
PICTURE = (640, 480)
# an engine's turn: calls that are not timed, because the one before has left its data in the caches, and timed ones
UNTIMED, TIMED = 1, 5
TORCH, FLOAT32, INT8 = "torch float32, eager", "onnxruntime float32", "onnxruntime int8"

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Engine:
    """One way to serve a model. forward: pixels [1, 3, S, S] to an answer. prepare: an RGB picture to [3, S, S]."""

    forward: Callable[[Pixels], Any]
    prepare: Callable[[Image.Image], Pixels]


@dataclass(frozen=True)
class Latency:
    """Warm latency of single images in milliseconds, by engine.

    forward: from pixels to an answer. whole: from a decoded picture of `PICTURE` pixels to an answer. runs: timed
    images of each engine, after `warmup`. threads: of each engine. load: what else ran before, in processes that
    wanted the processor (the mean of one minute), None where the system does not tell.
    """

    forward: Mapping[str, Timing]
    whole: Mapping[str, Timing]
    runs: int
    warmup: int
    threads: int
    image_size: int
    processor: str
    cores: int
    load: float | None
    versions: Mapping[str, str]

    def ratio(self, engine: str, whole: bool = False) -> float:
        """How many times as fast an engine is as torch, by medians."""
        timings = self.whole if whole else self.forward
        return next(iter(timings.values())).median / timings[engine].median

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def rows(self) -> list[tuple[str, ...]]:
        """A table for `hf_vlr.cli.output.say_table`; its first row says what the columns are."""
        rows = [("milliseconds", "median", "p95", "best", f"against {next(iter(self.forward))}")]
        for title, timings, whole in (("from pixels", self.forward, False), ("from a picture", self.whole, True)):
            rows.append((title, "", "", "", ""))
            for name, timing in timings.items():
                numbers = (f"{value:.2f}" for value in (timing.median, timing.p95, timing.best))
                rows.append((f"  {name}", *numbers, f"{self.ratio(name, whole):.2f} times as fast"))
        return rows

    def conditions(self) -> str:
        """How it was measured, in one line."""
        load = "" if self.load is None else f", load {self.load:.1f} before"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        used = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"one image of {self.image_size} x {self.image_size} at a time, {self.runs} timed after {self.warmup}, "
            f"{TIMED} in turn, {threads} on {self.cores} cores ({self.processor}{load}), {used}; "
            f"the picture is decoded, of {PICTURE[0]} x {PICTURE[1]}"
        )


def measure(model: str, *, runs: int = 50, warmup: int = 5, threads: int | None = None) -> Latency:
    """Export the model of a folder or Hub id into a temporary folder and time it: torch, onnxruntime, and int8.

    The int8 model of a convolutional tower is calibrated on noise here: its time is that of any other, its answers are
    of no use, and it is thrown away. `threads`: of every engine, by default as many as torch has. Raises `UserError`
    without the extra `export` and for a model that cannot be exported.
    """
    require_extra()
    exportable = open_exportable(model, recipe_of(model, ()))
    with tempfile.TemporaryDirectory(prefix="hf_vlr-") as folder:
        path, small = Path(folder) / MODEL_FILE, Path(folder) / "model.int8.onnx"
        write_image_graph(exportable, path)
        noise = repeat(random_images(4, exportable.preprocessing.size).numpy(), 1)
        quantise(path, small, fitting_kind(path), noise, reduce_range=False)
        return measure_files(exportable, path, small, runs=runs, warmup=warmup, threads=threads)


def measure_files(
    exportable: Exportable,
    model: Path,
    int8: Path | None = None,
    *,
    runs: int = 50,
    warmup: int = 5,
    threads: int | None = None,
) -> Latency:
    """Time a model in torch, its ONNX file, and its int8 file where there is one."""
    threads = threads or torch.get_num_threads()
    prepare = exportable.preprocessing.pixels
    engines = {TORCH: torch_engine(exportable), FLOAT32: Engine(_forward(Session(model, threads)), prepare)}
    if int8 is not None:
        engines[INT8] = Engine(_forward(Session(int8, threads)), prepare)
    return measure_engines(engines, exportable.preprocessing.size, runs=runs, warmup=warmup, threads=threads)


def torch_engine(exportable: Exportable) -> Engine:
    """The model as it is used without an export: its own forward, and the evaluation's transform."""
    encoder, graph = exportable.encoder, exportable.image
    whole = exportable.kind.startswith("recogniser")

    def forward(pixels: Pixels) -> Any:
        images = torch.from_numpy(pixels)
        with torch.inference_mode():
            return encoder.model(pixel_values=images) if whole else graph(images)

    return Engine(forward, lambda picture: encoder.transform(picture).numpy())


def measure_engines(
    engines: Mapping[str, Engine], size: int, *, runs: int = 50, warmup: int = 5, threads: int = 1
) -> Latency:
    """Time engines in turns, so that what else the machine does meets all of them alike.

    In every round each engine has a turn of `UNTIMED` + `TIMED` calls, and the next round begins with the next engine.
    `runs` calls of each are kept. Raises `UserError` for fewer than one run or thread.
    """
    if min(runs, threads) < 1 or warmup < 0:
        raise UserError("latency needs at least one run and one thread")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    pixels, picture = random_images(1, size).numpy(), probe(PICTURE)
    forward = {name: _call(engine.forward, pixels) for name, engine in engines.items()}
    whole = {name: _whole(engine, picture) for name, engine in engines.items()}
    turns = Turns(runs, warmup, UNTIMED, TIMED)
    with torch_threads(threads):
        timings = [
            {name: timing * 1e3 for name, timing in in_turns(calls, turns).items()} for calls in (forward, whole)
        ]
    return Latency(
        *timings,
        runs=runs,
        warmup=warmup,
        threads=threads,
        image_size=size,
        processor=processor(),
        cores=os.cpu_count() or 1,
        load=load,
        versions={name: version(name) for name in ("torch", "onnxruntime")},
    )


def _call(forward: Callable[[Pixels], Any], pixels: Pixels) -> Callable[[], Any]:
    return lambda: forward(pixels)


def _whole(engine: Engine, picture: Image.Image) -> Callable[[], Any]:
    return lambda: engine.forward(engine.prepare(picture)[None])


def _forward(session: Session) -> Callable[[Pixels], Any]:
    return lambda pixels: session.run(pixel_values=pixels)
