"""The files of an export, each written by what it holds."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_vlr.data.shots import shot_names
from hf_vlr.evaluation.encoders import read_tokenizer
from hf_vlr.evaluation.text_file import write_text
from hf_vlr.export.exportable import Exportable
from hf_vlr.export.parity import BATCHES, parity, random_images
from hf_vlr.export.sessions import Session
from hf_vlr.export.tracing import write_onnx

MODEL_FILE, INT8_FILE, TEXT_FILE = "model.onnx", "model.int8.onnx", "text.onnx"
LABELS_FILE, PREPROCESSOR_FILE, EXAMPLE_FILE = "labels.json", "preprocessor.json", "example.py"
EXAMPLE_TEXTS_FILE = "example_texts.py"
EXAMPLES = Path(__file__).with_name("examples")
# of several lengths, so that a traced graph has to know what padding is
SENTENCES = (
    "a photo",
    "a photo of a small bird",
    "it hunts at dusk and sleeps by day",
    "red",
    "a drawing of a house with a red roof beside a river",
    "two dogs",
    "the leaves are narrow and dark green above",
)

Errors = dict[str, dict[str, float]]


def write_image_graph(exportable: Exportable, path: Path) -> Errors:
    """Write images to logits or features, any number of images at a time; returns `parity` on noise."""
    graph, size = exportable.image, exportable.preprocessing.size
    batch = torch.export.Dim("batch", min=1)
    write_onnx(graph, [random_images(2, size)], [{0: batch}], path, f"the tower of {exportable.name}")
    return parity(graph, Session(path), ([random_images(count, size)] for count in BATCHES))


def write_text_graph(exportable: Exportable, path: Path) -> Errors:
    """Write tokens to features, any number of texts of any length; returns `parity` on sentences."""
    graph = exportable.text
    batch = torch.export.Dim("batch", min=1)
    length = torch.export.Dim("length", min=1, max=graph.length)
    open_sizes = {0: batch, 1: length}
    write_onnx(graph, tokens(exportable, 3), [open_sizes] * 2, path, f"the text tower of {exportable.name}")
    return parity(graph, Session(path), (tokens(exportable, count) for count in BATCHES))


def tokens(exportable: Exportable, count: int) -> list[Tensor]:
    """`input_ids` and `attention_mask` [count, L] of some sentences."""
    batch = exportable.encoder.tokenize(list(SENTENCES[-count:]))
    length = exportable.text.length
    return [batch[name][:, :length] for name in exportable.text.inputs]


def write_labels(exportable: Exportable, rule: str, path: Path) -> None:
    """`id2label`, and by class `train_images` and `shot` (many, medium, few under the rule), null where not known."""
    counts = exportable.train_counts
    document = {
        "id2label": {str(index): name for index, name in enumerate(exportable.labels)},
        "train_images": None if counts is None else counts.tolist(),
        "shot": None if counts is None else shot_names(counts, rule),
        "shot_rule": None if counts is None else rule,
    }
    write_json(path, document)


def write_preprocessor(exportable: Exportable, folder: Path) -> None:
    """`preprocessor.json`; with a text graph also the tokenizer's files, and what `preprocessor.json` says of them."""
    document = exportable.preprocessing.as_dict()
    if exportable.text is not None:
        tokenizer = read_tokenizer(exportable.encoder.location)
        tokenizer.save_pretrained(folder)
        document["text"] = {"max_length": exportable.text.length, "pad_token": tokenizer.pad_token}
    write_json(folder / PREPROCESSOR_FILE, document)


def write_examples(exportable: Exportable, folder: Path) -> None:
    """Programs that run what was exported."""
    image = "classes.py.template" if exportable.labels else "features.py.template"
    write_text(folder / EXAMPLE_FILE, (EXAMPLES / image).read_text(encoding="utf-8"))
    if exportable.text is not None:
        write_text(folder / EXAMPLE_TEXTS_FILE, (EXAMPLES / "texts.py.template").read_text(encoding="utf-8"))


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """A JSON file, whole or not at all."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
