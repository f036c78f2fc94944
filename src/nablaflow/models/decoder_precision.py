"""A decoder in half precision: latents and images, and their gradients, stay in float32 outside.

A reward's gradient by one pixel of many is below what fp16 has, so there it passes through the
decoder multiplied by a power of two, each image's by its own, and is divided by it afterwards.
bf16 has float32's range.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nablaflow.quiet import quiet_libraries
from nablaflow.typing import Images, Latents

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@quiet_libraries()
def decoder_in(dtype: torch.dtype, autoencoder: Any) -> Any:
    """A copy of an autoencoder in a precision, without its encoder, which is of no use here."""
    left_out = {id(part): None for part in (getattr(autoencoder, "encoder", None),)}
    return copy.deepcopy(autoencoder, left_out).to(dtype)


def images_by(decoder: Any, latents: Latents, decode: Callable[[Any, Latents], Images]) -> Images:
    """Pixels of float32 latents by a decoder in its own precision, as float32; differentiable.

    Args:
        decode: what it is called by.
    """
    dtype = next(decoder.parameters()).dtype
    if dtype != torch.float16 or not latents.requires_grad:
        return decode(decoder, latents.to(dtype)).float()
    factors: list[Tensor] = []  # of the backward pass that is on its way

    def raise_by(gradient: Tensor) -> Tensor:
        largest = gradient.detach().abs().flatten(1).amax(1).clamp_min(torch.finfo().tiny)
        factors[:] = [torch.exp2(-largest.log2().ceil()).clamp(max=2.0**100)]
        return gradient * factors[0][:, None, None, None]

    def lower(gradient: Tensor) -> Tensor:
        return gradient / factors[0][:, None, None, None]

    given = latents * 1.0  # a node of its own, whose gradient is the decoder's
    given.register_hook(lower)
    images = decode(decoder, given.to(dtype)).float()
    images.register_hook(raise_by)
    return images
