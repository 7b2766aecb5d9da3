"""`hf-vlr export`: a model as a folder that a server reads, written whole or not at all."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hf_vlr import __version__
from hf_vlr.convert.output import free_folder
from hf_vlr.data.source import ImageSource
from hf_vlr.disk import writing
from hf_vlr.errors import UserError
from hf_vlr.evaluate import recipe_of
from hf_vlr.evaluation.arrays import read_names
from hf_vlr.evaluation.preprocessing import PROBES, probe
from hf_vlr.export.accuracy import FLOAT, INT8, Served, measured_change
from hf_vlr.export.exportable import Exportable, named_classes, open_exportable
from hf_vlr.export.extra import require_extra
from hf_vlr.export.int8 import calibration_batches, fitting_kind, quantise, surely_static
from hf_vlr.export.latency import measure_files
from hf_vlr.export.options import ExportOptions
from hf_vlr.export.sessions import Session
from hf_vlr.export.tracing import OPSET
from hf_vlr.export.writing import (
    INT8_FILE,
    LABELS_FILE,
    MODEL_FILE,
    TEXT_FILE,
    write_examples,
    write_image_graph,
    write_json,
    write_labels,
    write_preprocessor,
    write_text_graph,
)
from hf_vlr.hub.local_paths import LocalPaths
from hf_vlr.training.options import Recipe
from hf_vlr.training.run_data import labelled, load_split

RECORD_FILE = "export.json"
SCHEMA = 1
# timed images of an int8 model whose latency is not asked for
FEW_RUNS = 20
PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript")


def export_model(
    location: str,
    out: str | Path,
    options: ExportOptions = ExportOptions(),  # noqa: B008 (frozen)
    *,
    overrides: Sequence[str] = (),
    class_names: str | None = None,
) -> dict[str, Any]:
    """Write the folder `out` of the recogniser or dual encoder at `location`; returns what `export.json` holds.

    overrides: settings of a recipe. `data.source=` among them gives the images that int8 is calibrated and measured on,
    and a dual encoder's classes, spoken by `data.texts`. class_names: in its place a file with a name a line, for a
    dual encoder without data.

    `model.onnx` has the input pixel_values [B, 3, S, S], float32, for every B, and the outputs of
    `hf_vlr.export.graphs`; a dual encoder's text tower is `text.onnx`. Beside them lie `labels.json`,
    `preprocessor.json`, the tokenizer, programs that run the files, and `export.json`. With `options.int8` also
    `model.int8.onnx`. Raises `UserError` without the extra `export`, for a folder that holds something, for a model
    that cannot be exported and for what does not fit it.
    """
    require_extra()
    if not str(out):
        raise UserError("--out is empty: name a new folder")
    folder = free_folder(out)
    with_data = any(word.startswith("data.source=") for word in overrides)
    if class_names is not None:
        # the texts that the run was trained with are for other classes
        overrides = ["data.texts=null", *overrides]
    recipe = recipe_of(location, overrides)
    exportable = open_exportable(location, recipe, _classes(recipe, with_data, class_names))
    if options.int8 and not with_data:
        _check_calibration(options.kind == "static" or (options.kind == "auto" and surely_static(exportable.image)))
    beginning = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent)) / folder.name
    try:
        with writing(folder, "mend that and export again"):
            beginning.mkdir()
            record = _write(exportable, beginning, options, recipe, with_data)
            # a served folder tells nobody where its data lay
            record = LocalPaths(Path(location), [record, location, list(overrides)]).clean(record)
            write_json(beginning / RECORD_FILE, record)
            if folder.is_dir():
                folder.rmdir()
            beginning.rename(folder)
    finally:
        shutil.rmtree(beginning.parent, ignore_errors=True)
    return record


def _classes(recipe: Recipe, with_data: bool, class_names: str | None) -> ImageSource | None:
    """The classes that a dual encoder is given; a recogniser has its own."""
    if class_names is not None:
        if with_data:
            raise UserError("--class-names is for an export without --data, which has classes of its own")
        return named_classes(_distinct(class_names))
    return labelled(load_split(recipe, "train")) if with_data else None


def _distinct(file: str) -> list[str]:
    """The names in a file, a name a line, without empty lines; `UserError` for fewer than two and for one twice."""
    names = [name for name in map(str.strip, read_names(file)) if name]
    if len(names) < 2:
        found = "one class name" if names else "no class names"
        raise UserError(f"{file} has {found}; give two or more, a name a line")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{file} names {twice[0]!r} more than once; give every class once")
    return names


def _check_calibration(static: bool) -> None:
    """`UserError` for a static int8 model of an export without data."""
    if static:
        raise UserError(
            "--int8 of a tower of convolutions is calibrated on training images: add --data SOURCE "
            "(or int8.kind=dynamic, which leaves convolutions in float32)"
        )


def _write(
    exportable: Exportable, folder: Path, options: ExportOptions, recipe: Recipe, with_data: bool
) -> dict[str, Any]:
    """Everything but `export.json`, which is returned."""
    parities = {MODEL_FILE: write_image_graph(exportable, folder / MODEL_FILE)}
    if exportable.text is not None:
        parities[TEXT_FILE] = write_text_graph(exportable, folder / TEXT_FILE)
    if exportable.labels:
        write_labels(exportable, recipe.eval.rule, folder / LABELS_FILE)
    write_preprocessor(exportable, folder)
    write_examples(exportable, folder)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "model": exportable.name,
        "kind": exportable.kind,
        "opset": OPSET,
        "versions": {"hf_vlr": __version__} | {name: version(name) for name in PACKAGES},
        "shapes": _shapes(folder, [*parities]),
        "parity": parities,
        "pixels": {"max": pixel_difference(exportable)},
        "texts": None if exportable.subject is None else exportable.subject.texts,
    }
    if options.int8:
        record["int8"] = _write_int8(exportable, folder, options, recipe, with_data)
    if options.int8 or options.benchmark:
        runs = options.runs if options.benchmark else min(options.runs, FEW_RUNS)
        small = folder / INT8_FILE if options.int8 else None
        timed = measure_files(exportable, folder / MODEL_FILE, small, runs=runs, threads=options.threads)
        record["latency"] = timed.as_dict()
    record["files"] = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return record


def _write_int8(
    exportable: Exportable, folder: Path, options: ExportOptions, recipe: Recipe, with_data: bool
) -> dict[str, Any]:
    """The int8 model and what is known of it."""
    source, target = folder / MODEL_FILE, folder / INT8_FILE
    kind = fitting_kind(source) if options.kind == "auto" else options.kind
    _check_calibration(kind == "static" and not with_data)
    batches = ()
    if kind == "static":
        train = labelled(load_split(recipe, "train"))
        batches = calibration_batches(train, exportable.encoder.transform, options.images)
    quantise(source, target, kind, batches, reduce_range=options.reduce_range)
    told: dict[str, Any] = {"kind": kind, "reduce_range": options.reduce_range}
    if kind == "static":
        told["calibration_images"] = min(options.images, len(train))
    told["bytes"] = {FLOAT: _size(source), INT8: _size(target)}
    if with_data and exportable.subject is not None:
        told["accuracy"] = _accuracy(exportable, source, target, options, recipe)
    return told


def _accuracy(
    exportable: Exportable, model: Path, small: Path, options: ExportOptions, recipe: Recipe
) -> dict[str, Any]:
    """`measured_change` on the first of `eval.splits`."""
    test = labelled(load_split(recipe, recipe.eval.splits[0]))
    if exportable.kind == "zero-shot classifier" and list(test.class_names) != list(exportable.labels):
        raise UserError(f"eval.splits={test.split}: its classes are not those of the exported classifier")
    sessions = {FLOAT: Session(model, options.threads), INT8: Session(small, options.threads)}
    served = Served(exportable.subject, sessions, exportable.predictors, min(recipe.eval.batch_size, 64))
    return measured_change(served, recipe, test, options.margin)


def pixel_difference(exportable: Exportable) -> float:
    """The largest difference of a pixel between the evaluation's transform and `preprocessor.json`."""
    ours, theirs = exportable.preprocessing.pixels, exportable.encoder.transform
    pictures = [probe(size) for size in PROBES]
    return max(float(np.abs(ours(picture) - theirs(picture).numpy()).max()) for picture in pictures)


def _shapes(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Inputs and outputs of each file, an open size by its name."""
    sessions = {name: Session(folder / name) for name in names}
    return {name: {"inputs": one.inputs, "outputs": one.outputs} for name, one in sessions.items()}


def _size(path: Path) -> int:
    """Bytes of a model, with the weights that lie beside it."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
