"""Line 10: a training step on image-text pairs with class prompts, both towers, forward and backward."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from hf_vlr.bench.contest import Answers, Contest, Contestant, Roof
from hf_vlr.bench.contests.prompts import VOCABULARY, class_prompts
from hf_vlr.bench.contests.text_step import comparable
from hf_vlr.bench.goals import Goal
from hf_vlr.bench.setting import Setting
from hf_vlr.convert.clip_tokenizer import MAX_LENGTH, clip_tokenizer
from hf_vlr.convert.open_clip import open_clip_keys
from hf_vlr.convert.open_clip_settings import text_tower, vision_tower
from hf_vlr.convert.plan import Options
from hf_vlr.data.batches import Collator
from hf_vlr.modeling import UniCLConfig, UniCLModel, image_text_label_loss
from hf_vlr.timing import Turns
from hf_vlr.training.compile import compile_towers
from hf_vlr.training.patch_dropout import apply_patch_dropout
from hf_vlr.training.tasks import text_features

OURS, OURS_HALF = "hf_vlr", "hf_vlr, half the patches"
OPEN_CLIP, OPEN_CLIP_HALF = "open_clip", "open_clip, half the patches"
CLASSES, TEMPLATES = 1000, 80
HALF = 0.5
HEAD_WIDTH = 64
VIT_B = {"pairs": 1024, "image": 224, "layers": 12, "width": 768, "text_width": 512}
TINY = {"pairs": 12, "image": 32, "layers": 1, "width": 64, "text_width": 64}


def architecture(setting: Setting, patch_dropout: float = 0.0) -> dict[str, Any]:
    """The dual encoder of a size as open_clip describes it."""
    vision = {"image_size": setting["image"], "layers": setting["layers"], "width": setting["width"]}
    text = {"context_length": MAX_LENGTH, "vocab_size": VOCABULARY, "width": setting["text_width"]}
    text |= {"heads": setting["text_width"] // HEAD_WIDTH, "layers": setting["layers"]}
    vision |= {"patch_size": setting["patch"], "patch_dropout": patch_dropout}
    return {"embed_dim": setting["text_width"], "vision_cfg": vision, "text_cfg": text}


def open_clip_model(setting: Setting, patch_dropout: float = 0.0) -> nn.Module:
    """open_clip's dual encoder with random weights, in training mode."""
    from open_clip import CLIP

    torch.manual_seed(setting.seed)
    return CLIP(**architecture(setting, patch_dropout)).to(setting.device).train()


def our_model(peer: nn.Module, setting: Setting) -> UniCLModel:
    """This package's dual encoder with the weights of open_clip's, in training mode."""
    settings, state = architecture(setting), dict(peer.state_dict())
    config = UniCLConfig(
        vision_config=vision_tower(settings, state, Options()),
        text_config=text_tower(settings, state, Options(), prefix=""),
        projection_dim=settings["embed_dim"],
    )
    model = UniCLModel(config)
    model.load_state_dict(in_our_names(state))
    return model.to(setting.device).train()


def in_our_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors by our names."""
    return open_clip_keys("clip_vision_model").forward(tensors)[0]


def images_and_texts(setting: Setting) -> tuple[Tensor, list[str], Tensor]:
    """Images [N, 3, H, H], the distinct prompts of a batch, one a class, and which of them each pair speaks [N]."""
    generator, prompts = setting.generator(), class_prompts()
    images = torch.randn(setting["pairs"], 3, setting["image"], setting["image"], generator=generator)
    drawn = torch.randint(CLASSES, (setting["pairs"],), generator=generator)
    classes, index = drawn.unique(return_inverse=True)
    wordings = torch.randint(TEMPLATES, classes.shape, generator=generator)
    texts = [prompts[place] for place in (TEMPLATES * classes + wordings).tolist()]
    return images.to(setting.device), texts, index.to(setting.device)


def our_loss(model: UniCLModel, images: Tensor, batch: dict[str, Tensor], index: Tensor) -> Tensor:
    """CLIP's loss of the pairs: images, each distinct text once."""
    alone = torch.full_like(index, -1)
    features = model.get_image_features(images), text_features(model, batch)
    return image_text_label_loss(*features, alone, model.logit_scale.exp(), text_index=index)


def open_clip_loss(model: nn.Module, images: Tensor, ids: Tensor) -> Tensor:
    """CLIP's loss of the pairs, the text of each padded to 77 tokens."""
    from open_clip import ClipLoss

    return ClipLoss()(*model(images, ids))


def _autocast(setting: Setting) -> AbstractContextManager:
    return torch.autocast(setting.device.type, dtype=torch.bfloat16)


def _step(
    model: nn.Module,
    loss: Callable[[], Tensor],
    setting: Setting,
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    suffix: str = "",
) -> Callable[[], Answers]:
    """The loss and the gradient of every parameter; `suffix` marks answers that no other contestant can give."""

    def call() -> Answers:
        with _autocast(setting):
            value = loss()
        value.backward()
        found = comparable(rename({name: one.grad for name, one in model.named_parameters() if one.grad is not None}))
        model.zero_grad(set_to_none=True)
        return {f"{name}{suffix}": one for name, one in {"loss": value.detach(), **found}.items()}

    return call


def _enter(setting: Setting) -> Sequence[Contestant]:
    """Compiled where there is an accelerator: on a CPU that takes minutes."""
    from open_clip import get_tokenizer

    images, texts, index = images_and_texts(setting)
    batch = {name: one.to(setting.device) for name, one in Collator(clip_tokenizer()).tokenize(texts).items()}
    ids = get_tokenizer("ViT-B-16")([texts[place] for place in index.tolist()]).to(setting.device)
    ours, theirs = [], []
    for drop, mine, other in ((0.0, OURS, OPEN_CLIP), (HALF, OURS_HALF, OPEN_CLIP_HALF)):
        peer = open_clip_model(setting, drop)
        model = our_model(peer, setting)
        suffix = f" of {mine}" if drop else ""
        if drop:
            apply_patch_dropout(model.vision_model, drop)
        run = peer
        if not setting.on_cpu:
            compile_towers(model)
            run = torch.compile(peer)
        step = _step(model, lambda model=model: our_loss(model, images, batch, index), setting, suffix=suffix)
        ours.append(Contestant(mine, step, "bfloat16", True, items=len(images)))
        suffix = f" of {other}" if drop else ""
        step = _step(peer, lambda run=run: open_clip_loss(run, images, ids), setting, in_our_names, suffix)
        theirs.append(Contestant(other, step, "bfloat16", items=len(images)))
    return [*ours, *theirs]


def tower_flop(width: int, layers: int, sequences: float, tokens: float, seen: float) -> float:
    """Floating-point operations of a transformer's forward pass on so many sequences of so many tokens, of which each
    sees `seen` in attention: 24 W² + 4 W seen a token and layer."""
    return layers * sequences * tokens * (24 * width**2 + 4 * width * seen)


def _roof(setting: Setting) -> Roof:
    """Forward and twice that backward, of all patches and of the tokens that the distinct texts have."""
    _, texts, _ = images_and_texts(setting)
    width, layers, patches = setting["width"], setting["layers"], (setting["image"] // setting["patch"]) ** 2
    flop = tower_flop(width, layers, setting["pairs"], patches + 1, patches + 1)
    flop += 2 * setting["pairs"] * patches * 3 * setting["patch"] ** 2 * width
    for tokens in Collator(clip_tokenizer()).tokenize(texts)["attention_mask"].sum(1).tolist():
        flop += tower_flop(setting["text_width"], layers, 1, tokens, (tokens + 1) / 2)
    return Roof(flop=3 * flop, dtype="bfloat16")


def _contest(patch: int, goals: tuple[Goal, ...]) -> Contest:
    return Contest(
        name=f"pairs-{patch}",
        row=10,
        title="training step of ViT-B/{patch} and CLIP's text tower, {pairs} pairs with class prompts",
        sizes={"full": {"patch": patch, **VIT_B}, "quick": {"patch": 16 if patch == 32 else 8, **TINY}},
        enter=_enter,
        roof=_roof,
        goals={"cuda": goals},
        turns=Turns(runs=10, warmup=3),
        devices=("cuda",),
        needs=("open_clip",),
        note="forward and backward under bfloat16 autocast, compiled, with the same weights, no optimiser step; "
        "prompts of 1000 classes, one wording a class in a batch; open_clip pads every pair's text to 77 tokens; "
        "half the patches is other work, whose answers are not compared",
    )


PATCHES_OF_16 = _contest(16, (Goal("speed", 1.15, OPEN_CLIP), Goal("speed", 2.0, OPEN_CLIP, OURS_HALF)))
PATCHES_OF_32 = _contest(32, (Goal("speed", 1.4, OPEN_CLIP),))
