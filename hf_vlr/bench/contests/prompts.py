"""Line 3: features of class prompts, from words to vectors."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hf_vlr.bench.contest import Answers, Contest, Contestant, Roof
from hf_vlr.bench.goals import Goal
from hf_vlr.bench.setting import Setting
from hf_vlr.convert.clip_keys import projection_rules, text_rules
from hf_vlr.convert.clip_tokenizer import MAX_LENGTH, clip_tokenizer
from hf_vlr.convert.keymap import KeyMap
from hf_vlr.data.batches import Collator
from hf_vlr.data.texts.clip_templates import clip_template_rows
from hf_vlr.features import chunks, text_states
from hf_vlr.modeling import UniCLConfig, UniCLModel
from hf_vlr.timing import Turns

OURS, OURS_BF16 = "hf_vlr", "hf_vlr bfloat16"
OPEN_CLIP, TRANSFORMERS, OPEN_CLIP_BF16 = "open_clip", "transformers CLIP", "open_clip bfloat16"
VOCABULARY, BEGIN, END = 49408, 49406, 49407
# towers of images are not measured here, and as small as they can be
VISION = {"image_size": 32, "patch_size": 32}
VIT_B = {"layers": 12, "width": 512, "heads": 8}
TEXT_PARTS = ("text_model.", "text_projection.")
Tokenize = Callable[[list[str]], dict[str, Tensor]]


def class_prompts() -> list[str]:
    """CLIP's 80 prompts for each of ImageNet's 1000 classes; the names and the wordings come with open_clip."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    return [row.text for row in clip_template_rows(IMAGENET_CLASSNAMES)]


def sampled_prompts(setting: Setting) -> list[str]:
    """As many of them as the size says, in a random order."""
    prompts = class_prompts()
    return [prompts[index] for index in torch.randperm(len(prompts), generator=setting.generator())[: setting["texts"]]]


def open_clip_model(setting: Setting) -> nn.Module:
    """open_clip's dual encoder with the text tower of the size and random weights."""
    from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg

    text = CLIPTextCfg(MAX_LENGTH, VOCABULARY, width=setting["width"], heads=setting["heads"], layers=setting["layers"])
    torch.manual_seed(setting.seed)
    model = CLIP(setting["width"], CLIPVisionCfg(layers=1, width=64, **VISION), text).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # no parameter at a value, such as 0, that would hide where it goes
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return model.to(setting.device)


def text_config(setting: Setting) -> dict[str, Any]:
    """The same text tower as transformers describes it."""
    return {
        "model_type": "clip_text_model",
        "hidden_size": setting["width"],
        "intermediate_size": 4 * setting["width"],
        "num_hidden_layers": setting["layers"],
        "num_attention_heads": setting["heads"],
        "projection_dim": setting["width"],
        "vocab_size": VOCABULARY,
        "max_position_embeddings": MAX_LENGTH,
        "hidden_act": "gelu",
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "pad_token_id": END,
    }


def text_names() -> KeyMap:
    """open_clip's names of the text tower beside transformers' and ours."""
    return KeyMap([*projection_rules(), *text_rules()])


def text_weights(model: nn.Module) -> dict[str, Tensor]:
    """open_clip's text tower and projection under transformers' and our names."""
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("visual.")}
    return text_names().forward(state)[0]


def with_weights(model: nn.Module, weights: dict[str, Tensor], setting: Setting) -> Any:
    """The model in evaluation mode on the device, its text tower with these weights."""
    left = model.load_state_dict(weights, strict=False).missing_keys
    assert not any(name.startswith(TEXT_PARTS) for name in left), left
    return model.eval().to(setting.device)


def our_model(weights: dict[str, Tensor], setting: Setting) -> UniCLModel:
    """This package's dual encoder with a text tower's weights."""
    vision = {"model_type": "clip_vision_model", "num_hidden_layers": 1, **VISION}
    config = UniCLConfig(text_config=text_config(setting), vision_config=vision, projection_dim=setting["width"])
    return with_weights(UniCLModel(config), weights, setting)


def transformers_model(weights: dict[str, Tensor], setting: Setting) -> nn.Module:
    """transformers' CLIP with a text tower's weights."""
    from transformers import CLIPConfig, CLIPModel

    vision = {"num_hidden_layers": 1, **VISION}
    config = CLIPConfig(text_config=text_config(setting), vision_config=vision, projection_dim=setting["width"])
    return with_weights(CLIPModel(config), weights, setting)


def known_tokens(prompts: Sequence[str], tokenize: Tokenize) -> Tokenize:
    """A tokenizer that has seen these prompts: what `tokenize` gives, without its time."""
    batch, row = tokenize(list(prompts)), {text: number for number, text in enumerate(prompts)}
    lengths = batch["attention_mask"].sum(1)

    def look_up(texts: list[str]) -> dict[str, Tensor]:
        rows = torch.tensor([row[text] for text in texts])
        return {name: value[rows, : lengths[rows].max()] for name, value in batch.items()}

    return look_up


def _ours(model: UniCLModel, prompts: Sequence[str], tokenize: Tokenize, setting: Setting) -> Callable[[], Answers]:
    @torch.no_grad()
    def call() -> Answers:
        states = text_states(model, prompts, tokenize, batch_size=setting["our_batch"])
        features = model.text_projection(states.to(model.device, model.dtype)).float().cpu()
        return {"features": normalize(features, dim=-1)[: setting["peers_texts"]]}

    return call


def _theirs(encode: Callable[[Any], Tensor], batches: Callable[[], Iterable[Any]]) -> Callable[[], Answers]:
    @torch.inference_mode()
    def call() -> Answers:
        return {"features": normalize(torch.cat([encode(batch).float().cpu() for batch in batches()]), dim=-1)}

    return call


def _enter(setting: Setting, from_words: bool = True) -> Sequence[Contestant]:
    """Peers encode the first prompts of ours: all of theirs cost the same, for all are padded to 77 tokens."""
    from open_clip import get_tokenizer

    prompts, tokenizer, device = sampled_prompts(setting), clip_tokenizer(), setting.device
    shared = prompts[: setting["peers_texts"]]
    parts = list(chunks(shared, setting["batch"]))
    zeros, tokenize = get_tokenizer("ViT-B-16"), Collator(tokenizer, MAX_LENGTH).tokenize
    ends = partial(tokenizer, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
    if not from_words:
        tokenize = known_tokens(prompts, tokenize)

    def batches(tokens: Callable[[list[str]], Any]) -> Callable[[], Iterable[Any]]:
        if from_words:
            return lambda: (tokens(part).to(device) for part in parts)
        ready = [tokens(part).to(device) for part in parts]
        return lambda: ready

    peer = open_clip_model(setting)
    weights, fast = text_weights(peer), deepcopy(peer).to(torch.bfloat16)
    plain = transformers_model(weights, setting)
    ours, ours_fast = our_model(weights, setting), our_model(weights, setting).to(torch.bfloat16)
    with_zeros, with_ends = batches(zeros), batches(ends)
    calls = (
        (OURS, "float32", _ours(ours, prompts, tokenize, setting)),
        (OURS_BF16, "bfloat16", _ours(ours_fast, prompts, tokenize, setting)),
        (OPEN_CLIP, "float32", _theirs(peer.encode_text, with_zeros)),
        (TRANSFORMERS, "float32", _theirs(lambda batch: plain.get_text_features(**batch).pooler_output, with_ends)),
        (OPEN_CLIP_BF16, "bfloat16", _theirs(fast.encode_text, with_zeros)),
    )
    mine = (OURS, OURS_BF16)
    return [
        Contestant(name, call, dtype, ours=name in mine, items=len(prompts if name in mine else shared))
        for name, dtype, call in calls
    ]


def tower_flop(setting: Setting, lengths: Tensor) -> float:
    """Floating-point operations of the tower on texts of so many tokens [S]: 24 W² a token and layer for the
    projections, 2 W for each token and each that it sees in a layer's attention, and 2 W² a text for the last
    projection."""
    width, tokens = setting["width"], lengths.double()
    layer = 24 * width**2 * tokens.sum() + 2 * width * (tokens * (tokens + 1)).sum()
    return float(setting["layers"] * layer + 2 * width**2 * len(lengths))


def _roof(setting: Setting) -> Roof:
    distinct = list(dict.fromkeys(sampled_prompts(setting)))
    return Roof(flop=tower_flop(setting, Collator(clip_tokenizer()).tokenize(distinct)["attention_mask"].sum(1)))


SIZES = {
    "full": {"texts": 2000, "peers_texts": 128, "batch": 64, "our_batch": 256, **VIT_B},
    "gpu": {"texts": 80_000, "peers_texts": 8192, "batch": 1024, "our_batch": 4096, **VIT_B},
    "quick": {"texts": 160, "peers_texts": 32, "batch": 32, "our_batch": 256, "layers": 3, "width": 256, "heads": 4},
}
NOTE = (
    "CLIP's 80 templates × ImageNet's 1000 class names, sampled; to features of length 1, random weights, the same for "
    "all; peers pad to 77 tokens and encode a part of the prompts, their time is taken per prompt"
)

PROMPTS = Contest(
    name="prompts",
    row=3,
    title="features of {texts} class prompts from words, text tower of {layers} layers of {width}",
    item="prompt",
    sizes=SIZES,
    enter=_enter,
    roof=_roof,
    goals={
        "cpu": (
            Goal("speed", 7, OPEN_CLIP),
            Goal("speed", 7, TRANSFORMERS),
            Goal("speed", 15, OPEN_CLIP, OURS_BF16),
        )
    },
    floors={OPEN_CLIP: 2.5, TRANSFORMERS: 2.5},
    turns=Turns(runs=5),
    needs=("open_clip",),
    note=f"{NOTE}; tokenizers included",
)

# on an accelerator tokenizers take longer than towers
TOKENS = Contest(
    name="prompts-tokens",
    row=3,
    title="features of {texts} class prompts from tokens, text tower of {layers} layers of {width}",
    item="prompt",
    sizes=SIZES,
    enter=partial(_enter, from_words=False),
    roof=_roof,
    goals={"cuda": (Goal("speed", 6, OPEN_CLIP), Goal("speed", 6, OPEN_CLIP_BF16, OURS_BF16))},
    turns=Turns(runs=5),
    devices=("cuda",),
    needs=("open_clip",),
    note=f"{NOTE}; tokenized before",
)
