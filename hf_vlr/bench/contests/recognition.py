"""Lines 5 and 6: the language-guided recognition head, a training step and the prediction for one image.

The peer is the head as VL-LTR writes it down: K = Wk LN(T) of all C M anchors in every forward pass, attended texts
[B, C, D] formed and normalised. For prediction there is also what one would do first about that: keep K, because the
anchors are frozen; what is read is then twice the anchors, K and the values.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, normalize

from hf_vlr.bench.contest import Answers, Contest, Contestant, Roof
from hf_vlr.bench.goals import Goal
from hf_vlr.bench.kernels import with_kernels
from hf_vlr.bench.setting import Setting
from hf_vlr.modeling.recognition import anchor_gram, anchor_rstd, language_guided_logits
from hf_vlr.timing import Turns

Head = dict[str, Tensor]
Logits = Callable[[Head], Tensor]

OURS, OURS_BF16 = "hf_vlr", "hf_vlr, bfloat16 anchors"
ORIGINAL = "VL-LTR's formulation"
KEPT, KEPT_EINSUM, KEPT_BF16 = "keys kept", "keys kept (einsum)", "keys kept, bfloat16"
SCALE = 14.3
# The gradient of the key norm's bias is zero: it shifts all scores of an image alike. Of it there is only noise.
UNCOMPARED = "norm_key_bias"
FROZEN = ("anchors", "anchor_mask")

IMAGENET = {"images": 128, "classes": 1000, "anchors": 64, "width": 512}
INATURALIST = {"images": 32, "classes": 8142, "anchors": 64, "width": 512}
SMALL = {"images": 64, "classes": 100, "anchors": 32, "width": 128}


def _head(setting: Setting) -> Head:
    """The arguments of `language_guided_logits` near where training begins, Wq and Wk close to the identity."""
    generator, width = setting.generator(), setting["width"]

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    anchors = normal(setting["classes"], setting["anchors"], width)
    anchors += normal(setting["classes"], 1, width)
    head = {
        "x": normal(setting["images"], width),
        "anchors": anchors,
        "anchor_mask": torch.ones(anchors.shape[:2], dtype=torch.bool),
        "query_weight": torch.eye(width) + normal(width, width, scale=0.01),
        "key_weight": torch.eye(width) + normal(width, width, scale=0.01),
        "norm_query_weight": 1.0 + normal(width, scale=0.1),
        "norm_query_bias": normal(width, scale=0.1),
        "norm_key_weight": 1.0 + normal(width, scale=0.1),
        "norm_key_bias": normal(width, scale=0.1),
        "logit_scale": torch.tensor(SCALE),
    }
    return {name: tensor.to(setting.device) for name, tensor in head.items()}


def _keys(head: Head) -> Tensor:
    """K [C, M, D] = Wk LN(T)."""
    width = head["anchors"].shape[-1]
    normed = layer_norm(head["anchors"], (width,), head["norm_key_weight"], head["norm_key_bias"])
    return linear(normed, head["key_weight"])


def _queries(head: Head) -> Tensor:
    """Q [B, D] = Wq LN(x), divided by sqrt(D)."""
    width = head["x"].shape[-1]
    normed = layer_norm(head["x"], (width,), head["norm_query_weight"], head["norm_query_bias"])
    return linear(normed, head["query_weight"]) / math.sqrt(width)


def _formed(head: Head, keys: Tensor | None = None, detach_norm: bool = False) -> Tensor:
    """Logits [B, C] with keys [C, M, D], scores [B, C, M] and attended texts [B, C, D] in memory."""
    keys = _keys(head) if keys is None else keys
    scores = torch.einsum("bd,cmd->bcm", _queries(head), keys)
    attention = scores.masked_fill(~head["anchor_mask"], -torch.inf).softmax(-1)
    guided = torch.einsum("bcm,cmd->bcd", attention, head["anchors"])
    guided = guided / guided.norm(dim=-1, keepdim=True).detach() if detach_norm else normalize(guided, dim=-1)
    return head["logit_scale"] * torch.einsum("bd,bcd->bc", normalize(head["x"], dim=-1), guided)


def _formed_by_class(head: Head, keys: Tensor) -> Tensor:
    """`_formed` of kept keys by one product per class, which processors compute several times faster than einsum's."""
    scores = _queries(head) @ keys.mT
    attention = scores.masked_fill(~head["anchor_mask"][:, None], -torch.inf).softmax(-1)
    guided = normalize(attention @ head["anchors"], dim=-1)
    return head["logit_scale"] * (guided * normalize(head["x"], dim=-1)).sum(-1).T


def _constants(anchors: Tensor) -> dict[str, Tensor]:
    """What depends on the anchors alone."""
    return {"gram": anchor_gram(anchors), "rstd": anchor_rstd(anchors)}


def _folded(head: Head, detach_norm: bool = False) -> Logits:
    """Ours, with what depends on the anchors alone computed beforehand."""
    constants = _constants(head["anchors"])

    def logits(head: Head) -> Tensor:
        return language_guided_logits(**head, **constants, detach_norm=detach_norm)

    return logits


def _step(logits: Logits, head: Head) -> Callable[[], Answers]:
    """Logits and the gradients of a fixed weighting of them, as a loss would ask for."""
    trained = {name: tensor for name, tensor in head.items() if name not in FROZEN}
    shape = len(head["x"]), len(head["anchors"])
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(head["x"].device)

    def call() -> Answers:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in trained.items()}
        values = logits(head | leaves)
        gradients = torch.autograd.grad(values, list(leaves.values()), weights)
        found = {f"{name} gradient": gradient for name, gradient in zip(leaves, gradients, strict=True)}
        return {"logits": values.detach()} | {name: value for name, value in found.items() if UNCOMPARED not in name}

    return call


def _training(setting: Setting, detach_norm: bool) -> Sequence[Contestant]:
    head = _head(setting)
    original = partial(_formed, detach_norm=detach_norm)
    kept = sum(constant.nbytes for constant in _constants(head["anchors"]).values())
    call = _step(_folded(head, detach_norm), head)
    ours = Contestant(OURS, call, ours=True, measures_memory=True, kept_bytes=kept)
    return [
        *with_kernels(ours, setting),
        Contestant(ORIGINAL, _step(original, head), measures_memory=True),
    ]


def _prediction(logits: Logits, head: Head) -> Callable[[], Answers]:
    def call() -> Answers:
        with torch.inference_mode():
            return {"logits": logits(head).float()}

    return call


def _one_image(setting: Setting) -> Sequence[Contestant]:
    head = _head(setting)
    short = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in head.items()}
    with torch.inference_mode():
        keys = _keys(head)
        short_keys = keys.bfloat16()
    contestants = [
        *with_kernels(Contestant(OURS, _prediction(_folded(head), head), ours=True), setting),
        *with_kernels(Contestant(OURS_BF16, _prediction(_folded(short), short), dtype="bfloat16", ours=True), setting),
        Contestant(ORIGINAL, _prediction(_formed, head)),
        Contestant(KEPT, _prediction(partial(_formed_by_class, keys=keys), head)),
        Contestant(KEPT_BF16, _prediction(partial(_formed_by_class, keys=short_keys), short), dtype="bfloat16"),
    ]
    if setting.on_cpu:
        contestants.append(Contestant(KEPT_EINSUM, _prediction(partial(_formed, keys=keys), head)))
    return contestants


def _training_roof(setting: Setting) -> Roof:
    """Products of anchors with 2 B vectors and the gradient of them, G_c a: each once."""
    anchors = setting["classes"] * setting["anchors"]
    products = 2 * setting["images"] * anchors * setting["width"]
    return Roof(flop=2.0 * (2 * products + setting["images"] * anchors * setting["anchors"]))


def _reading_roof(setting: Setting) -> Roof:
    """The anchors and their inner products, read once."""
    anchors = setting["classes"] * setting["anchors"]
    return Roof(bytes=4.0 * anchors * (setting["width"] + setting["anchors"]))


IMAGENET_TRAINING = Contest(
    name="head-training",
    row=5,
    title="recognition head, training step, B = {images}, C = {classes}, M = {anchors}, D = {width} (ImageNet-LT)",
    sizes={"full": IMAGENET, "quick": SMALL},
    enter=partial(_training, detach_norm=False),
    roof=_training_roof,
    goals={
        "cpu": (Goal("speed", 6, ORIGINAL), Goal("memory", 10, ORIGINAL)),
        "cuda": (Goal("speed", 4, ORIGINAL), Goal("memory", 20, ORIGINAL)),
    },
    floors={ORIGINAL: 1.5},
)

INATURALIST_TRAINING = Contest(
    name="head-training-inaturalist",
    row=5,
    title="recognition head, training step, B = {images}, C = {classes}, M = {anchors}, D = {width} (iNaturalist 2018)",
    sizes={"full": INATURALIST, "quick": {**SMALL, "images": 16, "classes": 200}},
    enter=partial(_training, detach_norm=True),
    roof=_training_roof,
    goals={
        "cpu": (Goal("speed", 10, ORIGINAL), Goal("memory", 10, ORIGINAL)),
        "cuda": (Goal("speed", 6, ORIGINAL), Goal("memory", 20, ORIGINAL)),
    },
    floors={ORIGINAL: 1.3},
    turns=Turns(runs=3),
)

ONE_IMAGE = Contest(
    name="head-one-image",
    row=6,
    title="recognition head, prediction, B = {images}, C = {classes}, M = {anchors}, D = {width} (ImageNet-LT)",
    sizes={"full": {**IMAGENET, "images": 1}, "quick": {**SMALL, "images": 1, "classes": 400}},
    enter=_one_image,
    roof=_reading_roof,
    goals={
        "cpu": (
            Goal("speed", 13, ORIGINAL),
            Goal("speed", 40, ORIGINAL, ours=OURS_BF16),
            Goal("speed", 5, KEPT),
            Goal("speed", 5, KEPT_BF16, ours=OURS_BF16),
        ),
        "cuda": (Goal("seconds", 60e-6),),
    },
    floors={ORIGINAL: 2.0},
    turns=Turns(runs=15, untimed=1, timed=3),
    note="kept keys read the anchors twice, ours once and their inner products: in bytes 1.8 times less in float32 and "
    "1.6 times in bfloat16, so no way of reading them all is 5 times as fast where both run at the speed of memory",
)

ONE_IMAGE_INATURALIST = Contest(
    name="head-one-image-inaturalist",
    row=6,
    title="recognition head, prediction, B = {images}, C = {classes}, M = {anchors}, D = {width} (iNaturalist 2018)",
    sizes={"full": {**INATURALIST, "images": 1}, "quick": {**SMALL, "images": 1, "classes": 800}},
    enter=_one_image,
    roof=_reading_roof,
    goals={
        "cpu": (Goal("speed", 13, ORIGINAL), Goal("speed", 40, ORIGINAL, ours=OURS_BF16)),
    },
    floors={ORIGINAL: 2.0},
    turns=Turns(runs=5),
)
