"""Lines 1 and 2: image-text-label contrast, forward and backward.

One peer is open_clip's loss of image-text pairs, which is the contrast where every label is -1. The other has labels:
image-text-label contrast as one would write down its definition, with a matrix of targets. Peers get every pair's text,
also where several pairs speak the same.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_vlr.bench.contest import Answers, Contest, Contestant, Roof
from hf_vlr.bench.goals import Goal
from hf_vlr.bench.kernels import with_kernels
from hf_vlr.bench.setting import Setting
from hf_vlr.modeling.contrastive import image_text_label_loss
from hf_vlr.timing import Turns

# of image features [N, D], text features [U, D] and tau
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

OURS = "hf_vlr"
OPEN_CLIP, COMPILED, INF_CL = "open_clip ClipLoss", "open_clip ClipLoss, compiled", "inf_cl"
DENSE = "dense soft targets"
# tau at the start of CLIP's training, 1 / 0.07, and the most that CLIP lets it become
START, LARGEST = 14.3, 100.0
CLASSES = 1000

PAIRS = {"pairs": 8192, "texts": 8192, "width": 512}
PROMPTS = {"pairs": 8192, "texts": 1000, "width": 512}
PAIRS_SIZES = {
    "full": PAIRS,
    "gpu": {**PAIRS, "pairs": 32768, "texts": 32768},
    "quick": {"pairs": 2048, "texts": 2048, "width": 256},
}
PROMPTS_SIZES = {
    "full": PROMPTS,
    "gpu": {**PROMPTS, "pairs": 32768},
    "quick": {"pairs": 2048, "texts": 200, "width": 256},
}
# Each turn begins with a call that is not timed: a peer's, which takes ten times the memory, has just given it back.
TURNS = Turns(runs=8, untimed=1, timed=2)


def _leaves(setting: Setting, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Image features [N, D], features of the unique texts [U, D] and tau, as leaves of a graph."""
    generator = setting.generator()
    shapes = ((setting["pairs"], setting["width"]), (setting["texts"], setting["width"]))
    features = [torch.randn(shape, generator=generator).to(setting.device).requires_grad_() for shape in shapes]
    return *features, torch.tensor(scale, device=setting.device, requires_grad=True)


def _spoken(setting: Setting) -> Tensor | None:
    """Each pair's text [N], None where every pair has its own."""
    if setting["texts"] == setting["pairs"]:
        return None
    return torch.arange(setting["pairs"], device=setting.device) % setting["texts"]


def _step(loss: Loss, leaves: tuple[Tensor, Tensor, Tensor]) -> Callable[[], Answers]:
    """The loss and all its gradients."""

    def call() -> Answers:
        value = loss(*leaves)
        gradients = torch.autograd.grad(value, leaves)
        names = ("image gradient", "text gradient", "scale gradient")
        return {"loss": value.detach(), **dict(zip(names, gradients, strict=True))}

    return call


def _lean(labels: Tensor, text_index: Tensor | None) -> Loss:
    def loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        return image_text_label_loss(images, texts, labels, scale, text_index=text_index)

    return loss


def _normalised(peer: Loss, text_index: Tensor | None) -> Loss:
    """A loss of one unit vector a pair [N, D] as one of features."""

    def loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        texts = texts if text_index is None else texts[text_index]
        return peer(normalize(images, dim=-1), normalize(texts, dim=-1), scale)

    return loss


def _dense(labels: Tensor) -> Loss:
    """Of unit vectors: logits once, the targets [N, N] shared by both directions, which have the same positives."""

    def loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        logits = scale * images @ texts.T
        same = labels[:, None] == labels
        targets = same / same.sum(1, keepdim=True)
        return -0.5 * (targets * (logits.log_softmax(1) + logits.log_softmax(0))).sum() / len(labels)

    return loss


def _streamed(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """inf_cl, of unit vectors, once a direction. Its own factor for tau has a gradient in groups of processes alone."""
    from inf_cl import cal_inf_loss

    return 0.5 * (cal_inf_loss(scale * images, texts) + cal_inf_loss(scale * texts, images))


def _against_pairs(setting: Setting, scale: float = START) -> Sequence[Contestant]:
    from open_clip import ClipLoss

    leaves, text_index = _leaves(setting, scale), _spoken(setting)
    alone = torch.full((setting["pairs"],), -1, device=setting.device)
    peers: dict[str, Loss] = {OPEN_CLIP: ClipLoss()}
    if not setting.on_cpu:
        peers[COMPILED] = torch.compile(ClipLoss())
        if find_spec("inf_cl"):
            peers[INF_CL] = _streamed
    ours = Contestant(OURS, _step(_lean(alone, text_index), leaves), ours=True, measures_memory=True)
    return [
        *with_kernels(ours, setting),
        *(
            Contestant(name, _step(_normalised(peer, text_index), leaves), measures_memory=True)
            for name, peer in peers.items()
        ),
    ]


def _against_dense(setting: Setting, scale: float = START) -> Sequence[Contestant]:
    leaves, text_index = _leaves(setting, scale), _spoken(setting)
    labels = torch.arange(setting["pairs"], device=setting.device) % CLASSES
    ours = Contestant(OURS, _step(_lean(labels, text_index), leaves), ours=True, measures_memory=True)
    return [
        *with_kernels(ours, setting),
        Contestant(DENSE, _step(_normalised(_dense(labels), text_index), leaves), measures_memory=True),
    ]


def _roof(setting: Setting) -> Roof:
    """Every similarity once forward and once backward, and a product with it for either gradient."""
    return Roof(flop=8.0 * setting["pairs"] * setting["texts"] * setting["width"])


def _goals(peer: str, *, distinct: bool) -> Mapping[str, tuple[Goal, ...]]:
    if not distinct:
        return {device: (Goal("speed", 10, peer),) for device in ("cpu", "cuda")}
    return {
        "cpu": (Goal("speed", 1.75, peer), Goal("memory", 5, peer), Goal("roof", 0.85)),
        "cuda": (Goal("speed", 3, peer), Goal("memory", 80, peer)),
    }


DISTINCT = Contest(
    name="contrast-pairs",
    row=1,
    title="contrast of pairs, forward + backward, N = {pairs} with distinct texts, D = {width}, tau = 14.3",
    sizes=PAIRS_SIZES,
    enter=_against_pairs,
    roof=_roof,
    goals=_goals(OPEN_CLIP, distinct=True),
    floors={OPEN_CLIP: 1.0},
    turns=TURNS,
    needs=("open_clip",),
)
DISTINCT_LABELLED = Contest(
    name="contrast-labels",
    row=1,
    title="contrast with labels, forward + backward, N = {pairs} with distinct texts, D = {width}, tau = 14.3",
    sizes=PAIRS_SIZES,
    enter=_against_dense,
    roof=_roof,
    goals=_goals(DENSE, distinct=True),
    floors={DENSE: 0.8},
    turns=TURNS,
)
DISTINCT_SHARP = Contest(
    name="contrast-tau-100",
    row=1,
    title="contrast of pairs, forward + backward, N = {pairs} with distinct texts, D = {width}, tau = 100",
    sizes=PAIRS_SIZES,
    enter=partial(_against_pairs, scale=LARGEST),
    roof=_roof,
    goals=_goals(OPEN_CLIP, distinct=True),
    floors={OPEN_CLIP: 1.0},
    turns=TURNS,
    needs=("open_clip",),
)
PROMPTED = Contest(
    name="contrast-prompts",
    row=2,
    title="contrast of pairs, forward + backward, N = {pairs} with {texts} class prompts, D = {width}, tau = 14.3",
    sizes=PROMPTS_SIZES,
    enter=_against_pairs,
    roof=_roof,
    goals=_goals(OPEN_CLIP, distinct=False),
    floors={OPEN_CLIP: 6.0},
    turns=TURNS,
    needs=("open_clip",),
)
PROMPTED_LABELLED = Contest(
    name="contrast-prompts-labels",
    row=2,
    title="contrast with labels, forward + backward, N = {pairs} with {texts} class prompts, D = {width}, tau = 14.3",
    sizes=PROMPTS_SIZES,
    enter=_against_dense,
    roof=_roof,
    goals=_goals(DENSE, distinct=False),
    floors={DENSE: 4.5},
    turns=TURNS,
)
