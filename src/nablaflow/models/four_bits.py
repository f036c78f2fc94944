"""A linear layer in 4 bits: NF4 with double quantization (QLoRA, arXiv 2305.14314).

bitsandbytes makes the 4 bits of weights and the weights of them. What multiplies is torch: the
library's own layer packs its weights anew on some processors where no gradient is taken, and keeps
a part of them outside what a network names. Here all of it is buffers, so that a network in 4 bits
is copied, moved, counted, saved and compared as any other.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK, BLOCKS = 64, 256
"""Weights that share a scale, and scales that share one of their own (QLoRA, section 3)."""
BITS = 4 + 8 / BLOCK + 32 / (BLOCK * BLOCKS)
"""Of a weight, its part of the scales included."""


class Linear4bit(nn.Linear):
    """A linear layer whose frozen weights are 16 levels, the scales of their blocks 8 bits.

    Gradients go through it to its input, of any order; between uses there are the 4 bits alone.

    Attributes:
        weight: two weights a byte.
        precision: that the weights are given in, that of the layer it is made of.
    """

    def __init__(self, layer: nn.Linear, device: torch.device | None = None) -> None:
        """Quantize a layer's weights.

        Args:
            device: where the work is done; the result is where the layer is. None: there too.
        """
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.precision, home = layer.weight.dtype, layer.weight.device
        at_work = layer.weight.detach().to(device or home)
        packed, state = _library().quantize_4bit(
            at_work, blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        self.register_buffer("weight", packed.to(home))
        self.register_buffer("scales", state.absmax.to(home))
        # Bit for bit as whole numbers: a network that is cast to half precision casts no scale.
        for name, value in _statistics(state).items():
            self.register_buffer(name, value.to(home).view(torch.int32))
        self.register_parameter("bias", layer.bias)

    def weights(self) -> Tensor:
        """The weights that it computes with, (out, in), anew at each call."""
        library, exact = _library(), torch.float32
        levels, scale, offset = (
            getattr(self, name).view(exact) for name in ("levels", "scales_scale", "scales_offset")
        )
        nested = library.QuantState(scale, code=levels, blocksize=BLOCKS, dtype=exact)
        state = library.QuantState(
            self.scales,
            # In one row: some kernels take wrong scales where rows are no whole blocks.
            shape=torch.Size((self.out_features * self.in_features,)),
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=self.precision,
            offset=offset,
            state2=nested,
        )
        flat = library.dequantize_4bit(self.weight, state)
        return flat.view(self.out_features, self.in_features)

    def plain(self) -> nn.Linear:
        """A layer of the same weights, each by itself."""
        made = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        made.weight = nn.Parameter(self.weights(), requires_grad=False)
        made.register_parameter("bias", self.bias)
        return made

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))
        return _Product.apply(input, self)


class _Product(torch.autograd.Function):
    """Of an input and a layer's weights, which are made again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: Linear4bit) -> Tensor:  # type: ignore[override]
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(input.dtype)
        return F.linear(input, layer.weights().to(input.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient @ ctx.layer.weights().to(gradient.dtype), None


def sizes_of(network: nn.Module) -> dict[str, int]:
    """Name to how many numbers each parameter has, those that are in 4 bits included."""
    sizes = {name: value.numel() for name, value in network.named_parameters()}
    for name, part in network.named_modules():
        if isinstance(part, Linear4bit):
            sizes[f"{name}.weight" if name else "weight"] = part.in_features * part.out_features
    return sizes


def _library() -> Any:
    return importlib.import_module("bitsandbytes.functional")


def _statistics(state: Any) -> dict[str, Tensor]:
    """What the scales are made of their 8 bits by, each float32."""
    nested = state.state2
    return {"levels": nested.code, "scales_scale": nested.absmax, "scales_offset": state.offset}
