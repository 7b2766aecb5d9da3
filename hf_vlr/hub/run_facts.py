"""What a folder says of its model: configuration, recipe, measurements, log, texts and their licenses.

Nothing in it is a path of this machine, except `folder` itself and the files' own places.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import metadata_load

from hf_vlr.errors import UserError
from hf_vlr.hub.hub_ids import base_models, hub_id
from hf_vlr.hub.local_paths import LocalPaths, without_kind
from hf_vlr.hub.measurements import Measurement, measured, read_measurements
from hf_vlr.hub.model_parts import ModelParts, read_parts, weight_files
from hf_vlr.hub.processors import TOKENIZERS, check_processor, crop_side
from hf_vlr.hub.reading import read_json, read_lines, read_yaml

RECIPE_FILE, TEXTS_FILE, LOG_FILE, CONVERSION_FILE = "recipe.yaml", "texts.jsonl", "log.jsonl", "conversion.json"
# drawn by this package: nobody's pictures
GENERATED = ("shapes-lt",)


class TextUse(NamedTuple):
    """How many sentences come from one source under one license, "" where none is stated."""

    source: str
    license: str
    sentences: int


@dataclass(frozen=True)
class RunFacts:
    """A model's folder, read.

    config: of the model. parts: its class and parameters. recipe: nested as in `recipe.yaml`, None for a model that no
    recipe made. protocol: what the run itself wrote of its training and first measurement, {} without one.
    measurements: the main one first; of two under the same conditions only the later. last_line: of the log. texts:
    by falling number of sentences; texts_per_class: fewest and most sentences of a class. conversion: the record of a
    converted checkpoint; stub: rows of the card it was written with. tokenizer: whether one lies there. dataset_id,
    data_license: of the training data, None where not known. base_models: ids of what training began from.
    """

    folder: Path
    paths: LocalPaths
    config: dict[str, Any]
    parts: ModelParts
    recipe: dict[str, Any] | None
    protocol: dict[str, Any] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()
    last_line: dict[str, Any] = field(default_factory=dict)
    texts: tuple[TextUse, ...] = ()
    texts_per_class: tuple[int, int] = (0, 0)
    conversion: dict[str, Any] | None = None
    stub: tuple[tuple[str, str], ...] = ()
    image_size: int | None = None
    tokenizer: bool = False
    data_name: str | None = None
    dataset_id: str | None = None
    data_license: str | None = None
    base_models: tuple[str, ...] = ()

    @property
    def recogniser(self) -> bool:
        return self.parts.model == "VLLTRForImageClassification"

    @property
    def language(self) -> bool:
        """Whether words have a say: anchors of a recogniser, the text tower of a dual encoder."""
        return bool(self.config.get("num_anchors")) if self.recogniser else bool(self.config.get("has_text_model", 1))

    @property
    def reads_texts(self) -> bool:
        """Whether the folder can compare an image with any sentence."""
        return bool(self.config.get("has_text_model", True)) and self.tokenizer

    @property
    def classes(self) -> int:
        """Classes of a recogniser; of another model those it was measured on, 0 where it was not."""
        if self.recogniser:
            return len(self.config.get("id2label") or ())
        return len(self.measurements[0].classes) if self.measurements else 0

    @property
    def training(self) -> dict[str, Any]:
        """Steps, seconds, loss and what was chosen, as the run itself wrote them down."""
        return self.protocol.get("training") or {}

    def setting(self, key: str, default: Any = None) -> Any:
        """The recipe's value at a dotted key."""
        value: Any = self.recipe or {}
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return default if value is None else value


def read_run(folder: str | Path, dataset_id: str | None = None) -> RunFacts:
    """The facts of a run's folder, or of a converted checkpoint's.

    dataset_id: the Hub id of the data, where the recipe names a copy on this machine. Raises `UserError` for a folder
    without a complete model of this package, and for files in it that are damaged.
    """
    folder = Path(folder).expanduser()
    check_folder(folder)
    recipe = read_yaml(folder / RECIPE_FILE)
    config, conversion = read_json(folder / "config.json"), read_json(folder / CONVERSION_FILE)
    documents = {path.parent: read_json(path) for path in measured(folder)}
    paths = LocalPaths(folder, [recipe, config, conversion, *documents.values()])
    documents = {where: paths.clean(document) for where, document in documents.items()}
    source = _source(folder / RECIPE_FILE, recipe)
    texts, spread = _texts(folder / TEXTS_FILE, paths)
    return RunFacts(
        folder,
        paths,
        paths.clean(config),
        read_parts(folder),
        paths.clean(recipe),
        _protocol(documents.get(folder)),
        read_measurements(folder, documents),
        _last_line(folder / LOG_FILE),
        texts,
        spread,
        paths.clean(conversion),
        _stub(folder / "README.md", paths) if conversion else (),
        crop_side(folder),
        any((folder / name).is_file() for name in TOKENIZERS),
        without_kind(paths.clean(source)) if source else None,
        dataset_id or hub_id(source),
        _data_license(source),
        base_models(recipe),
    )


def _source(path: Path, recipe: dict[str, Any] | None) -> str | None:
    data = (recipe or {}).get("data") or {}
    source = data.get("source") if isinstance(data, dict) else data
    if source is None or isinstance(source, str):
        return source
    raise UserError(f"{path} is damaged (data.source: {source!r}); mend it, or make it anew")


def check_folder(folder: Path) -> None:
    """`UserError` unless `folder` holds a configuration, weights and a processor."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the folder of a run")
    if (folder / "config.json").is_file() and weight_files(folder):
        read_json(folder / "config.json")
        check_processor(folder)
        return
    if (folder / RECIPE_FILE).is_file():
        raise UserError(f"{folder}: the run is not finished and has no model yet; go on with hf-vlr train … --resume")
    raise UserError(f"{folder}: no model (config.json and model.safetensors); name a folder that hf-vlr train wrote")


def _protocol(document: Any) -> dict[str, Any]:
    found = document.get("protocol") if isinstance(document, dict) else None
    return found if isinstance(found, dict) else {}


def _texts(path: Path, paths: LocalPaths) -> tuple[tuple[TextUse, ...], tuple[int, int]]:
    uses: Counter[tuple[str, str]] = Counter()
    classes: Counter[int] = Counter()
    for line in read_lines(path):
        _check_kinds(path, line, {"source": str, "license": str, "label": int})
        uses[paths.clean(line.get("source") or ""), line.get("license") or ""] += 1
        classes[line.get("label")] += 1
    found = tuple(TextUse(*use, sentences) for use, sentences in uses.most_common())
    return found, (min(classes.values()), max(classes.values())) if classes else (0, 0)


def _last_line(path: Path) -> dict[str, Any]:
    lines = [line for line in read_lines(path) if "loss" in line]
    for line in lines:
        _check_kinds(path, line, {"loss": (int, float), "step": int, "peak_memory_mib": (int, float)})
    return lines[-1] if lines else {}


def _check_kinds(path: Path, line: dict[str, Any], kinds: dict[str, Any]) -> None:
    for name, kind in kinds.items():
        if line.get(name) is not None and not isinstance(line[name], kind):
            raise UserError(f"{path} is damaged ({name}: {line[name]!r}); mend or remove it")


def _stub(path: Path, paths: LocalPaths) -> tuple[tuple[str, str], ...]:
    """The notes and digests of the card that `hf-vlr convert` writes; the rest of it is said anew."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    rows = re.findall(r"^\| (note|SHA-256) \| (.*) \|$", paths.clean_text(text), re.MULTILINE)
    # the record has those of interpolation
    return tuple((name, value) for name, value in rows if not value.startswith("interpolated:"))


def _data_license(source: str | None) -> str | None:
    """What the card of a data set on this machine states."""
    card = Path(source or "").expanduser() / "README.md"
    if not source or not card.is_file():
        return None
    stated = metadata_load(card) or {}
    return stated.get("license_name") or stated.get("license")
