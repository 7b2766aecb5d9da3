"""What a computation costs: floating-point operations, and bytes that are kept for the backward pass.

A multiply-add is two operations. Counted are matrix products, convolutions and attention; what is done element by
element (norms, activations, softmax) is not.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

Shape = tuple[int, ...]
# AdamW keeps two averages of each gradient, in the parameter's own type
ADAM_STATES = 2


@dataclass(frozen=True)
class Flops:
    """Operations of one forward and one backward pass."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        return self.forward + self.backward

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def times(self, factor: int) -> "Flops":
        """Of `factor` such passes."""
        return Flops(factor * self.forward, factor * self.backward)


@dataclass(frozen=True)
class ModelBytes:
    """Bytes that a model takes in training, whatever the batch.

    weights: parameters and buffers. gradients: of what is trained. optimizer: AdamW's two averages of those.
    """

    weights: int
    gradients: int
    optimizer: int


def measure_flops(forward: Callable[[], Tensor]) -> Flops:
    """Operations of `forward()`, which returns a scalar, and of its backward pass; also on the meta device.

    Where the scalar needs no gradient there is no backward pass.
    """
    with FlopCounterMode(display=False, custom_mapping=attention_of_cpu()) as counter:
        value = forward()
        first = counter.get_total_flops()
        if value.requires_grad:
            value.backward()
    return Flops(first, counter.get_total_flops() - first)


def attention_of_cpu() -> dict[Any, Callable[..., int]]:
    """How the CPU's attention is counted, for versions of torch whose counter passes it over (2.11)."""

    def forward(query: Shape, key: Shape, value: Shape, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(
        gradient: Shape, query: Shape, key: Shape, value: Shape, *args: Any, out_shape: Any = None, **kwargs: Any
    ) -> int:
        return sdpa_backward_flop_count(gradient, query, key, value)

    own = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: forward,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return {operation: count for operation, count in own.items() if operation not in flop_registry}


def saved_bytes(forward: Callable[[], Tensor], modules: Iterable[nn.Module] = ()) -> int:
    """Bytes that autograd keeps between `forward()` and its backward pass; also on the meta device.

    A storage counts once, however many operations need it; parameters and buffers of `modules` do not count. What
    activation checkpointing computes again does not count either.
    """
    own = {
        tensor.untyped_storage()._cdata for module in modules for tensor in (*module.parameters(), *module.buffers())
    }
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # the storage itself is kept, so that its address is not given to another
        kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = forward()
    total = sum(storage.nbytes() for address, storage in kept.items() if address not in own)
    del value
    return total


def model_bytes(model: nn.Module) -> ModelBytes:
    """What a model's weights, gradients and AdamW states take; parameters that are shared count once."""
    parameters = list(model.parameters())
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    trained = sum(parameter.nbytes for parameter in parameters if parameter.requires_grad)
    return ModelBytes(sum(parameter.nbytes for parameter in parameters) + buffers, trained, ADAM_STATES * trained)


def contrast_flops(images: int, texts: int, width: int) -> Flops:
    """Of the image-text contrast over N images and U unique texts of width D: 2NUD forward, 6NUD backward.

    Forward is one product; backward computes it again, tile by tile, and the gradients of both sides.
    """
    product = 2 * images * texts * width
    return Flops(product, 3 * product)
