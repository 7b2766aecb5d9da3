"""UniCL's published sizes: every tensor of the two key lists has a place, and every place a tensor."""

import re
from pathlib import Path

import pytest
import torch

from hf_vlr.convert.plan import Options
from hf_vlr.convert.swin_keys import relative_position_index, shift_mask
from hf_vlr.convert.unicl import plan_unicl, restore_unicl

GOLDEN = Path(__file__).with_name("golden")
WINDOW = 7


def published():
    """{name: (header, {tensor: (shape, dtype, kind)})} of the key list."""
    found = {}
    for line in (GOLDEN / "unicl_state_dict_keys.txt").read_text().splitlines():
        if line.startswith("#"):
            header = line[1:].strip()
            entries = found.setdefault(header.partition(":")[0], (header, {}))[1]
        elif line:
            name, shape, dtype, kind = line.split("\t")
            entries[name] = (tuple(map(int, re.findall(r"\d+", shape))), getattr(torch, dtype), kind)
    return found


SIZES = published()


def tensor(name, shape, dtype, kind):
    """A weight without memory, or a buffer with its values."""
    if kind == "param":
        return torch.empty(shape, dtype=dtype, device="meta")
    if name.endswith("attn_mask"):
        return shift_mask(round(shape[0] ** 0.5) * WINDOW, WINDOW).to(dtype)
    return relative_position_index(WINDOW).to(dtype)


def numbers(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("size", ["unicl_swin_tiny", "unicl_swin_base"])
def test_every_tensor_of_a_published_size_has_a_place(size):
    header, entries = SIZES[size]
    state = {name: tensor(name, *entry) for name, entry in entries.items()}
    plan = plan_unicl(state, {}, Options())
    ours, moves = plan.keys.forward(plan.state)
    with torch.device("meta"):
        model = plan.model_class(plan.config)
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    whole, image, text = (numbers(part) for part in (model, model.vision_model, model.text_model))
    parameters, buffers = len(moves), len(plan.dropped)
    assert header == (
        f"{size}: {parameters + buffers} state-dict entries ({parameters} parameters + {buffers} buffers); "
        f"params total {whole:,}; image_encoder {image:,}; text_encoder {text:,}; rest {whole - image - text:,}"
    )
    assert plan.dropped.keys() == {name for name, (_, _, kind) in entries.items() if kind == "buffer"}
    assert plan.config.text_config.num_attention_heads == 8
    assert (plan.image.size, plan.image.resize) == (224, 256)
    back = restore_unicl(ours, plan.config)
    assert {name: (tuple(one.shape), one.dtype) for name, one in back.items()} == {
        name: (shape, dtype) for name, (shape, dtype, _) in entries.items()
    }
