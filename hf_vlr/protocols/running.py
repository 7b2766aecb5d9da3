"""From a protocol's name and the words of a command line to its result."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hf_vlr.detection.settings import DetectionSettings
from hf_vlr.errors import UserError
from hf_vlr.protocols import options
from hf_vlr.protocols.words import split_words

# name: (settings, module with `run`)
PROTOCOLS: dict[str, tuple[type, str]] = {
    "zero-shot": (options.ZeroShotOptions, "zero_shot"),
    "linear-probe": (options.LinearProbeOptions, "linear_probe"),
    "knn": (options.KnnOptions, "knn"),
    "retrieval": (options.RetrievalOptions, "retrieval"),
    "gallery": (options.GalleryOptions, "gallery"),
    "concepts": (options.ConceptsOptions, "concepts"),
    "queries": (options.QueriesOptions, "queries"),
    "projection": (options.ProjectionOptions, "projection"),
    "downstream": (options.DownstreamOptions, "downstream"),
    "detection": (DetectionSettings, "detection"),
}
FOLDER = "protocol"


def run_protocol(name: str, model: str, words: Sequence[str] = (), out: str | Path | None = None) -> dict[str, Any]:
    """Run one of `PROTOCOLS` on a model and return the content of `protocol.json`.

    model: a folder or Hub id, as `open_encoder` takes it. words: `key=value`, the protocol's own keys and those of a
    recipe (`data.source=…`, `eval.splits=test`, `eval.rule=vl-ltr`), which lie over the recipe that the model was made
    by. out: the folder for results; by default `protocol/NAME` in the model's folder, and nothing is written for a
    model from the Hub. Raises `UserError` for an unknown protocol or key, and as the protocol does.
    """
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name}; there are {', '.join(PROTOCOLS)}")
    kind, module = PROTOCOLS[name]
    # before the seconds that it takes to import and load: a misspelt key is reported at once
    settings, rest = split_words(words, kind)
    from hf_vlr.evaluate import recipe_of
    from hf_vlr.evaluation.encoders import open_encoder

    recipe = recipe_of(model, rest)
    protocol = import_module(f"hf_vlr.protocols.{module}")
    return protocol.run(open_encoder(model, recipe), recipe, settings, output_folder(name, model, out))


def output_folder(name: str, model: str, out: str | Path | None = None) -> Path | None:
    """Where results go: `out`, else `protocol/NAME` in the model's folder; None for a model from the Hub."""
    return Path(out) if out else Path(model) / FOLDER / name if Path(model).is_dir() else None
