"""The same for programs: endpoints that take pictures and answer in JSON, without a visitor's state."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_vlr.demo.about import PREDICTORS
from hf_vlr.demo.ask_tab import Ask
from hf_vlr.demo.exhibit import Exhibit
from hf_vlr.demo.language import MAX_TAUGHT, ranked_with_taught
from hf_vlr.demo.pictures import MAX_BATCH, read_picture
from hf_vlr.demo.recognise_tab import Recognise, Settings
from hf_vlr.demo.session import Seen, Stage, in_words, look, numbers_only, received_files
from hf_vlr.demo.teach_tab import Teach
from hf_vlr.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

MANY = 10_000
# pictures of a batch that lie decoded in memory together
DECODED = 16


class Endpoints:
    """Functions of pictures and plain values that give plain values."""

    def __init__(self, exhibit: Exhibit) -> None:
        self.exhibit = exhibit
        self.asking = Ask(exhibit)
        if exhibit.recogniser:
            self.recognising, self.teaching = Recognise(exhibit), Teach(exhibit)

    def recognise(self, image: "Image.Image | None", fusion_weight: float, tau: float, top_k: float) -> dict[str, Any]:
        """Name what a picture shows: the top_k classes with fused, visual and language probability and group."""
        seen = look(self.exhibit, image)
        return self._prediction(seen, fusion_weight, tau, top_k)

    def recognise_batch(
        self, images: list[bytes] | None, fusion_weight: float, tau: float, top_k: float
    ) -> list[dict[str, Any]]:
        """Name what each of many pictures shows; for one that cannot be read its entry has `error` instead."""
        if not images:
            raise UserError("There are no pictures: send at least one.")
        if len(images) > MAX_BATCH:
            raise UserError(f"{len(images)} pictures are too many: send at most {MAX_BATCH} at a time.")
        return [
            answer
            for start in range(0, len(images), DECODED)
            for answer in self._predictions(images[start : start + DECODED], start, fusion_weight, tau, top_k)
        ]

    def sentences(self, image: "Image.Image | None", label: str, count: float) -> list[dict[str, Any]]:
        """The sentences of class `label` that a picture attends to, the heaviest first, with their weights."""
        names = self.exhibit.classes.names
        if label not in names:
            raise UserError("There is no class of that label: take one that recognise gives.")
        seen = look(self.exhibit, image)
        found = self.exhibit.attended(seen.feature, names.index(label), int(count))
        return [{"text": text, "weight": weight} for weight, text in found]

    def ask(self, image: "Image.Image | None", labels: str, template: str) -> list[dict[str, Any]]:
        """Compare a picture with labels, one a line, put into the template in the place of {}; the best first."""
        seen = look(self.exhibit, image)
        rows = self.asking.rows(seen, self.asking.question(labels, template))
        return [{"label": row.name, "score": row.score} for row in rows]

    def teach(
        self, image: "Image.Image | None", classes: dict[str, list[str]], advantage: float, top_k: float
    ) -> list[dict[str, Any]]:
        """Recognise with described classes, {name: [sentence, ...]}, among the known ones, all by their texts."""
        if not isinstance(classes, dict) or not classes or len(classes) > MAX_TAUGHT:
            raise UserError(f"Describe 1 to {MAX_TAUGHT} classes as {{name: [sentence, ...]}}.")
        if not all(isinstance(one, list) and all(isinstance(text, str) for text in one) for one in classes.values()):
            raise UserError("A description is a list of sentences: {name: [sentence, ...]}.")
        seen, taught = look(self.exhibit, image), ()
        for name, sentences in classes.items():
            taught = self.teaching.learn(taught, name, "\n".join(sentences))
        probabilities = self.teaching.scores(seen, taught, advantage)
        rows = ranked_with_taught(probabilities, self.exhibit.classes, taught, int(top_k))
        return [
            {"label": row.name, "score": row.score, "group": row.group or None, "train_images": row.train_images}
            for row in rows
        ]

    def about(self) -> dict[str, Any]:
        """What the model is: name, kind, its classes (the first 10,000) and how it was measured."""
        classes = self.exhibit.classes
        found = {"model": self.exhibit.name, "recogniser": self.exhibit.recogniser, "template": self.exhibit.template}
        if classes is None:
            return found
        counts = classes.train_counts
        predictors = self.exhibit.metrics.get("predictors", {})
        accuracy = {name: predictors[name].get("accuracy") for name in PREDICTORS if name in predictors}
        return found | {
            "classes": list(classes.names[:MANY]),
            "train_images": None if counts is None else counts[:MANY].tolist(),
            "rule": classes.rule,
            "accuracy": accuracy,
        }

    def _predictions(
        self, images: list[bytes], first: int, fusion_weight: float, tau: float, top_k: float
    ) -> list[dict[str, Any]]:
        """Predictions of a few pictures, whose numbers begin at `first`."""
        pictures: list[Any] = []
        for number, data in enumerate(images, start=first):
            try:
                pictures.append(read_picture(data, f"Picture {number}"))
            except UserError as error:
                pictures.append(str(error))
        readable = [one for one in pictures if not isinstance(one, str)]
        features = self.exhibit.image_features(readable) if readable else np.empty((0, 1), dtype=np.float32)
        opinions = self.exhibit.opinions(features) if readable else []
        seen = iter([Seen(*pair) for pair in zip(features, opinions)])
        return [
            {"error": one} if isinstance(one, str) else self._prediction(next(seen), fusion_weight, tau, top_k)
            for one in pictures
        ]

    def _prediction(self, seen: Seen, fusion_weight: float, tau: float, top_k: float) -> dict[str, Any]:
        rows = [row.document() for row in self.recognising.rows(seen, fusion_weight, tau, int(top_k))]
        return {key: rows[0][key] for key in ("label", "index", "score")} | {"classes": rows}


def add_endpoints(stage: Stage, settings: Settings | None) -> None:
    """Wire the endpoints to parts that are not shown; `settings` are the sliders of a recogniser."""
    import gradio as gr

    exhibit = stage.exhibit
    functions = Endpoints(exhibit)
    image, result = stage.image, gr.JSON(visible=False, label="result")

    def offer(function: Callable[..., Any], inputs: list[Any]) -> None:
        gr.Button(visible=False).click(
            in_words(function), inputs, [result], api_name=function.__name__, concurrency_id="tower"
        )

    if settings is not None:
        files = gr.File(visible=False, file_count="multiple", label="images")
        files.preprocess = received_files
        offer(functions.recognise, [image, *settings.all()])
        offer(functions.recognise_batch, [files, *settings.all()])
    if exhibit.has_language:
        label = gr.Textbox(visible=False, label="label")
        count = numbers_only(gr.Slider(1, 64, 8, step=1, visible=False, label="count"))
        offer(functions.sentences, [image, label, count])
    labels = gr.Textbox(visible=False, label="labels, one a line")
    offer(functions.ask, [image, labels, gr.Textbox(exhibit.template, visible=False, label="template")])
    if exhibit.recogniser:
        classes = gr.JSON(visible=False, label="{name: [sentence, ...]}")
        advantage = numbers_only(gr.Slider(0, 6, 0, step=0.5, visible=False, label="advantage"))
        offer(functions.teach, [image, classes, advantage, settings.top])
    offer(functions.about, [])
