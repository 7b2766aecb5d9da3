"""The files of one commit, by their paths in the repository: as they lie there, or as they are made here."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from hf_vlr import __version__
from hf_vlr.hub.card import render_card
from hf_vlr.hub.eval_results import eval_result_files
from hf_vlr.hub.measurements import METRICS_FILE, PER_CLASS_FILE, REPORT_FILE, measured
from hf_vlr.hub.model_parts import weight_files
from hf_vlr.hub.plots import plots
from hf_vlr.hub.reading import read_json, read_text
from hf_vlr.hub.remote_code import remote_code, with_auto_map
from hf_vlr.hub.run_facts import CONVERSION_FILE, RECIPE_FILE, TEXTS_FILE, RunFacts

CARD = "README.md"
# what a push has uploaded, so that the next one removes what it no longer does
MANIFEST = "push.json"
PREDICTIONS = "predictions.npz"
# what a tokenizer and a processor of transformers are saved as
PROCESSOR = (
    "processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "spiece.model",
    "tokenizer.model", "sentencepiece.bpe.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
# settings, in which a path can stand; the other files of a processor are vocabulary
SETTINGS = ("_config.json", "_map.json")


@dataclass(frozen=True)
class Bundle:
    """What is pushed: by path in the repository a file of this machine, or the bytes of one."""

    files: Mapping[str, Path | bytes]

    def size(self, path: str) -> int:
        """Bytes of a file."""
        content = self.files[path]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    def read(self, path: str) -> bytes:
        """The content of a file."""
        content = self.files[path]
        return content if isinstance(content, bytes) else content.read_bytes()


def make_bundle(facts: RunFacts, repo_id: str, license: str | None = None, predictions: bool = False) -> Bundle:
    """All files of a repository for a model, the card among them.

    Weights, vocabularies and this package's modeling files go as they are; what else is text without the paths of this
    machine. Checkpoints never go; predictions where asked for; class texts where each of them states a license.
    """
    files: dict[str, Path | bytes] = {}
    auto_map, code = remote_code(facts.parts.model)
    files["config.json"] = _dumped(with_auto_map(facts.config, auto_map))
    files |= {path.name: path for path in weight_files(facts.folder)}
    files |= code
    files |= dict(_processor(facts))
    files |= dict(_records(facts))
    files |= plots(facts)
    files |= eval_result_files(facts)
    if predictions:
        files |= {path.relative_to(facts.folder).as_posix(): path for path in _predictions(facts)}
    card = render_card(facts, repo_id, sorted(files), license)
    files[CARD] = card.encode()
    files[MANIFEST] = _dumped({"hf_vlr": __version__, "files": sorted([*files, MANIFEST])})
    return Bundle(dict(sorted(files.items())))


def _processor(facts: RunFacts) -> Iterator[tuple[str, Path | bytes]]:
    for name in PROCESSOR:
        path = facts.folder / name
        if path.is_file():
            yield name, _scrubbed(facts, path) if name.endswith(SETTINGS) else path


def _records(facts: RunFacts) -> Iterator[tuple[str, Path | bytes]]:
    """Recipe, conversion, texts and measurements."""
    if facts.recipe is not None:
        text = yaml.safe_dump(dict(facts.recipe), sort_keys=False, allow_unicode=True, width=10_000)
        yield RECIPE_FILE, text.encode()
    if facts.conversion is not None:
        yield CONVERSION_FILE, _dumped(facts.conversion)
    if facts.texts and all(use.license for use in facts.texts):
        yield TEXTS_FILE, _scrubbed(facts, facts.folder / TEXTS_FILE)
    for metrics in measured(facts.folder):
        for name in (METRICS_FILE, PER_CLASS_FILE, REPORT_FILE):
            path = metrics.with_name(name)
            if path.is_file():
                yield path.relative_to(facts.folder).as_posix(), _scrubbed(facts, path)


def _predictions(facts: RunFacts) -> list[Path]:
    found = [path.with_name(PREDICTIONS) for path in measured(facts.folder)]
    return [path for path in found if path.is_file()]


def _scrubbed(facts: RunFacts, path: Path) -> Path | bytes:
    """The file itself, or its bytes without paths of this machine where it has any."""
    if path.suffix != ".json":
        text = read_text(path)
        clean = facts.paths.clean_text(text)
        return path if clean == text else clean.encode()
    value = read_json(path)
    clean_value = facts.paths.clean(value)
    return path if clean_value == value else _dumped(clean_value)


def _dumped(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
