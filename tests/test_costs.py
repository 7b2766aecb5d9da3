"""What a computation costs, against counts by hand and against what really happens."""

from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.optim import AdamW
from transformers import CLIPVisionConfig, CLIPVisionModel

from hf_vlr.modeling import image_text_label_loss
from hf_vlr.training.costs import Flops, contrast_flops, measure_flops, model_bytes, saved_bytes
from hf_vlr.training.estimates import probe

TOKENS, WIDTH, LAYERS, HEADS, INNER, PATCH, SIDE = 17, 32, 3, 2, 96, 8, 32


def vision_transformer() -> CLIPVisionModel:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        patch_size=PATCH,
        image_size=SIDE,
    )
    return CLIPVisionModel(config).train()


def test_a_linear_layer_by_hand():
    layer, rows = nn.Linear(5, 7), torch.randn(3, 5)
    assert measure_flops(lambda: layer(rows).sum()) == Flops(2 * 3 * 5 * 7, 2 * 3 * 5 * 7)
    # with a gradient of the input too, the backward pass has two products
    rows.requires_grad_()
    assert measure_flops(lambda: layer(rows).sum()) == Flops(2 * 3 * 5 * 7, 4 * 3 * 5 * 7)
    with torch.no_grad():
        assert measure_flops(lambda: layer(rows).sum()) == Flops(2 * 3 * 5 * 7, 0)


def test_a_vision_transformer_by_hand():
    model, images = vision_transformer(), torch.zeros(2, 3, SIDE, SIDE)
    patches = 2 * (TOKENS - 1) * 3 * PATCH**2 * WIDTH
    # query, key, value and output; two products of the attention; two layers of the MLP
    layer = 2 * 4 * TOKENS * WIDTH**2 + 2 * 2 * TOKENS**2 * WIDTH + 2 * 2 * TOKENS * WIDTH * INNER
    assert measure_flops(lambda: model(images).pooler_output.sum()).forward == 2 * (patches + LAYERS * layer)


@pytest.mark.parametrize("images", [1, 2, 5])
def test_operations_are_in_proportion_to_the_images(images):
    model = vision_transformer()
    one, some = (
        measure_flops(lambda count=count: model(torch.zeros(count, 3, SIDE, SIDE)).pooler_output.sum())
        for count in (1, images)
    )
    assert (some.forward, some.backward) == (images * one.forward, images * one.backward)


def test_the_contrast_by_the_counter():
    images = torch.randn(12, 16, requires_grad=True)
    texts = torch.randn(7, 16, requires_grad=True)
    labels, index = torch.arange(12) % 5, torch.arange(12) % 7
    counted = measure_flops(lambda: image_text_label_loss(images, texts, labels, torch.tensor(10.0), text_index=index))
    expected = contrast_flops(12, 7, 16)
    assert counted.forward == expected.forward == 2 * 12 * 7 * 16
    assert counted.backward == expected.backward


def test_without_memory_the_same_is_counted():
    model, images = vision_transformer(), torch.zeros(4, 3, SIDE, SIDE)
    real = measure_flops(lambda: model(images).pooler_output.sum())
    kept = saved_bytes(lambda: model(images).pooler_output.sum(), [model])
    with FakeTensorMode():
        model, images = vision_transformer(), torch.zeros(4, 3, SIDE, SIDE)
        assert measure_flops(lambda: model(images).pooler_output.sum()) == real
        assert saved_bytes(lambda: model(images).pooler_output.sum(), [model]) == kept


def test_saved_bytes_by_hand():
    layer, rows = nn.Linear(5, 7), torch.randn(3, 5)
    # the input, for the gradient of the weight; the output is no part of a sum's gradient, its exponential is
    assert saved_bytes(lambda: layer(rows).sum(), [layer]) == 4 * 3 * 5
    assert saved_bytes(lambda: layer(rows).exp().sum(), [layer]) == 4 * (3 * 5 + 3 * 7)
    # one storage, two operations
    assert saved_bytes(lambda: (layer(rows) + layer(rows)).sum(), [layer]) == 4 * 3 * 5
    weights = 4 * 5 * 7
    rows.requires_grad_()
    assert saved_bytes(lambda: layer(rows).sum()) == 4 * 3 * 5 + weights
    with torch.no_grad():
        assert saved_bytes(lambda: layer(rows).sum(), [layer]) == 0


@pytest.mark.parametrize("low_precision", [False, True])
def test_kept_activations_are_foreseen_within_two_percent(low_precision):
    def forward(model, count):
        images = torch.zeros(count, 3, SIDE, SIDE)

        def run():
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low_precision):
                return model(images).pooler_output.float().sum()

        return run

    with FakeTensorMode():
        unreal = vision_transformer()
        foreseen = probe(partial(forward, unreal), [unreal])
    model = vision_transformer()
    for count in (8, 32):
        assert foreseen.bytes_of(count) == pytest.approx(saved_bytes(forward(model, count), [model]), rel=0.02)


def test_activation_checkpointing_keeps_less_and_computes_more():
    model, images = vision_transformer(), torch.zeros(4, 3, SIDE, SIDE)
    plain = measure_flops(lambda: model(images).pooler_output.sum())
    kept = saved_bytes(lambda: model(images).pooler_output.sum(), [model])
    model.gradient_checkpointing_enable()
    again = measure_flops(lambda: model(images).pooler_output.sum())
    assert again.forward == plain.forward and again.backward > plain.backward + plain.forward / 2
    assert saved_bytes(lambda: model(images).pooler_output.sum(), [model]) < kept / 4


def test_bytes_of_a_model_in_training():
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 2))
    model[2].requires_grad_(False)
    found = model_bytes(model)
    trained = 4 * (5 * 7 + 7 + 7 + 7)
    # mean and variance of seven channels, and a counter of eight bytes
    assert found.weights == trained + 4 * (7 * 2 + 2) + 4 * 14 + 8
    assert found.gradients == trained
    optimizer = AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    model(torch.randn(4, 5)).sum().backward()
    optimizer.step()
    averages = sum(state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    assert found.optimizer == averages


def test_flops_are_added_and_multiplied():
    assert Flops(1, 2) + Flops(3, 4) == Flops(4, 6)
    assert Flops(1, 2).times(3) == Flops(3, 6) and Flops(1, 2).total == 3


def test_attention_is_counted_without_its_matrix():
    query = torch.randn(2, HEADS, TOKENS, 16, requires_grad=True)
    counted = measure_flops(lambda: scaled_dot_product_attention(query, query, query).sum())
    assert counted.forward == 2 * 2 * 2 * HEADS * TOKENS**2 * 16
    # a backward pass that computes the matrix again: five products for two
    assert counted.backward == counted.forward * 5 // 2
