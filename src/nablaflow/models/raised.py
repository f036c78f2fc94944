"""Computing in float32 with weights that stay in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from nablaflow.models.four_bits import Linear4bit

HALF = (torch.bfloat16, torch.float16)


@contextmanager
def computing_in_float32(*networks: nn.Module) -> Iterator[None]:
    """Within this context networks without a gradient compute in float32, and say that they do.

    The weights that a layer has in half precision are cast for its own call alone: a copy of all
    of them would not fit beside what trains. Those in float32 are left alone.
    """
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(_raised(network))
        yield


@contextmanager
def looking_like_float32(network: nn.Module) -> Iterator[None]:
    """Within this context weights of half precision or 4 bits look like float32, and hold nothing.

    So peft gives a LoRA that is loaded meanwhile float32, as it is in its file, and diffusers finds
    layers of the shape that it has.
    """
    held = [(value, value.data, shape) for value, shape in _with_shapes(network)]
    try:
        for value, data, shape in held:
            value.data = torch.zeros((), device=data.device).expand(shape)
        yield
    finally:
        for value, data, _ in held:
            value.data = data


def _with_shapes(network: nn.Module) -> Iterator[tuple[Tensor, torch.Size]]:
    """Values in half precision or 4 bits, and the shapes that they have as numbers."""
    for module in network.modules():
        yield from ((value, value.shape) for value in _in_half(module))
        if isinstance(module, Linear4bit):
            yield module.weight, torch.Size((module.out_features, module.in_features))


@contextmanager
def _raised(network: nn.Module) -> Iterator[None]:
    layers = [module for module in network.modules() if _in_half(module)]
    handles: list[Any] = []
    own: Any = type(network)
    for layer in layers:
        raised: list[tuple[Tensor, Tensor]] = []
        handles.append(layer.register_forward_pre_hook(_raise(raised), with_kwargs=True))
        handles.append(layer.register_forward_hook(_lower(raised), always_call=True))
    if layers:  # pipelines make noise and embeddings in the precision that a network names
        named: dict[str, Any] = {"__module__": own.__module__, "__qualname__": own.__qualname__}
        named["dtype"] = property(lambda _: torch.float32)
        network.__class__ = type(own.__name__, (own,), named)
    try:
        yield
    finally:
        network.__class__ = own
        for handle in handles:
            handle.remove()


def _in_half(module: nn.Module) -> list[Tensor]:
    values = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return [value for value in values if value.dtype in HALF]


def _raise(raised: list[tuple[Tensor, Tensor]]) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        for value in _in_half(module):
            raised.append((value, value.data))
            value.data = value.data.float()
        return tree_map_only(Tensor, _float, (args, kwargs))

    return hook


def _lower(raised: list[tuple[Tensor, Tensor]]) -> Any:
    def hook(*_: Any) -> None:
        while raised:
            value, data = raised.pop()
            value.data = data

    return hook


def _float(value: Tensor) -> Tensor:
    return value.float() if value.dtype in HALF else value
