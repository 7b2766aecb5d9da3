"""Line 9: from one photograph to the five likeliest of many classes, everything loaded."""

import tempfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from hf_vlr import VLLTRConfig, VLLTRForImageClassification
from hf_vlr.bench.contest import Answers, Contest, Contestant
from hf_vlr.bench.contests.images import MEAN, STD, photographs
from hf_vlr.bench.goals import Goal
from hf_vlr.bench.setting import Setting
from hf_vlr.data.images import decode_for_model
from hf_vlr.data.transforms import build_eval_transform
from hf_vlr.export.graphs import RecogniserGraph
from hf_vlr.export.int8 import quantise
from hf_vlr.export.parity import random_images
from hf_vlr.export.sessions import Session
from hf_vlr.export.tracing import write_onnx
from hf_vlr.modeling.recognition import fuse_logits, language_guided_logits_reference
from hf_vlr.timing import Turns

INT8, FLOAT32, TORCH = "hf_vlr, exported as int8", "hf_vlr, exported", "hf_vlr, torch"
NAIVE = "transformers ViT, original head"
FUSION_WEIGHT = 0.5
TOP = 5
# width and height
PHOTOGRAPH = (500, 375)

Forward = Callable[[Tensor], Tensor]


def random_recogniser(setting: Setting) -> VLLTRForImageClassification:
    """A ViT with patches of 16 and a language-guided head, of random weights and anchors."""
    width, classes, anchors = setting["width"], setting["classes"], setting["anchors"]
    tower = {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": setting["layers"],
        "num_attention_heads": width // 64,
        "image_size": setting["side"],
        "patch_size": 16,
    }
    config = VLLTRConfig(
        vision_config=tower,
        has_text_model=False,
        projection_dim=setting["space"],
        num_labels=classes,
        num_anchors=anchors,
        visual_head="linear",
        fusion_weight=FUSION_WEIGHT,
        anchor_selection={"source": "random numbers"},
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(setting.seed)
        recogniser = VLLTRForImageClassification(config).eval().requires_grad_(False)
    features = torch.randn(classes, anchors, setting["space"], generator=setting.generator())
    recogniser.set_anchors(features, torch.ones(classes, anchors, dtype=torch.bool), [[""] * anchors] * classes)
    return recogniser


def naive_port(recogniser: VLLTRForImageClassification) -> Forward:
    """Pixels to fused log-probabilities with the original's head, which makes keys of all anchors for every image."""
    head, scale = recogniser.head, recogniser.vlltr.logit_scale.exp()

    def forward(pixels: Tensor) -> Tensor:
        features = recogniser.vlltr.get_image_features(pixels)
        language = language_guided_logits_reference(
            features,
            head.anchors,
            head.anchor_mask,
            head.query.weight,
            head.key.weight,
            head.norm_query.weight,
            head.norm_query.bias,
            head.norm_key.weight,
            head.norm_key.bias,
            scale,
        )
        return fuse_logits(head.visual(features), language, FUSION_WEIGHT)

    return forward


def exported(recogniser: VLLTRForImageClassification, setting: Setting) -> tuple[Session, Session]:
    """The recogniser in onnxruntime, in float32 and in int8."""
    graph = RecogniserGraph(recogniser).eval()
    with tempfile.TemporaryDirectory(prefix="hf_vlr-") as folder:
        whole, small = Path(folder) / "model.onnx", Path(folder) / "model.int8.onnx"
        batch = torch.export.Dim("batch", min=1)
        write_onnx(graph, [random_images(2, setting["side"])], [{0: batch}], whole, "the recogniser")
        quantise(whole, small, "dynamic", (), reduce_range=False)
        return Session(whole, setting.threads), Session(small, setting.threads)


def _session(session: Session) -> Forward:
    return lambda pixels: torch.from_numpy(session.run(pixel_values=pixels.numpy())["logits"])


def _contestant(name: str, read: Callable[[], Tensor], forward: Forward, dtype: str = "float32") -> Contestant:
    def call() -> Answers:
        with torch.inference_mode():
            logits = forward(read()[None])
            # about their mean: most of a log-probability is log C, the same for every class
            return {"centred log-probabilities": logits - logits.mean(), "of the five": logits.topk(TOP).values}

    return Contestant(name, call, dtype=dtype, ours=name != NAIVE)


def _enter(setting: Setting) -> Sequence[Contestant]:
    from transformers import CLIPImageProcessor

    side = setting["side"]
    photograph = photographs(1, *PHOTOGRAPH)[0]
    transform = build_eval_transform(side, MEAN, STD, crop_pct=1)
    processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    recogniser = random_recogniser(setting)
    whole, small = exported(recogniser, setting)

    def ours() -> Tensor:
        return transform(decode_for_model(photograph, "the photograph"))

    def theirs() -> Tensor:
        return processor(Image.open(BytesIO(photograph)), return_tensors="pt")["pixel_values"][0]

    return [
        _contestant(INT8, ours, _session(small), "int8"),
        _contestant(FLOAT32, ours, _session(whole)),
        _contestant(TORCH, ours, lambda pixels: recogniser(pixel_values=pixels).logits),
        _contestant(NAIVE, theirs, naive_port(recogniser)),
    ]


ANSWER = Contest(
    name="answer",
    row=9,
    title="one photograph to its five likeliest of {classes} classes with {anchors} sentences each, "
    "ViT of {layers} layers and width {width}",
    sizes={
        "full": {"classes": 1000, "anchors": 64, "space": 512, "layers": 12, "width": 768, "side": 224},
        "quick": {"classes": 200, "anchors": 16, "space": 512, "layers": 2, "width": 192, "side": 96},
    },
    enter=_enter,
    goals={"cpu": (Goal("speed", 5, NAIVE, ours=INT8),)},
    floors={NAIVE: 3.0},
    turns=Turns(runs=15, warmup=2, untimed=1, timed=3),
    devices=("cpu",),
    needs=("onnx", "onnxruntime", "onnxscript"),
    note="from the JPEG file on, with weights and anchors of random numbers, whose classes lie so close together that "
    "int8 may name another one first; what int8 costs a trained model, `hf-vlr export --int8` measures",
)
