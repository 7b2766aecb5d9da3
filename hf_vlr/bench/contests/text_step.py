"""Line 4: the text side of a training step with class prompts, forward and backward."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hf_vlr.bench.contest import Answers, Contest, Contestant, Roof
from hf_vlr.bench.contests.prompts import (
    OPEN_CLIP,
    OURS,
    TEXT_PARTS,
    TRANSFORMERS,
    VIT_B,
    class_prompts,
    open_clip_model,
    our_model,
    text_names,
    text_weights,
    tower_flop,
    transformers_model,
)
from hf_vlr.bench.goals import Goal
from hf_vlr.bench.setting import Setting
from hf_vlr.convert.clip_tokenizer import MAX_LENGTH, clip_tokenizer
from hf_vlr.data.batches import Collator
from hf_vlr.timing import Turns
from hf_vlr.training.tasks import text_features

TEMPLATES = 80


def spoken(setting: Setting) -> tuple[list[str], Tensor]:
    """The distinct prompts of a batch, one of each of U classes, and which of them each of N pairs speaks [N]."""
    generator, prompts = setting.generator(), class_prompts()
    classes = torch.randperm(len(prompts) // TEMPLATES, generator=generator)[: setting["texts"]]
    wordings = torch.randint(TEMPLATES, (setting["texts"],), generator=generator)
    chosen = (TEMPLATES * classes + wordings).tolist()
    return [prompts[index] for index in chosen], torch.arange(setting["pairs"]) % setting["texts"]


def comparable(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients by name, with those of a key's bias behind its query's: no softmax sees the former, whose gradient is 0
    in exact arithmetic, so that it is measured by the size of the latter."""
    found = dict(gradients)
    for name in gradients:
        if name.endswith("k_proj.bias"):
            query = name.replace("k_proj", "q_proj")
            found[query] = torch.cat([found[query], found.pop(name)])
    return found


def _step(
    model: nn.Module,
    forward: Callable[[], Tensor],
    upstream: Tensor,
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> Callable[[], Answers]:
    """Features of all pairs [N, D], and from the gradient `upstream` [N, D] of each the parameters' gradients."""
    parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}

    def call() -> Answers:
        features = forward()
        gradients = torch.autograd.grad(features, list(parameters.values()), upstream)
        named = rename(dict(zip(parameters, gradients, strict=True)))
        return {"features": features.detach(), **comparable(named)}

    return call


def _train_text_alone(model: nn.Module, parts: Sequence[str]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(parts)))


def _enter(setting: Setting) -> Sequence[Contestant]:
    from open_clip import get_tokenizer

    texts, index = spoken(setting)
    all_texts, index = [texts[number] for number in index.tolist()], index.to(setting.device)
    upstream = torch.randn(setting["pairs"], setting["width"], generator=setting.generator()).to(setting.device)
    peer = open_clip_model(setting)
    weights = text_weights(peer)
    ours, plain = our_model(weights, setting), transformers_model(weights, setting)
    _train_text_alone(ours, TEXT_PARTS)
    _train_text_alone(plain, TEXT_PARTS)
    _train_text_alone(
        peer, ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    )
    batch = {key: value.to(setting.device) for key, value in Collator(clip_tokenizer()).tokenize(texts).items()}
    ids = get_tokenizer("ViT-B-16")(all_texts).to(setting.device)
    settings = {"max_length": MAX_LENGTH, "padding": "max_length", "return_tensors": "pt"}
    padded = clip_tokenizer()(all_texts, **settings).to(setting.device)
    names = text_names()
    return [
        Contestant(OURS, _step(ours, lambda: text_features(ours, batch)[index], upstream), ours=True),
        Contestant(
            OPEN_CLIP,
            _step(peer, lambda: peer.encode_text(ids), upstream, lambda gradients: names.forward(gradients)[0]),
        ),
        Contestant(TRANSFORMERS, _step(plain, lambda: plain.get_text_features(**padded).pooler_output, upstream)),
    ]


def _roof(setting: Setting) -> Roof:
    lengths = Collator(clip_tokenizer()).tokenize(spoken(setting)[0])["attention_mask"].sum(1)
    return Roof(flop=3 * tower_flop(setting, lengths))


TEXT_STEP = Contest(
    name="text-step",
    row=4,
    title="text tower of {layers} layers of {width}, forward + backward, N = {pairs} pairs that speak {texts} prompts",
    sizes={
        "full": {"pairs": 256, "texts": 60, **VIT_B},
        "gpu": {"pairs": 2048, "texts": 492, **VIT_B},
        "quick": {"pairs": 32, "texts": 8, "layers": 2, "width": 128, "heads": 2},
    },
    enter=_enter,
    roof=_roof,
    goals={"cpu": (Goal("speed", 25, OPEN_CLIP),), "cuda": (Goal("speed", 15, OPEN_CLIP),)},
    floors={OPEN_CLIP: 3.0, TRANSFORMERS: 3.0},
    # a peer's call takes most of a minute: none is spent on warming up, which a median of three forgives
    turns=Turns(runs=3, warmup=0),
    needs=("open_clip",),
    note="peers pad all N texts to 77 tokens; the same random gradient of each pair's feature, the gradient of every "
    "parameter is compared",
)
