"""A model as the demonstration shows it: towers where they are fast, everything after them on the CPU.

Letters: `N` images, `S` sentences, `C` classes, `D` width of the common space.
"""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.utils import cached_file

from hf_vlr.data.batches import Collator
from hf_vlr.data.shots import shot_rule
from hf_vlr.demo.accelerator import lent, tower_device
from hf_vlr.demo.language import class_vector, usual_template
from hf_vlr.demo.recognition import Classes, Floats, Opinion, attended
from hf_vlr.errors import UserError
from hf_vlr.evaluation.encoders import OWN_TYPES, read_config, read_own, read_tokenizer
from hf_vlr.modeling import UniCLModel, VLLTRForImageClassification
from hf_vlr.modeling.towers import text_length

METRICS_FILE = "metrics.json"
# images that go through a tower together
BATCH = 16
NO_TEXT_TOWER = "This checkpoint has no text tower, so it cannot read texts: show a model that was trained with texts."


class Exhibit:
    """A recogniser or a dual encoder of this package, ready to be asked.

    location: folder or Hub id. encoder: the dual encoder. head: of a recogniser, else None. classes: those it was
    trained on, None for a dual encoder. scale: inverse temperature τ of its cosines. metrics: `metrics.json` beside the
    weights, {} without.
    """

    def __init__(
        self, location: str, model: UniCLModel | VLLTRForImageClassification, processor: Any, metrics: dict[str, Any]
    ) -> None:
        self.location, self.processor, self.metrics = location, processor, metrics
        self.model = model.eval()
        self.recogniser = isinstance(model, VLLTRForImageClassification)
        self.encoder: UniCLModel = model.vlltr if self.recogniser else model
        self.head: Any = model.head if self.recogniser else None
        self.config = model.config
        self.scale = self.encoder.logit_scale.exp().item()
        self.device = tower_device()
        # a ZeroGPU Space has its GPU only within these two, so the head stays where it is
        self.encoder.to(self.device)
        self._see, self._read = lent(self._encode_pixels), lent(self._encode_tokens)

    @property
    def name(self) -> str:
        """What the model is called: the last part of its location, with the folder it lies in if it is local."""
        path = Path(self.location)
        return "/".join(path.resolve().parts[-2:]) if path.is_dir() else self.location

    @property
    def reads_texts(self) -> bool:
        """Whether there is a text tower."""
        return self.encoder.text_model is not None

    @property
    def has_language(self) -> bool:
        """Whether there are anchor sentences that images attend to."""
        return self.recogniser and self.config.num_anchors > 0

    @cached_property
    def classes(self) -> Classes | None:
        """The classes of a recogniser; groups are by the rule its metrics were measured under, by default `oltr`."""
        if not self.recogniser:
            return None
        names = [str(self.config.id2label[index]) for index in range(self.config.num_labels)]
        return Classes.of(names, self.head.class_counts.numpy().astype(np.int64), self.rule)

    @property
    def rule(self) -> str:
        """The name of the shot rule."""
        rule = self.metrics.get("protocol", {}).get("rule", {})
        name = str(rule.get("name", "oltr")) if isinstance(rule, dict) else "oltr"
        try:
            return shot_rule(name).name
        except UserError:
            return "oltr"

    @cached_property
    def template(self) -> str:
        """A wording for zero-shot questions, as the model's own sentences have it."""
        if not self.has_language:
            return usual_template([], [])
        return usual_template(self.classes.names, [self.sentences(label) for label in range(self.config.num_labels)])

    @cached_property
    def known_vectors(self) -> Floats:
        """One unit vector per class [C, D]: the normalised mean of its normalised anchors; zero without one.

        Raises `UserError` for a checkpoint without anchors.
        """
        if not self.has_language:
            raise UserError("This checkpoint keeps no sentences of its classes, so none can be compared with them.")
        anchors, mask = self.head.anchors.numpy(), self.head.anchor_mask.numpy()
        vectors = np.zeros((len(anchors), anchors.shape[2]), dtype=np.float32)
        for label in np.flatnonzero(mask.any(axis=1)).tolist():
            vectors[label] = class_vector(anchors[label, mask[label]])
        return vectors

    def sentences(self, label: int) -> list[str]:
        """The anchor sentences of a class that the checkpoint keeps."""
        real = np.flatnonzero(self.head.anchor_mask[label].numpy()).tolist()
        return list(filter(None, (self.head.sentence(label, anchor) for anchor in real)))

    def image_features(self, pictures: Sequence[Image.Image]) -> Floats:
        """Projected features [N, D] of pictures, not normalised, on the CPU."""
        batches = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
        pixels = [self.processor(images=list(batch), return_tensors="pt")["pixel_values"] for batch in batches]
        return np.concatenate([self._see(batch) for batch in pixels])

    def text_features(self, sentences: Sequence[str]) -> Floats:
        """Projected features [S, D] of sentences, not normalised. Raises `UserError` without tower or tokenizer."""
        if not self.reads_texts:
            raise UserError(NO_TEXT_TOWER)
        return self._read(self._tokenize(list(sentences)))

    def opinions(self, features: Floats) -> list[Opinion]:
        """What the branches of a recogniser make of features [N, D]. Raises `UserError` for a dual encoder."""
        if not self.recogniser:
            raise UserError("This model is a dual encoder and knows no classes of its own: ask it by labels.")
        rows = torch.from_numpy(features)
        with torch.no_grad():
            visual = self.head.visual(rows).log_softmax(-1).numpy()
            if not self.has_language:
                return [Opinion(one, None) for one in visual]
            logits, _ = self.head.language(rows, torch.tensor(self.scale), return_attention=False)
            language = logits.log_softmax(-1).numpy()
        return [Opinion(*pair) for pair in zip(visual, language, strict=True)]

    def attended(self, feature: Floats, label: int, count: int) -> list[tuple[float, str]]:
        """(attention, sentence) of class `label` for an image feature [D], heaviest first; empty without anchors."""
        return attended(self.head, self.scale, feature, label, count) if self.has_language else []

    @cached_property
    def _tokenize(self) -> Callable[[list[str]], dict[str, torch.Tensor]]:
        return Collator(read_tokenizer(self.location), text_length(self.config.text_config)).tokenize

    @torch.no_grad()
    def _encode_pixels(self, pixels: torch.Tensor) -> Floats:
        features = self.encoder.get_image_features(pixels.to(self.device, self.encoder.dtype))
        return features.float().cpu().numpy()

    @torch.no_grad()
    def _encode_tokens(self, tokens: dict[str, torch.Tensor]) -> Floats:
        features = self.encoder.get_text_features(**{name: one.to(self.device) for name, one in tokens.items()})
        return features.float().cpu().numpy()


def open_exhibit(location: str) -> Exhibit:
    """The model in a folder or on the Hub. Raises `UserError` for one that cannot be read or is of another kind."""
    config = read_config(location)
    if config.model_type not in OWN_TYPES:
        raise UserError(
            f"model {location} is a {config.model_type}: the demonstration shows models of this package (unicl, "
            "vlltr); train one, or turn another project's checkpoint into one with hf-vlr convert"
        )
    model, processor = read_own(location, config)
    if not isinstance(model, VLLTRForImageClassification) and model.text_model is None:
        raise UserError(f"model {location} has neither a classifier nor a text tower: there is nothing to ask it")
    return Exhibit(location, model.float(), processor, read_json(location, METRICS_FILE))


def read_json(location: str, name: str) -> dict[str, Any]:
    """A JSON document beside a model, in its folder or on the Hub; {} where there is none that can be read."""
    path = cached_file(
        location,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if path is None:
        return {}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
