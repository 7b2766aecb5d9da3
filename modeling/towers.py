# SPDX-License-Identifier: MIT
"""Towers: builds, pools and measures any vision or text encoder. The only place that knows their kinds.

Letters: `N` images or texts, `L` tokens, `H` height, `W` width, `K` tower width.
"""

import inspect
from itertools import accumulate

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoModel
from transformers.configuration_utils import PreTrainedConfig

from .modeling_clip_resnet import CLIPResNetModel
from .modeling_embedding import TextEmbeddingModel

# towers that transformers lacks
OWN_TOWERS = {"clip_resnet": CLIPResNetModel, "text_embedding": TextEmbeddingModel}
# towers that transformers has and AutoModel does not know
NAMED_TOWERS = {
    "siglip_text_model": "SiglipTextModel",
    "metaclip_2_text_model": "MetaClip2TextModel",
    "metaclip_2_vision_model": "MetaClip2VisionModel",
}
# text towers trained on texts padded to all their positions, padding attended to
FULL_LENGTH_TOWERS = ("siglip_text_model",)
# text towers whose tokens see those before them alone, and which can be told where each token stands
CAUSAL_TOWERS = ("clip_text_model", "metaclip_2_text_model")
# the most tokens a text tower is given when its config names no limit of positions
DEFAULT_TEXT_LENGTH = 512
# tokens of a row that several texts share: few are left empty, and few pairs of tokens are compared in vain
PACKED_LENGTH = 64
# tokens that a CPU without gradients takes at a time, so that what a layer leaves for the next stays in its caches
CPU_TOKENS = 1280


def build_tower(config: PreTrainedConfig) -> nn.Module:
    """The encoder that `config` describes, with fresh weights (`from_pretrained` of the whole model loads them)."""
    if config.model_type in NAMED_TOWERS:
        return getattr(transformers, NAMED_TOWERS[config.model_type])(config)
    own = OWN_TOWERS.get(config.model_type)
    return AutoModel.from_config(config) if own is None else own(config)


def vision_width(tower: nn.Module) -> int:
    """K, the width of a vision tower's pooled feature; raises `ValueError` for a tower that states none."""
    timm_model = getattr(tower, "timm_model", None)
    if timm_model is not None:
        return getattr(timm_model, "head_hidden_size", None) or timm_model.num_features
    config = tower.config
    if isinstance(getattr(tower, "num_features", None), int):  # Swin, FocalNet
        return tower.num_features
    for name in ("neck_hidden_sizes", "hidden_sizes"):  # MobileViT has both; ResNet, RegNet, ConvNeXt
        if getattr(config, name, None):
            return getattr(config, name)[-1]
    for name in ("hidden_size", "hidden_dim"):  # ViT; EfficientNet
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    raise ValueError(f"cannot tell the feature width of a {config.model_type!r} vision tower")


def text_width(tower: nn.Module, pooling: str = "pooler") -> int:
    """K, the width of a text tower's pooled feature; raises `ValueError` for a tower that states none."""
    if pooling == "pooler" and tower.config.model_type == "siglip_text_model":  # its pooler has a linear head
        return tower.config.projection_size
    for name in ("hidden_size", "d_model", "dim"):
        if isinstance(getattr(tower.config, name, None), int):
            return getattr(tower.config, name)
    raise ValueError(f"cannot tell the feature width of a {tower.config.model_type!r} text tower")


def text_length(config: PreTrainedConfig) -> int:
    """L, the most tokens the text tower has positions for."""
    limit = getattr(config, "max_position_embeddings", None) or DEFAULT_TEXT_LENGTH
    # RoBERTa-like towers count positions from padding_idx + 1
    return limit - 2 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else limit


def encode_image(tower: nn.Module, pixel_values: Tensor, pooling: str) -> Tensor:
    """Pooled image feature [N, K] of `pixel_values` [N, 3, H, W].

    `pooler` takes what the tower pools itself (for a convolutional one its average over positions) and falls back to
    `mean` where it has no pooler.
    """
    outputs = tower(pixel_values.to(tower.dtype))
    pooled = getattr(outputs, "pooler_output", None)
    if pooling == "pooler" and pooled is not None:
        return pooled.flatten(1)
    states = outputs.last_hidden_state
    if states.ndim == 4:  # [N, K, H, W] of a convolutional tower
        states = states.flatten(2).transpose(1, 2)
    return states[:, 0] if pooling == "cls" else states.mean(dim=1)


def encode_text(
    tower: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    pooling: str,
) -> Tensor:
    """Pooled text feature [N, K] of `input_ids` [N, L]; over-long texts are cut to what the tower has positions for.

    A cut keeps the end-of-text token in the last place, because `eot` (and CLIP's `pooler`) reads the state there.
    What follows that place in a causal tower changes no feature, so it is left out and several texts share a row, each
    with its own positions and seeing itself alone (`packing`): the same feature but for rounding, without padding.
    SigLIP's tower, whose `pooler` reads the last of all positions, gets texts padded to its full length and no mask.
    """
    limit = text_length(tower.config)
    if input_ids.shape[1] > limit:
        input_ids = cut_texts(input_ids, limit, end_token(input_ids, tower.config))
        attention_mask = None if attention_mask is None else attention_mask[:, :limit]
        token_type_ids = None if token_type_ids is None else token_type_ids[:, :limit]
    lengths = lengths_to_end(tower, input_ids, attention_mask, pooling)
    if lengths:
        width = min(limit, max(PACKED_LENGTH, max(lengths)))
        rows = packing(lengths, width)
        # a tower that is compiled gets rows alone, of one width where it can be, so that it compiles no further
        if getattr(tower, "_compiled_call_impl", None) is not None:
            return encode_packed(tower, input_ids, lengths, rows, width)
        width = max(sum(lengths[text] for text in row) for row in rows)
        # a little less is not worth another way to compute it
        if 8 * len(rows) * width <= 7 * input_ids.numel():
            return encode_packed(tower, input_ids, lengths, rows, width)
    return encode_text_reference(tower, input_ids, attention_mask, token_type_ids, pooling)


def encode_text_reference(
    tower: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    pooling: str,
) -> Tensor:
    """`encode_text` of texts within the tower's limit, [N, L], one row each with its padding."""
    if tower.config.model_type in FULL_LENGTH_TOWERS:
        limit = text_length(tower.config)
        input_ids = pad(input_ids, (0, limit - input_ids.shape[1]), value=tower.config.pad_token_id)
        attention_mask = None
    extra = {}
    if token_type_ids is not None and "token_type_ids" in inspect.signature(tower.forward).parameters:
        extra["token_type_ids"] = token_type_ids
    outputs = tower(input_ids=input_ids, attention_mask=attention_mask, **extra)
    if pooling == "pooler":
        pooled = getattr(outputs, "pooler_output", None)
        if pooled is None:
            raise ValueError(f"a {tower.config.model_type!r} text tower has no pooler; use text_pooling cls or mean")
        return pooled
    states = outputs.last_hidden_state
    if pooling == "cls":
        return states[:, 0]
    if pooling == "eot":
        return states[torch.arange(len(states), device=states.device), end_of_text(input_ids, tower.config)]
    if attention_mask is None:
        return states.mean(dim=1)
    weights = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1.0)


def lengths_to_end(
    tower: nn.Module, input_ids: Tensor, attention_mask: Tensor | None, pooling: str
) -> list[int] | None:
    """How many tokens [N] each text [N, L] has up to the one whose state is its feature, that one included.

    None where what follows counts, or where texts cannot share a row: in a tower that is not causal, with another
    pooling, with a mask that hides a token before the end, with an attention that takes no mask of pairs, and while
    the tower is compiled, exported or run without data.
    """
    config = tower.config
    known = config.model_type in CAUSAL_TOWERS and isinstance(getattr(config, "eos_token_id", None), int)
    if not known or pooling not in ("pooler", "eot") or config._attn_implementation != "sdpa":
        return None
    # a stand-in without data is a kind of tensor of its own
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or input_ids.is_meta or type(input_ids) is not Tensor:
        return None
    ends = end_of_text(input_ids, config)
    if attention_mask is not None:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = (attention_mask == 0) & (places <= ends[:, None])
        # one answer for both, because an accelerator is waited for
        ends = torch.where(hidden.any(), -1, ends)
    lengths = (ends + 1).tolist()
    return lengths if all(lengths) else None


def packing(lengths: list[int], width: int) -> list[list[int]]:
    """Texts that share a row of at most `width` tokens: each row takes the longest of those left that fit."""
    left: dict[int, list[int]] = {}
    for text in reversed(range(len(lengths))):
        left.setdefault(lengths[text], []).append(text)
    rows = []
    while left:
        row, free = [], width
        for length in sorted(left, reverse=True):
            while length <= free and left[length]:
                row.append(left[length].pop())
                free -= length
            if not left[length]:
                del left[length]
        rows.append(row)
    return rows


def encode_packed(tower: nn.Module, input_ids: Tensor, lengths: list[int], rows: list[list[int]], width: int) -> Tensor:
    """State [N, K] of the last token of each text, which is the first `lengths[i]` of `input_ids[i]` [N, L].

    rows: which texts share a row of `width` tokens. Token a sees token b of its row where both are of one text and b
    comes no later. What is left of a row is a text of its own, which nobody reads.
    """
    *inputs, last = lay_out(input_ids, lengths, rows, width)
    at_once = len(rows)
    if input_ids.device.type == "cpu" and not torch.is_grad_enabled():
        at_once = max(1, CPU_TOKENS // width)
    before = torch.ones(width, width, dtype=torch.bool, device=input_ids.device).tril()
    states = []
    for ids, positions, texts in zip(*(tensor.split(at_once) for tensor in inputs), strict=True):
        seen = (texts[:, None, :, None] == texts[:, None, None, :]) & before
        outputs = tower(input_ids=ids, attention_mask=seen, position_ids=positions)
        states.append(outputs.last_hidden_state.flatten(0, 1))
    return torch.cat(states)[last]


def lay_out(
    input_ids: Tensor, lengths: list[int], rows: list[list[int]], width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, positions and numbers of the texts, each [R, width] of R rows, and where each text ends in them [N]."""
    order = [text for row in rows for text in row]
    taken = torch.tensor([lengths[text] for text in order])
    begins = torch.tensor(
        [
            number * width + start
            for number, row in enumerate(rows)
            for start in accumulate((lengths[text] for text in row[:-1]), initial=0)
        ]
    )
    text = torch.repeat_interleave(taken)
    position = torch.arange(len(text)) - (taken.cumsum(0) - taken)[text]
    source = torch.tensor(order)[text] * input_ids.shape[1] + position
    place = begins[text] + position
    ids, positions, texts = (torch.full((len(rows) * width,), value) for value in (0, 0, -1))
    positions[place], texts[place] = position, text
    last = torch.empty_like(begins)
    last[torch.tensor(order)] = begins + taken - 1
    source, place, ids, positions, texts, last = (
        tensor.to(input_ids.device) for tensor in (source, place, ids, positions, texts, last)
    )
    ids[place] = input_ids.flatten()[source].to(ids.dtype)
    return *(tensor.view(len(rows), width) for tensor in (ids, positions, texts)), last


def end_token(input_ids: Tensor, config: PreTrainedConfig) -> Tensor | None:
    """Id [N, 1] of the token that ends each text [N, L]; None where the text config names no single `eos_token_id`."""
    eos = getattr(config, "eos_token_id", None)
    if config.model_type == "clip_text_model" and eos == 2:
        # OpenAI's published configs state a wrong id; their pooler takes the highest id of a text, and so it ends here
        return input_ids.amax(dim=1, keepdim=True)
    return torch.full_like(input_ids[:, :1], eos) if isinstance(eos, int) else None


def cut_texts(input_ids: Tensor, limit: int, end: Tensor | None) -> Tensor:
    """The first `limit` tokens of each text [N, L]; a text that loses its token `end` [N, 1] has it as its last."""
    kept = input_ids[:, :limit].clone()
    if end is not None:
        lost = ~(kept == end).any(dim=1) & (input_ids == end).any(dim=1)
        kept[:, -1] = torch.where(lost, end[:, 0], kept[:, -1])
    return kept


def end_of_text(input_ids: Tensor, config: PreTrainedConfig) -> Tensor:
    """Position [N] of the first end-of-text token of each text [N, L]."""
    end = end_token(input_ids, config)
    if end is None:
        raise ValueError(f"text_pooling eot needs one eos_token_id in the config of {config.model_type!r}")
    return (input_ids == end).int().argmax(dim=1)


def set_checkpointing(tower: nn.Module, enable: bool, **options) -> bool:
    """Switch activation checkpointing of one tower; returns whether the tower has any."""
    if not getattr(tower, "supports_gradient_checkpointing", False):
        return False
    tower._set_gradient_checkpointing(enable=enable, **options)
    return True
