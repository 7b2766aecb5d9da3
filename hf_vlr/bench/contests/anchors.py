"""Line 7: anchor sentence selection, the score of every sentence on the images of its class.

The peer goes as VL-LTR does, one sentence at a time: its similarities with all images, their log-softmax, and the mean
over the images of its class. It meets fewer sentences in a call, the first of ours; ratios are per sentence.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from hf_vlr.anchors import score_sentences
from hf_vlr.bench.contest import Answers, Contest, Contestant, Roof
from hf_vlr.bench.goals import Goal
from hf_vlr.bench.setting import Setting
from hf_vlr.timing import Turns

OURS, LOOP = "hf_vlr", "loop over sentences"
SCALE = 100.0


def _features(setting: Setting) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and labels of sentences and of images, each around the centre of its class, every class with images."""
    generator, classes, width = setting.generator(), setting["classes"], setting["width"]
    centres = torch.randn(classes, width, generator=generator)
    text_labels = torch.randint(0, classes, (setting["sentences"],), generator=generator)
    image_labels = torch.arange(setting["images"]) % classes
    texts = centres[text_labels] + torch.randn(len(text_labels), width, generator=generator)
    images = centres[image_labels] + torch.randn(len(image_labels), width, generator=generator)
    return tuple(tensor.to(setting.device) for tensor in (texts, text_labels, images, image_labels))


def _loop(setting: Setting, inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> Callable[[], Answers]:
    texts, text_labels, images, image_labels = inputs
    texts, text_labels = normalize(texts[: setting["sample"]], dim=-1), text_labels[: setting["sample"]]
    images = normalize(images, dim=-1)

    @torch.inference_mode()
    def call() -> Answers:
        scores = []
        for text, label in zip(texts, text_labels, strict=True):
            target = (image_labels == label).float()
            scores.append(-(log_softmax(SCALE * (images @ text), dim=0) * target).sum() / target.sum())
        return {"scores": torch.stack(scores)}

    return call


def _enter(setting: Setting) -> Sequence[Contestant]:
    inputs = _features(setting)

    def ours() -> Answers:
        return {"scores": score_sentences(*inputs, SCALE)[: setting["sample"]]}

    return [
        Contestant(OURS, ours, ours=True, items=setting["sentences"]),
        Contestant(LOOP, _loop(setting, inputs), items=setting["sample"]),
    ]


def _roof(setting: Setting) -> Roof:
    return Roof(flop=2.0 * setting["sentences"] * setting["images"] * setting["width"])


SELECTION = Contest(
    name="anchor-selection",
    row=7,
    title="anchor selection, each of {sentences} sentences on {images} images of {classes} classes, D = {width}",
    item="sentence",
    sizes={
        "full": {"sentences": 4096, "sample": 64, "images": 40_000, "classes": 1000, "width": 512},
        "gpu": {"sentences": 65_536, "sample": 512, "images": 400_000, "classes": 8142, "width": 512},
        "quick": {"sentences": 512, "sample": 8, "images": 4000, "classes": 50, "width": 256},
    },
    enter=_enter,
    roof=_roof,
    goals={"cpu": (Goal("speed", 25, LOOP),), "cuda": (Goal("speed", 100, LOOP),)},
    floors={LOOP: 1.5},
    turns=Turns(runs=5),
)
